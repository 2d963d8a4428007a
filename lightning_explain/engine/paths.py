"""Paths: generators of the points at which methods evaluate the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from captum.attr._utils.approximation_methods import approximation_parameters
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import CENTER, Path, Point, value_of
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.engine.baselines import settled
from lightning_explain.engine.features import FeatureMask, features_of
from lightning_explain.engine.noise import Scale, add_noise, column

Shape = tuple[int, ...]
if TYPE_CHECKING:
    Shapes: TypeAlias = Shape | tuple[Shape, ...]
    Strides: TypeAlias = None | int | Shape | tuple[int | Shape, ...]
else:
    Shapes = Strides = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.


@dataclass(frozen=True)
class AtInput:
    """The samples themselves."""

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields one point."""
        yield Point(samples, CENTER)


class FromBaseline:
    """A path that uses a baseline, stored in canonical form so that methods with equal paths share them."""

    baselines: Baseline

    def __post_init__(self) -> None:
        object.__setattr__(self, "baselines", settled(self.baselines))


@dataclass(frozen=True)
class Line(FromBaseline):
    """Points on the straight line from the baseline to the sample, with quadrature weights.

    Args:
        n_points: Number of points.
        method: The quadrature, by Captum's name, such as ``"gausslegendre"``.
        baselines: The start of the line.
    """

    n_points: int
    method: str
    baselines: Baseline

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields ``n_points`` points; their ``change`` is sample - baseline."""
        sizes, alphas = (f(self.n_points) for f in approximation_parameters(self.method))
        starts = explained.baseline(self.baselines, samples)
        change = tuple(x - b for x, b in zip(samples.inputs, starts, strict=True))
        name = value_of(self)
        for weight, alpha in zip(sizes, alphas, strict=True):
            inputs = tuple(b + alpha * c for b, c in zip(starts, change, strict=True))
            yield Point(samples.at(inputs), (name, alpha), weight, change)


@dataclass(frozen=True)
class RandomLine(FromBaseline):
    """Random points between random baselines and the noisy sample, as in GradientShap.

    Args:
        n_samples: Number of points.
        stdevs: Standard deviation of the noise.
        baselines: The set that baselines are drawn from.
    """

    n_samples: int
    stdevs: Scale
    baselines: Baseline

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields ``n_samples`` points; their ``change`` is noisy sample - baseline."""
        references, name = explained.distribution(self.baselines, samples), value_of(self)
        for index in range(self.n_samples):
            line = random_line(explained, samples, torch.full((len(samples),), index), self.stdevs, references)
            change = tuple(x - b for x, b in zip(line[0], line[1], strict=True))
            yield Point(samples.at(line[2]), (name, index), change=change)


@dataclass(frozen=True)
class Cloud:
    """The same path at each of several noisy copies of the sample, as in NoiseTunnel.

    Args:
        n_samples: Number of copies.
        stdevs: Standard deviation of the noise.
        around: The path at each copy.
        antithetic: Whether copies come in pairs with opposite noise.
    """

    n_samples: int
    stdevs: Scale
    around: Path
    antithetic: bool = False

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields the points of the path at the first copy, then those at the second, and so on."""
        for index in range(self.n_samples):
            indices = torch.full((len(samples),), index)
            noisy = samples.at(add_noise(explained, samples, indices, self.stdevs, self.antithetic)).draw(indices)
            for point in self.around.points(explained, noisy):
                own = ("cloud", value_of(self.stdevs), self.antithetic, index)
                named = None if point.key is None else (*own, point.key)
                yield replace(point, key=named)


@dataclass(frozen=True)
class Windows(FromBaseline):
    """The sample, then the sample with a sliding window replaced by the baseline, as in Occlusion.

    Args:
        shapes: Shape of the window in each input, without the sample dimension.
        strides: Step of the window along each dimension.
        baselines: Replaces the window.
    """

    shapes: Shapes
    strides: Strides
    baselines: Baseline

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields the points; ``change`` is 1 inside the window and 0 elsewhere, and absent at the first point."""
        yield Point(samples, CENTER)
        baselines, name = explained.baseline(self.baselines, samples), value_of(self)
        for place, (which, inside) in enumerate(self.masks(samples.inputs)):
            x = samples.inputs[which]
            moved = torch.where(inside.bool(), baselines[which], x)
            inputs = (*samples.inputs[:which], moved, *samples.inputs[which + 1 :])
            yield Point(samples.at(inputs), (name, place), change=(inside,))

    def masks(self, inputs: tuple[Tensor, ...]) -> Iterator[tuple[int, Tensor]]:
        """Yields, for each window position in Captum's order, the index of its input and its 0/1 mask ``(1, ...)``.

        Raises:
            ValueError: If a window does not fit.
        """
        shapes, strides = self._formatted(inputs)
        for which, (x, shape, stride) in enumerate(zip(inputs, shapes, strides, strict=True)):
            counts = [ceil((n - w) / s) + 1 for n, w, s in zip(x.shape[1:], shape, stride, strict=True)]
            for place in product(*(range(count) for count in reversed(counts))):
                starts = [i * s for i, s in zip(reversed(place), stride, strict=True)]
                inside = x.new_zeros(1, *x.shape[1:])
                window = tuple(slice(a, a + w) for a, w in zip(starts, shape, strict=True))
                inside[0][window] = 1
                yield which, inside

    def _formatted(self, inputs: tuple[Tensor, ...]) -> tuple[list[Shape], list[Shape]]:
        several = bool(self.shapes) and isinstance(self.shapes[0], tuple)
        shapes: Any = self.shapes if several else (self.shapes,)
        strides: Any = self.strides if several and isinstance(self.strides, tuple) else (self.strides,) * len(shapes)
        given = f"Occlusion(sliding_window_shapes={self.shapes!r}, strides={self.strides!r})"
        if len(shapes) != len(inputs) or len(strides) != len(inputs):
            raise ValueError(f"{given}: give one window, and one stride, for each of {len(inputs)} inputs.")
        sizes = [tuple(x.shape[1:]) for x in inputs]
        strides = [s if isinstance(s, tuple) else (s or 1,) * len(size) for s, size in zip(strides, sizes, strict=True)]
        for shape, stride, size in zip(shapes, strides, sizes, strict=True):
            _check_window(given, shape, stride, size)
        return list(shapes), strides


def _check_window(given: str, shape: Shape, stride: Shape, size: Shape) -> None:
    if len(shape) != len(size) or len(stride) != len(size) or any(w > n for w, n in zip(shape, size, strict=True)):
        raise ValueError(
            f"{given} does not fit samples {size}; give a number for each dimension, no window larger than {size}."
        )
    if any(s > w and w < n for s, w, n in zip(stride, shape, size, strict=True)):
        raise ValueError(
            f"{given} leaves parts of the input uncovered; give strides no larger than the window {shape}."
        )


@dataclass(frozen=True)
class Ablations(FromBaseline):
    """The sample, then the sample with one feature at a time replaced by the baseline, as in FeatureAblation.

    Args:
        feature_mask: Which elements make up a feature.
        baselines: Replaces the feature.
    """

    feature_mask: FeatureMask
    baselines: Baseline

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields the points; ``change`` is true inside the feature, and absent at the first point."""
        yield Point(samples, CENTER)
        baselines, name = explained.baseline(self.baselines, samples), value_of(self)
        features = features_of(self.feature_mask, explained, samples)
        for index in range(features.count):
            chosen = tuple(mask == index for mask in features.masks)
            inputs = tuple(torch.where(c, b, x) for c, b, x in zip(chosen, baselines, samples.inputs, strict=True))
            yield Point(samples.at(inputs), (name, index), change=chosen)


@dataclass(frozen=True)
class Pairs(FromBaseline):
    """The sample paired with its baseline, as in DeepLift, or with each of a set of baselines, as in DeepLiftShap.

    Args:
        baselines: What the sample is compared with.
        eps: Smaller differences of activations count as zero.
        distribution: Whether the baselines are a set.
    """

    baselines: Baseline
    eps: float = 1e-10
    distribution: bool = False

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields a point for each baseline of a sample; its ``change`` is sample - baseline."""
        take, name = explained.distribution if self.distribution else explained.baseline, value_of(self)
        found = take(self.baselines, samples)
        for index, references in enumerate(zip(*found, strict=True) if self.distribution else [found]):
            against = tuple(r.expand_as(x) for r, x in zip(references, samples.inputs, strict=True))
            change = tuple(x - b for x, b in zip(samples.inputs, against, strict=True))
            yield Point(samples, (name, index), change=change, against=against)


def random_line(
    explained: ExplainedFunction, samples: Samples, indices: Tensor, stdevs: Scale, references: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Returns, for each sample, a noisy input, a random baseline and a random point between them, as in GradientShap.

    Args:
        explained: The explained function, which holds the draws.
        samples: N samples.
        indices: ``(N,)``: the draw index within each sample.
        stdevs: Standard deviation of the noise at the input.
        references: The set that baselines are drawn from, each ``(K, ...)``.

    Returns:
        Noisy inputs, baselines and points, each one tensor ``(N, ...)`` per input.
    """
    noisy = add_noise(explained, samples, indices, stdevs)
    like = samples.inputs[0].new_empty(len(samples))
    u, weight = (explained.draws.uniform(purpose, samples, indices, like) for purpose in ("baseline", "coefficient"))
    chosen = tuple(r[(u * len(r)).long().clamp(max=len(r) - 1)] for r in references)
    # In the order of Captum's operations: with other rounding, a point may fall on the other side of a kink.
    coefficients = [column(weight, x) for x in noisy]
    points = tuple(x * c + b * (1 - c) for x, c, b in zip(noisy, coefficients, chosen, strict=True))
    return noisy, chosen, points
