"""Methods that only look forward: they change the input and watch the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Reducer
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.core.validation import check_callable
from lightning_explain.engine.baselines import check_baseline
from lightning_explain.engine.captum_adapter import freeze
from lightning_explain.engine.features import FeatureMask, check_feature_mask, features_of
from lightning_explain.engine.noise import column
from lightning_explain.engine.paths import Ablations, Windows
from lightning_explain.engine.permutations import Permutations
from lightning_explain.methods._base import OnPath

Shape = tuple[int, ...]


class Ablating(OnPath):
    """A method that only looks forward."""

    floating: ClassVar[bool] = False


@dataclass(frozen=True)
class Occlusion(Ablating):
    """How far the output falls when a window of the input is replaced by the baseline (Zeiler & Fergus 2013; ``captum.attr.Occlusion``).

    Cost: P + 1 forward, 0 backward; P positions of the window.
    Not for: comparison across windows: size and stride decide what is found; evidence larger than the window or given
        twice; inputs whose order means nothing (tables).

    Args:
        sliding_window_shapes: The window without the sample dimension, e.g. ``(3, 8, 8)``; for several inputs a tuple of them.
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

    @property
    def path(self) -> Windows:
        """The sample, and each position of the window."""
        return Windows(self.sliding_window_shapes, self.strides, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        center = (yield).output
        totals, weights = _zeros(samples), _zeros(samples)
        for which, _ in self.path.masks(samples.inputs):
            evaluation = yield
            (inside,) = evaluation.point.change
            totals[which] += column(center - evaluation.output, inside) * inside
            weights[which] += inside
        return tuple(t / w for t, w in zip(totals, weights, strict=True))


@dataclass(frozen=True)
class FeatureAblation(Ablating):
    """How far the output falls when a feature is replaced by the baseline (Captum; ``captum.attr.FeatureAblation``).

    Cost: F + 1 forward, 0 backward; F features, without a mask the numbers of the input.
    Not for: images without a ``feature_mask``, one pass a pixel and channel; features that stand in for each other:
        each alone changes little.

    Args:
        baselines: What replaces a feature: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        feature_mask: Which elements make up a feature: ``None`` (each by itself), a tensor of whole numbers, ``{"grid": 8}``
            (patches of 8 by 8 pixels), ``{"superpixels": 50}`` (segments of each sample), or one of these for each input.

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

    @property
    def path(self) -> Ablations:
        """The sample, and the sample without each feature."""
        return Ablations(self.feature_mask, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        return falls(features_of(self.feature_mask, explained, samples).count, samples)


@dataclass(frozen=True)
class FeaturePermutation(Ablating):
    """How far the output falls with a feature of another sample (Breiman 2001; ``captum.attr.FeaturePermutation``).

    Captum's formula with one permutation of the clean probe samples for each feature, drawn by sample id, so that the result
    depends neither on the order of the samples nor on which of them are explained together; a perturbed sample (in NoiseTunnel,
    in SensitivityMax) takes its features from clean ones. A permutation that moves no sample becomes a shift by one.

    Cost: F + 1 forward, 0 backward; F features, without a mask the numbers of the input.
    Not for: probes of few samples, for each feature is exchanged once and the map is mostly chance; images pixel by pixel,
        where neighbors give a pixel away.

    Args:
        feature_mask: Which elements make up a feature: ``None`` (each by itself), a tensor of whole numbers, ``{"grid": 8}``
            (patches of 8 by 8 pixels), or one of these for each input; the same features for all samples.
        perm_func: Instead of that permutation a function of (all clean probe samples, ordered by id; which elements to permute)
            that returns the samples with these elements permuted. It runs with global generators seeded for the feature.

    Raises:
        ValueError: If ``feature_mask`` is not allowed.
        TypeError: If an argument is of another type.
    """

    feature_mask: FeatureMask = None
    perm_func: Callable[[Tensor, Tensor], Tensor] | None = None

    samples_needed: ClassVar[int] = 2

    def __post_init__(self) -> None:
        freeze(self)
        check_feature_mask("FeaturePermutation(feature_mask", self.feature_mask)
        check_callable("FeaturePermutation(perm_func", self.perm_func)

    @property
    def path(self) -> Permutations:
        """The sample, and the sample with each feature taken from another one."""
        return Permutations(self.feature_mask, self.perm_func)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output.

        Raises:
            ValueError: If the probe has one sample, or features differ from sample to sample.
        """
        if len(explained.probe) < 2:
            raise ValueError(
                "FeaturePermutation takes features from other samples, but the probe has one; give at least two."
            )
        features = features_of(self.feature_mask, explained, samples)
        if any(len(mask) > 1 for mask in features.masks):
            raise ValueError("FeaturePermutation needs the same features in all rows; give one mask for all or a grid.")
        return falls(features.count, samples)


def falls(count: int, samples: Samples) -> Reducer:
    """How far the output falls with each of ``count`` features, at the elements of that feature."""
    center = (yield).output
    totals = _zeros(samples)
    for _ in range(count):
        evaluation = yield
        for total, chosen in zip(totals, evaluation.point.change, strict=True):
            total += column(center - evaluation.output, chosen) * chosen
    return tuple(totals)


def _zeros(samples: Samples) -> list[Tensor]:
    dtypes = (torch.promote_types(x.dtype, torch.float32) for x in samples.inputs)
    return [torch.zeros_like(x, dtype=dtype) for x, dtype in zip(samples.inputs, dtypes, strict=True)]


def _positive(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_positive(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
