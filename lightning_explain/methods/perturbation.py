"""Perturbation methods: samples with parts replaced in, the resulting drop of the output out; forward passes only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Reducer
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.core.validation import is_whole
from lightning_explain.engine.features import FeatureMask, features_of, shared
from lightning_explain.engine.noise import column
from lightning_explain.engine.paths import Ablations, Shapes, Strides, Windows
from lightning_explain.engine.permutations import Permutations
from lightning_explain.methods._base import OnPath


class Ablating(OnPath):
    """Base class of methods that put something else in the place of parts of the input; they need forward passes only."""

    backward_rule = "none"
    multiplies_by_inputs = True


@dataclass(frozen=True)
class Occlusion(Ablating):
    r"""Drop of the output when a window of the input is replaced (Zeiler & Fergus 2013; ``captum.attr.Occlusion``).

    The baseline replaces the window at every position; an element gets the mean drop over the windows that cover it.

    Formula: \phi_i = \frac{1}{|\{W: i \in W\}|} \sum_{W: i \in W} \left(f(x) - f(x_{W \leftarrow b})\right)
    Cost: P + 1 forward, 0 backward; P positions of the window.
    Not for: comparison across window sizes: size and stride decide what is found; evidence that is larger than the
        window or redundant; inputs without an order (tables).

    Args:
        sliding_window_shapes: Window without the sample dimension, e.g. ``(3, 8, 8)``; a tuple of them for several
            inputs.
        strides: Step of the window in each dimension, or one number for all. Default: 1.
        baselines: Value that replaces the window: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.

    Raises:
        ValueError: If a window or stride is not positive, or the baseline is unknown.

    Example:
        >>> method = m.Occlusion(sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2))
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["occlusion"].shape
        torch.Size([2, 3, 8, 8])
    """

    sliding_window_shapes: Shapes = (1, 4, 4)
    strides: Strides = None
    baselines: Baseline = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sliding_window_shapes", "strides"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise ValueError(f"Occlusion({name}={value!r}); give whole numbers of at least 1, such as (3, 8, 8).")

    @property
    def path(self) -> Windows:
        """The sample, then the sample with the window at each position."""
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
    r"""Drop of the output when a feature is replaced by the baseline (Captum; ``captum.attr.FeatureAblation``).

    Formula: \phi_g = f(x) - f(x_{g \leftarrow b})
    Cost: F + 1 forward, 0 backward; F features, without a mask one for each number of the input.
    Not for: images without a ``feature_mask``: one pass for each channel of each pixel; redundant features: replacing
        one alone changes little.

    Args:
        baselines: Value that replaces a feature: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        feature_mask: How input elements form features: ``None`` (each element is a feature), a tensor of whole numbers,
            ``{"grid": 8}`` (patches of 8 by 8 pixels), ``{"superpixels": 50}`` (segments of each sample), or one of
            these for each input. One number in the tensors of several inputs is one feature, as in Captum from 0.9 on.

    Raises:
        ValueError: If ``baselines`` or ``feature_mask`` is not allowed.
        TypeError: If one of them is of another type.

    Example:
        >>> report = explain(model, probe, methods=[m.FeatureAblation(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["feature_ablation"].shape
        torch.Size([2, 3, 8, 8])
    """

    baselines: Baseline = None
    feature_mask: FeatureMask = None

    @property
    def path(self) -> Ablations:
        """The sample, then the sample without each feature."""
        return Ablations(self.feature_mask, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        found = yield from falls(features_of(self.feature_mask, explained, samples).count, samples)
        return shared(found, self.feature_mask, explained, samples)


@dataclass(frozen=True)
class FeaturePermutation(Ablating):
    r"""Drop of the output with a feature of another sample (Breiman 2001; ``captum.attr.FeaturePermutation``).

    Follows Captum's formula with one permutation of the clean probe samples for each feature, drawn by sample id: the
    result depends neither on the order of the samples nor on which of them are explained together. A perturbed sample
    (in NoiseTunnel or SensitivityMax) takes its features from clean samples. A permutation that would move no sample
    becomes a shift by one.

    Formula: \phi_g = f(x) - f(x_{g \leftarrow x'}),\quad x'\ \text{another sample}
    Cost: F + 1 forward, 0 backward; F features, without a mask one for each number of the input.
    Not for: probes of few samples: each feature is exchanged once, and the map is mostly chance; images pixel by pixel:
        neighbors reveal the pixel.

    Args:
        feature_mask: How input elements form features: ``None`` (each element is a feature), a tensor of whole numbers,
            ``{"grid": 8}`` (patches of 8 by 8 pixels), or one of these for each input; the same features for all
            samples.
        perm_func: Function that replaces this permutation. Takes all clean probe samples, ordered by id, and a mask of
            the elements to permute; returns the samples with these elements permuted. The global generators are seeded
            for the feature.

    Raises:
        ValueError: If ``feature_mask`` is not allowed.
        TypeError: If an argument is of another type.

    Example:
        >>> report = explain(model, probe, methods=[m.FeaturePermutation(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["feature_permutation"].shape
        torch.Size([2, 3, 8, 8])
    """

    feature_mask: FeatureMask = None
    perm_func: Callable[[Tensor, Tensor], Tensor] | None = None

    samples_needed = 2

    @property
    def path(self) -> Permutations:
        """The sample, then the sample with each feature taken from another sample."""
        return Permutations(self.feature_mask, self.perm_func)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output.

        Raises:
            ValueError: If features differ between samples.
        """
        features = features_of(self.feature_mask, explained, samples)
        if any(len(mask) > 1 for mask in features.masks):
            raise ValueError("FeaturePermutation needs the same features in all samples; give one mask or a grid.")
        found = yield from falls(features.count, samples)
        return shared(found, self.feature_mask, explained, samples)


def falls(count: int, samples: Samples) -> Reducer:
    """Reducer: the drop of the output for each of ``count`` features, at the elements of that feature."""
    center = (yield).output
    totals = _zeros(samples)
    for _ in range(count):
        evaluation = yield
        for total, chosen in zip(totals, evaluation.point.change, strict=True):
            total += column(center - evaluation.output, chosen) * chosen
    return tuple(totals)


def _zeros(samples: Samples) -> list[Tensor]:
    return [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in samples.inputs]


def _positive(value: object) -> bool:
    if isinstance(value, tuple):
        # () is the window of samples that are one number.
        return all(_positive(v) for v in value)
    return is_whole(value, 1)
