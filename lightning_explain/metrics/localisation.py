"""Localisation: maps and masks in, how much of each map lies inside the sample's mask out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_explain.core.contracts import Metric, MetricInputs, Modality, Score
from lightning_explain.core.probe import flat
from lightning_explain.core.validation import check_whole
from lightning_explain.metrics._ranking import of_present, units_present


def relevance_mass(found: Tensor, masks: Tensor) -> Tensor:
    """Share of a map's positive part inside the mask (relevance mass accuracy, Arras et al. 2022).

    Args:
        found: ``(N, C, ...)``; channels are summed first.
        masks: ``(N, ...)`` boolean.

    Returns:
        ``(N,)`` in 0..1; NaN where the mask is empty, or the map has no positive part.
    """
    positive, inside = found.sum(1).clamp(min=0).flatten(1), masks.flatten(1)
    return torch.where(inside.any(1), (positive * inside).sum(1) / positive.sum(1), torch.nan)


def relevance_rank(found: Tensor, masks: Tensor) -> Tensor:
    """Share of the K most relevant pixels inside a mask of K pixels (relevance rank accuracy, Arras et al. 2022).

    Pixels tied for the last of the K places share the remaining places equally.

    Args:
        found: ``(N, C, ...)``; channels are summed first.
        masks: ``(N, ...)`` boolean.

    Returns:
        ``(N,)`` in 0..1; NaN where the mask is empty, or the map is constant or contains NaN.
    """
    values, inside = found.sum(1).flatten(1), masks.flatten(1)
    area = inside.sum(1, keepdim=True)
    last = values.sort(1, descending=True).values.gather(1, (area - 1).clamp(min=0))
    above, tied = values > last, values == last
    places = (area - above.sum(1, keepdim=True)).to(values) / tied.sum(1, keepdim=True)
    hits = (above & inside).sum(1) + places.squeeze(1) * (tied & inside).sum(1)
    return torch.where(_ranked(values), hits / area.squeeze(1), torch.nan)


def pointing_game(found: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """1 where the most relevant pixel lies inside the mask, else 0 (Zhang et al. 2018).

    Pixels tied for the most relevant one score the share of them that lies inside.

    Args:
        found: ``(N, C, ...)``; channels are summed first.
        masks: ``(N, ...)`` boolean.
        tolerance: Pixels (along both axes) by which it may miss the mask, of images.

    Returns:
        ``(N,)`` in 0..1; NaN where the mask is empty, or the map is constant or contains NaN.
    """
    values = found.sum(1).flatten(1)
    near = grown(masks, tolerance).flatten(1)
    largest = values == values.amax(1, keepdim=True)
    hits = (largest & near).sum(1).to(values) / largest.sum(1)
    return torch.where(_ranked(values) & near.any(1), hits, torch.nan)


def grown(masks: Tensor, by: int) -> Tensor:
    """Masks ``(N, H, W)`` or ``(N, D, H, W)`` that reach so many units farther along all axes; those of any shape for 0."""
    pool = F.max_pool2d if masks.ndim == 3 else F.max_pool3d
    return pool(masks[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0 if by else masks


def _ranked(values: Tensor) -> Tensor:
    """Whether each sample's map ranks its pixels, ``(N,)``: false for a constant map or one with NaN."""
    return values.amax(1) > values.amin(1)


@dataclass(frozen=True)
class _Localised(Metric):
    """Base class of metrics that compare each map with its sample's mask."""

    needs_masks: ClassVar[bool] = True
    comparable = True
    undefined: ClassVar[Mapping[str, str]] = {"": "the mask is empty, or the map is constant"}

    maps_only = True

    @abstractmethod
    def measure(self, found: Tensor, masks: Tensor) -> Tensor:
        """The score ``(N,)`` of a map ``(N, C, ...)`` with masks ``(N, ...)``."""

    def prepared(self, masks: Tensor) -> Tensor:
        """The masks ``(N, ...)`` as they are compared with maps."""
        return masks

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In 0..1, without unit."""
        index, inside, present = _masked(metric_inputs, self.prepared)
        x, modality = metric_inputs.samples.inputs[index], metric_inputs.explained.modalities[index]

        def measure(units: Tensor, inside: Tensor) -> Tensor:
            return self.measure(units[:, None], inside)

        found = {
            name: of_present(
                measure,
                metric_inputs,
                flat(modality.by_unit(maps[index]).expand(modality.units(x))),
                inside,
                present=present,
            )
            for name, maps in metric_inputs.maps.items()
        }
        return {"": {name: (value.to(metric_inputs.maps[name][index]), None) for name, value in found.items()}}


def _masked(
    metric_inputs: MetricInputs, prepared: Callable[[Tensor], Tensor] = lambda masks: masks
) -> tuple[int, Tensor, Tensor]:
    """The first input that the masks are regions of, and which of its units lie in them and are there, each ``(N, U)``."""
    # Checked before the first explanation, as is that they fit an input.
    assert metric_inputs.masks is not None
    masks = prepared(metric_inputs.masks.to(metric_inputs.outputs.device).bool())
    columns = zip(metric_inputs.samples.inputs, metric_inputs.explained.modalities, strict=True)
    found = [(i, x, mod, inside) for i, (x, mod) in enumerate(columns) if (inside := mod.inside(masks, x)) is not None]
    index, x, modality, inside = found[0]
    return index, flat(inside), units_present((x,), (modality,))


@dataclass(frozen=True)
class RelevanceMass(_Localised):
    r"""Share of the positive map inside the mask (Arras et al. 2022; Quantus' RelevanceMassAccuracy of maps without negative parts).

    Needs ``Probe(masks=...)``. Takes the positive part of the map, as Arras et al. do; Quantus divides signed sums.
    ``_over_chance`` is the score divided by the mask's share of the image. Whether high is good depends on what the mask
    marks: an object or a shortcut.

    Formula: \frac{\sum_{i \in M} \max(\phi_i, 0)}{\sum_i \max(\phi_i, 0)}
    Chance: the mask's share of the image, 1 for ``_over_chance``: that of a map that is equal everywhere.
    Cost: 0 forward, 0 backward.
    Not for: masks that cover most of the image: any map scores high; evidence against the output: negative parts do not
        count.

    Example:
        >>> from lightning_explain import Probe
        >>> masked = Probe(probe.inputs, probe.targets, masks=torch.ones(2, 8, 8, dtype=torch.bool))
        >>> report = explain(model, masked, methods=[m.InputXGradient()], metrics=[q.RelevanceMass()])
        >>> report.scores["relevance_mass"]["input_x_gradient"].shape
        torch.Size([2])
    """

    suffixes = ("", "over_chance")
    undefined: ClassVar[Mapping[str, str]] = dict.fromkeys(
        suffixes, "the mask is empty, or the map has no positive part"
    )

    def measure(self, found: Tensor, masks: Tensor) -> Tensor:
        """In 0..1, ``_over_chance`` from 0, without unit; NaN for samples with an empty mask or without a positive part."""
        return relevance_mass(found, masks)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In 0..1; ``_over_chance`` from 0. Both without unit."""
        mass = super().score(metric_inputs)[""]
        _, inside, present = _masked(metric_inputs)
        share = (inside & present).sum(1).double() / present.sum(1)
        return {"": mass, "over_chance": {name: ((one / share).to(one), None) for name, (one, _) in mass.items()}}


@dataclass(frozen=True)
class RelevanceRank(_Localised):
    r"""Share of the K most relevant pixels inside the mask of K pixels (Arras et al. 2022; Quantus' RelevanceRankAccuracy).

    Needs ``Probe(masks=...)``. Whether high is good depends on what the mask marks: an object or a shortcut.

    Formula: \frac{|\text{top}_K(\phi) \cap M|}{K},\quad K = |M|
    Chance: the mask's share of the image.
    Cost: 0 forward, 0 backward.
    Not for: masks of few pixels with coarse maps such as Grad-CAM, whose pixels tie; masks of most of the image.

    Example:
        >>> from lightning_explain import Probe
        >>> masked = Probe(probe.inputs, probe.targets, masks=torch.ones(2, 8, 8, dtype=torch.bool))
        >>> report = explain(model, masked, methods=[m.InputXGradient()], metrics=[q.RelevanceRank()])
        >>> report.scores["relevance_rank"]["input_x_gradient"].shape
        torch.Size([2])
    """

    def measure(self, found: Tensor, masks: Tensor) -> Tensor:
        """In 0..1, without unit; NaN for samples with an empty mask or a constant map."""
        return relevance_rank(found, masks)


@dataclass(frozen=True)
class PointingGame(_Localised):
    r"""Whether the most relevant pixel lies inside the probe's mask (Zhang et al. 2018; Quantus' PointingGame).

    Needs ``Probe(masks=...)``. Whether high is good depends on what the mask marks: an object or a shortcut.

    Formula: \mathbf{1}\left[\arg\max_i \phi_i \in M\right]
    Chance: the mask's share of the image.
    Cost: 0 forward, 0 backward.
    Not for: few samples: each is a hit or a miss; noisy pixel maps, whose single largest pixel is chance.

    Args:
        tolerance: Pixels (along both axes) by which the pixel may miss the mask; Zhang et al. allow 15 on photos.

    Raises:
        ValueError: If ``tolerance`` is not a whole number of at least 0.

    Example:
        >>> from lightning_explain import Probe
        >>> masked = Probe(probe.inputs, probe.targets, masks=torch.ones(2, 8, 8, dtype=torch.bool))
        >>> report = explain(model, masked, methods=[m.InputXGradient()], metrics=[q.PointingGame(tolerance=1)])
        >>> report.scores["pointing_game"]["input_x_gradient"].shape
        torch.Size([2])
    """

    tolerance: int = 0

    def __post_init__(self) -> None:
        check_whole("PointingGame", "tolerance", self.tolerance, 0)

    def measure(self, found: Tensor, masks: Tensor) -> Tensor:
        """In 0..1, without unit; 1 for a hit and 0 for a miss; NaN for samples with an empty mask or a constant map."""
        return pointing_game(found, masks)

    def prepared(self, masks: Tensor) -> Tensor:
        """Larger by the tolerance."""
        return grown(masks, self.tolerance)

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> PointingGame:
        """Itself, if a tolerance has pixels to count.

        Raises:
            ValueError: If there is a tolerance, and no image.
        """
        if self.tolerance and not any(modality.grid(x) for x, modality in zip(inputs, modalities, strict=True)):
            raise ValueError(
                f"PointingGame(tolerance={self.tolerance}) counts pixels of images, and there is none; leave it out."
            )
        return self
