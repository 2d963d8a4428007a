"""Methods that only look forward: they change the input and watch the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.baselines import check_baseline
from lightning_explain.masks import FeatureMask, Features, check_feature_mask, features_of, positions
from lightning_explain.methods._captum import attribute, check_callable, freeze
from lightning_explain.methods._cloud import column, mean_over_draws, narrowed
from lightning_explain.types import Attribution, Baseline, Rows, Subject, bare

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Occlusion:
    """How far the output falls when a window of the input is replaced by the baseline (Zeiler & Fergus 2013; ``captum.attr.Occlusion``).

    Cost: P + 1 forward, 0 backward; P positions of the window.
    Not for: comparison across windows: size and stride decide what is found; evidence larger than the window or given
        twice; inputs whose order means nothing (tables).

    Args:
        sliding_window_shapes: The window without the row dimension, e.g. ``(3, 8, 8)``; for several inputs a tuple of them.
        strides: How far the window moves in each dimension; a number for all of them; by default 1.
        baselines: What replaces the window: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.

    Raises:
        ValueError: If a window or stride is not positive, or the baseline is unknown.
    """

    sliding_window_shapes: Shape | tuple[Shape, ...] = (1, 4, 4)
    strides: int | Shape | tuple[Shape, ...] | None = None
    baselines: Baseline = None

    def __post_init__(self) -> None:
        freeze(self)
        check_baseline(self.baselines)
        for name in ("sliding_window_shapes", "strides"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise ValueError(f"Occlusion({name}={value!r}); allowed: whole numbers of at least 1, e.g. (3, 8, 8).")

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        return attribute(
            captum.Occlusion(subject.forward).attribute,
            rows,
            sliding_window_shapes=self.sliding_window_shapes,
            strides=self.strides,
            baselines=bare(subject.baseline(self.baselines, rows)),
            perturbations_per_eval=max(1, subject.limit // len(rows)),
        )


@dataclass(frozen=True)
class FeatureAblation:
    """How far the output falls when a feature is replaced by the baseline (Captum; ``captum.attr.FeatureAblation``).

    Cost: F + 1 forward, 0 backward; F features, without a mask the numbers of the input.
    Not for: images without a ``feature_mask``, one pass a pixel and channel; features that stand in for each other:
        each alone changes little.

    Args:
        baselines: What replaces a feature: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        feature_mask: Which elements make up a feature: ``None`` (each by itself), a tensor of whole numbers, ``{"grid": 8}``
            (patches of 8 by 8 pixels), ``{"superpixels": 50}`` (segments of each row), or one of these for each input.

    Raises:
        ValueError: If ``baselines`` or ``feature_mask`` is not allowed.
        TypeError: If one of them is of another type.
    """

    baselines: Baseline = None
    feature_mask: FeatureMask = None

    def __post_init__(self) -> None:
        freeze(self)
        check_baseline(self.baselines)
        check_feature_mask("FeatureAblation(feature_mask", self.feature_mask)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        return attribute(
            captum.FeatureAblation(subject.forward).attribute,
            rows,
            baselines=bare(subject.baseline(self.baselines, rows)),
            feature_mask=bare(features_of(self.feature_mask, subject, rows).masks),
            perturbations_per_eval=max(1, subject.limit // len(rows)),
        )


@dataclass(frozen=True)
class FeaturePermutation:
    """How far the output falls with a feature of another row (Breiman 2001; ``captum.attr.FeaturePermutation``).

    Captum's formula with one permutation of the clean probe rows for each feature, drawn by row id, so that the result
    depends neither on the order of the rows nor on which of them are explained together; a perturbed row (in NoiseTunnel,
    in SensitivityMax) takes its features from clean ones. A permutation that moves no row becomes a shift by one.

    Cost: F + 1 forward, 0 backward; F features, without a mask the numbers of the input.
    Not for: probes of few rows, for each feature is exchanged once and the map is mostly chance; images pixel by pixel,
        where neighbors give a pixel away.

    Args:
        feature_mask: Which elements make up a feature: ``None`` (each by itself), a tensor of whole numbers, ``{"grid": 8}``
            (patches of 8 by 8 pixels), or one of these for each input; the same features for all rows.
        perm_func: Instead of that permutation a function of (all clean probe rows, ordered by id; which elements to permute)
            that returns the rows with these elements permuted. It runs with global generators seeded for the feature.

    Raises:
        ValueError: If ``feature_mask`` is not allowed.
        TypeError: If an argument is of another type.
    """

    feature_mask: FeatureMask = None
    perm_func: Callable[[Tensor, Tensor], Tensor] | None = None

    rows_needed: ClassVar[int] = 2

    def __post_init__(self) -> None:
        freeze(self)
        check_feature_mask("FeaturePermutation(feature_mask", self.feature_mask)
        check_callable("FeaturePermutation(perm_func", self.perm_func)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output.

        Raises:
            ValueError: If the probe has one row, or features differ from row to row.
        """
        if len(subject.probe) < 2:
            raise ValueError(
                "FeaturePermutation takes features from other rows, but the probe has one; give at least two."
            )
        features = features_of(self.feature_mask, subject, rows)
        if any(len(mask) > 1 for mask in features.masks):
            raise ValueError("FeaturePermutation needs the same features in all rows; give one mask for all or a grid.")
        outputs, places = subject.evaluate(rows), positions(subject, rows)

        def one(part: Rows, indices: Tensor) -> tuple[Tensor, ...]:
            chosen = tuple(_chosen(mask, indices) for mask in features.masks)
            donors = self._donors(subject, features, places.repeat_interleave(len(part) // len(rows)), indices)
            points = tuple(torch.where(c, d, x) for c, d, x in zip(chosen, donors, part.inputs, strict=True))
            change = outputs.repeat_interleave(len(part) // len(rows)) - subject.evaluate(part.at(points))
            return tuple(column(change, c) * c for c in chosen)

        (mean,) = mean_over_draws(subject, rows, features.count, one, powers=(1,))
        return bare(narrowed(tuple(m * features.count for m in mean), rows))

    def _donors(self, subject: Subject, features: Features, places: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        """For each row what its elements become, each ``(N, ...)``; only those of its feature count."""
        if self.perm_func is None:
            sources = _permutations(subject, features.count)[places, indices]
            return tuple(x[sources.to(x.device)] for x in subject.probe.inputs)
        permuted = {int(i): self._by_user(self.perm_func, subject, features, i) for i in indices.unique()}
        found = [permuted[int(i)][int(place)] for place, i in zip(places, indices, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _by_user(
        self, function: Callable[[Tensor, Tensor], Tensor], subject: Subject, features: Features, index: Tensor
    ) -> list[tuple[Tensor, ...]]:
        order = subject.probe.ids.argsort()
        first = subject.probe[int(order[0]) : int(order[0]) + 1]
        with subject.draws.seeded("permutation", first, index.reshape(1)):
            permuted = [
                function(x[order.to(x.device)], mask == int(index))
                for x, mask in zip(subject.probe.inputs, features.masks, strict=True)
            ]
        return list(zip(*(p[order.argsort().to(p.device)] for p in permuted), strict=True))


def _permutations(subject: Subject, count: int) -> Tensor:
    """``(N, count)``: for each row of the probe the row whose feature it takes."""

    def draw() -> Tensor:
        probe, n = subject.probe, len(subject.probe)
        order = probe.ids.argsort()
        keys = subject.draws.uniform("permutation", probe, torch.zeros(n, dtype=torch.long), torch.empty(n, count))
        shuffled = keys[order].argsort(dim=0, stable=True)
        still = torch.arange(n)[:, None]
        shuffled = torch.where((shuffled == still).all(0), still.roll(1, 0), shuffled)
        return order[shuffled][order.argsort()]

    return subject.remembered(("permutations", count), draw)


def _chosen(mask: Tensor, indices: Tensor) -> Tensor:
    return mask == column(indices.to(mask.device), mask)


def _positive(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_positive(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
