"""Localisation: does the map lie where the mask says it should?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_explain.core.contracts import MetricInputs, Score
from lightning_explain.core.validation import check_count
from lightning_explain.metrics._common import Free


def relevance_mass(found: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive part of a map that lies inside the mask (Arras et al. 2022, relevance mass accuracy).

    Args:
        found: ``(N, C, H, W)``; channels are summed first.
        masks: ``(N, H, W)`` boolean.

    Returns:
        ``(N,)`` in 0..1; NaN where the map has no positive part.
    """
    positive = found.sum(1).clamp(min=0).flatten(1)
    return (positive * masks.flatten(1)).sum(1) / positive.sum(1)


def relevance_rank(found: Tensor, masks: Tensor) -> Tensor:
    """Share of the K most relevant pixels that lie inside the mask of K pixels (Arras et al. 2022, relevance rank accuracy).

    Pixels that tie for the last of the K places count by the share of them that finds a place.

    Args:
        found: ``(N, C, H, W)``; channels are summed first.
        masks: ``(N, H, W)`` boolean.

    Returns:
        ``(N,)`` in 0..1; NaN where the mask is empty, or the map is constant or has a NaN.
    """
    values, inside = found.sum(1).flatten(1), masks.flatten(1)
    area = inside.sum(1, keepdim=True)
    last = values.sort(1, descending=True).values.gather(1, (area - 1).clamp(min=0))
    above, tied = values > last, values == last
    places = (area - above.sum(1, keepdim=True)).to(values) / tied.sum(1, keepdim=True)
    hits = (above & inside).sum(1) + places.squeeze(1) * (tied & inside).sum(1)
    return torch.where(_ranked(values), hits / area.squeeze(1), torch.nan)


def pointing_game(found: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Whether the most relevant pixel lies inside the mask (Zhang et al. 2018).

    Pixels that tie for the most relevant one count by the share of them that lies inside.

    Args:
        found: ``(N, C, H, W)``; channels are summed first.
        masks: ``(N, H, W)`` boolean.
        tolerance: Pixels (along both axes) by which it may miss the mask.

    Returns:
        ``(N,)``, 0 or 1; NaN where the mask is empty, or the map is constant or has a NaN.
    """
    values = found.sum(1).flatten(1)
    near = F.max_pool2d(masks[:, None].float(), 2 * tolerance + 1, 1, tolerance).flatten(1) > 0
    largest = values == values.amax(1, keepdim=True)
    hits = (largest & near).sum(1).to(values) / largest.sum(1)
    return torch.where(_ranked(values) & near.any(1), hits, torch.nan)


def _ranked(values: Tensor) -> Tensor:
    """Samples that say which pixel is more relevant than which; NaN is below and above nothing."""
    return values.amax(1) > values.amin(1)


@dataclass(frozen=True)
class RelevanceMass(Free):
    """Share of the positive map inside the probe's masks (Arras et al. 2022; Quantus' RelevanceMassAccuracy).

    Needs ``Probe(masks=...)``. Whether high is good depends on what the mask marks: an object or a shortcut.

    Cost: 0 forward, 0 backward.
    Not for: masks that cover most of the image: any map scores high; what speaks against the output: negative parts do
        not count.
    """

    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    needs_masks: ClassVar[bool] = True

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In 0..1; samples without a positive part give NaN.

        Raises:
            ValueError: If the probe has no masks.
        """
        return _localised("RelevanceMass", metric_inputs, relevance_mass)


@dataclass(frozen=True)
class RelevanceRank(Free):
    """Share of the K most relevant pixels inside the probe's mask of K pixels (Arras et al. 2022; Quantus' RelevanceRankAccuracy).

    Needs ``Probe(masks=...)``. Chance level is the mask's share of the image. Whether high is good depends
    on what the mask marks: an object or a shortcut.

    Cost: 0 forward, 0 backward.
    Not for: masks of few pixels with coarse maps such as Grad-CAM, whose pixels tie; masks of most of the image.
    """

    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    needs_masks: ClassVar[bool] = True

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In 0..1; samples with an empty mask or a constant map give NaN.

        Raises:
            ValueError: If the probe has no masks.
        """
        return _localised("RelevanceRank", metric_inputs, relevance_rank)


@dataclass(frozen=True)
class PointingGame(Free):
    """Whether the most relevant pixel lies inside the probe's mask (Zhang et al. 2018; Quantus' PointingGame).

    Needs ``Probe(masks=...)``. Chance level is the mask's share of the image. Whether high is good depends
    on what the mask marks: an object or a shortcut.

    Cost: 0 forward, 0 backward.
    Not for: few samples, for each is a hit or a miss; noisy maps of pixels, whose one largest pixel is chance.

    Args:
        tolerance: Pixels (along both axes) by which the pixel may miss the mask; Zhang et al. allow 15 on photos.

    Raises:
        ValueError: If ``tolerance`` is not a whole number of at least 0.
    """

    tolerance: int = 0

    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    needs_masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("PointingGame", "tolerance", self.tolerance, 0)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """1 for a hit and 0 for a miss; samples with an empty mask or a constant map give NaN.

        Raises:
            ValueError: If the probe has no masks.
        """
        return _localised(
            "PointingGame", metric_inputs, lambda found, masks: pointing_game(found, masks, self.tolerance)
        )


def _localised(
    owner: str, metric_inputs: MetricInputs, function: Callable[[Tensor, Tensor], Tensor]
) -> Mapping[str, Mapping[str, Score]]:
    if metric_inputs.masks is None:
        raise ValueError(f"{owner} needs Probe(masks=...), a boolean region (N, H, W).")
    masks = metric_inputs.masks.to(metric_inputs.outputs.device).bool()
    return {"": {name: (_placed(found, masks, function), None) for name, found in metric_inputs.maps.items()}}


def _placed(found: tuple[Tensor, ...], masks: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    images = [m for m in found if m.ndim == 4 and m.shape[2:] == masks.shape[1:]]
    if not images:
        return torch.full((len(masks),), torch.nan, device=masks.device)
    return function(images[0], masks)
