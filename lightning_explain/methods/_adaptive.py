"""Adaptive integrated gradients: adds points for each sample until its map sums to f(x) - f(baseline)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, Point, Reducer, value_of
from lightning_explain.core.probe import Baseline, Samples, as_tuple, flat
from lightning_explain.engine.noise import narrowed, wide
from lightning_explain.engine.paths import FromBaseline
from lightning_explain.methods._base import OnPath, added, each

AUTO = "auto"
FIRST, MOST = 8, 1024
"""Number of intervals before the first and after the last refinement."""
_STEPS = "n_steps"


@dataclass(frozen=True)
class Between(FromBaseline):
    """Points on the straight line from the baseline to the sample.

    Args:
        alphas: Position of each point on the line, from 0 (baseline) to 1 (sample).
        baselines: Start of the line.
    """

    alphas: tuple[float, ...]
    baselines: Baseline

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields one point for each of ``alphas``, with weight 1, or 1/2 at either end (trapezoidal rule)."""
        starts, name = explained.baseline(self.baselines, samples), value_of(self.baselines)
        for alpha in self.alphas:
            inputs = tuple(b + alpha * (x - b) for b, x in zip(starts, samples.inputs, strict=True))
            yield Point(samples.at(inputs), ("between", name, alpha), 0.5 if alpha in (0, 1) else 1.0)


@dataclass(frozen=True)
class _Sums(OnPath):
    """Weighted sum of the gradients on the line, and f at its first and last point ``(N, 2)``."""

    between: Between

    reads = frozenset({(PLAIN, None)})

    @property
    def path(self) -> Between:
        """Points at which the gradients are taken."""
        return self.between

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Returns one gradient sum for each input, then the outputs ``(N, 2)``."""
        total: tuple[Tensor, ...] | None = None
        outputs = []
        for _ in self.between.alphas:
            evaluation = yield
            total = added(total, tuple(wide(g) * evaluation.point.weight for g in evaluation.gradient()))
            outputs.append(wide(evaluation.output))
        assert total is not None
        return (*total, torch.stack([outputs[0], outputs[-1]], 1))


def adaptive(method: Any, explained: ExplainedFunction, samples: Samples) -> tuple[Tensor, ...]:
    """Integrates the gradients from the baseline to the input, with as many points as each sample needs.

    Args:
        method: Has ``baselines``, ``multiply_by_inputs`` and ``tolerance``.
        explained: The explained function.
        samples: N samples.

    Returns:
        One map ``(N, ...)`` for each input.
    """
    starts = explained.baseline(method.baselines, samples)
    change = tuple(wide(x - b) for x, b in zip(samples.inputs, starts, strict=True))
    *total, ends = _sums(method, explained, samples, tuple(i / FIRST for i in range(FIRST + 1)))

    def middles(some: Samples, count: int) -> tuple[Tensor, ...]:
        *found, _ = _sums(method, explained, some, tuple((i + 0.5) / count for i in range(count)))
        return tuple(part / count for part in found)

    first = [part / FIRST for part in total]
    return narrowed(refined(method, explained, samples, first, change, ends[:, 1] - ends[:, 0], middles), samples)


def refined(
    method: Any,
    explained: ExplainedFunction,
    samples: Samples,
    total: list[Tensor],
    change: tuple[Tensor, ...],
    gap: Tensor,
    middles: Callable[[Samples, int], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Integrates by the trapezoidal rule, halving the intervals of each sample until its map adds up.

    Each refinement adds the midpoint of every interval, so no point is evaluated twice. A sample is finished when
    ``|sum of the map - gap| <= tolerance * |gap|``, or after ``MOST`` intervals. ``explained.memory`` keeps the number
    of points each sample took.

    Args:
        method: Has ``multiply_by_inputs`` and ``tolerance``.
        explained: The explained function.
        samples: N samples.
        total: Mean gradient by the trapezoidal rule on ``FIRST`` intervals, each ``(N, ...)``; changed in place.
        change: Factor of the mean gradient (input or activation minus its baseline), each ``(N, ...)``.
        gap: Sum the map has to reach, ``(N,)``.
        middles: Function of (samples, count) that returns the mean gradient at the midpoints of ``count`` intervals.

    Returns:
        One map ``(N, ...)`` for each input; the mean gradient without ``multiply_by_inputs``.
    """
    count, taken = FIRST, torch.full((len(samples),), FIRST + 1)
    while count < MOST and (left := _unfinished(total, change, gap, method.tolerance)).any():
        where = left.nonzero().squeeze(1)
        for t, n in zip(total, middles(samples[where.cpu()], count), strict=True):
            t[where] = (t[where] + n) / 2
        taken[where.cpu()] += count
        count *= 2
    _note(method, explained, samples, taken)
    return each(torch.mul, tuple(total), change) if method.multiply_by_inputs else tuple(total)


def _sums(method: Any, explained: ExplainedFunction, samples: Samples, alphas: tuple[float, ...]) -> tuple[Tensor, ...]:
    return as_tuple(explained.executed(_Sums(Between(alphas, method.baselines)), samples))


def _unfinished(total: list[Tensor], change: tuple[Tensor, ...], gap: Tensor, tolerance: float) -> Tensor:
    sums = torch.stack([flat(t * c).sum(1) for t, c in zip(total, change, strict=True)]).sum(0)
    return (sums - gap).abs() > tolerance * gap.abs()


def _note(method: Any, explained: ExplainedFunction, samples: Samples, taken: Tensor) -> None:
    known = explained.memory.setdefault(_key(method, explained), {})
    for sample, steps in zip(samples.ids.tolist(), taken.tolist(), strict=True):
        known.setdefault(sample, steps)


def _key(method: Any, explained: ExplainedFunction) -> Hashable:
    return (_STEPS, getattr(explained.forward, "unit", None), value_of(method))


def steps_taken(method: Any, explained: ExplainedFunction, samples: Samples) -> Tensor | None:
    """Number of points each sample took when it was first explained, ``(N,)``; ``None`` for a fixed number of steps."""
    known = explained.memory.get(_key(*method.inside(explained)))
    return None if known is None else torch.tensor([known[sample] for sample in samples.ids.tolist()])
