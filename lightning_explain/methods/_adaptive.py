"""Adaptive integrated gradients: adds points for each sample until its map sums to f(x) - f(baseline)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import value_of
from lightning_explain.core.probe import Samples, flat
from lightning_explain.methods._base import each

FIRST, MOST = 8, 1024
"""Number of intervals before the first and after the last refinement."""


def refined(
    method: Any,
    explained: ExplainedFunction,
    samples: Samples,
    first: Iterable[Tensor],
    change: tuple[Tensor, ...],
    gap: Tensor,
    mean: Callable[[Samples, int, str], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Integrates by the trapezoidal rule, halving the intervals of each sample until its map adds up.

    Each refinement adds the midpoint of every interval, so no point is evaluated twice. A sample is finished when
    ``|sum of the map - gap| <= tolerance * |gap|``, or after ``MOST`` intervals. ``explained.memory`` keeps the number
    of points each sample took.

    Args:
        method: Has ``multiply_by_inputs`` and ``tolerance``.
        explained: The explained function.
        samples: N samples.
        first: Mean gradient by Captum's trapezoidal rule at ``FIRST + 1`` points, each ``(N, ...)``.
        change: Factor of the mean gradient (input or activation minus its baseline), each ``(N, ...)``.
        gap: Sum the map has to reach, ``(N,)``.
        mean: Function of (samples, number of points, quadrature rule) that returns the mean gradient, and may return more.

    Returns:
        One map ``(N, ...)`` for each input; the mean gradient without ``multiply_by_inputs``.
    """
    # The weights of Captum's trapezoidal rule sum to (n - 1) / n.
    total = [t * (FIRST + 1) / FIRST for t in first]
    count, taken = FIRST, torch.full((len(samples),), FIRST + 1)
    while count < MOST and (left := _unfinished(total, change, gap, method.tolerance)).any():
        where = left.nonzero().squeeze(1)
        for t, n in zip(total, mean(samples[where.cpu()], count, "riemann_middle"), strict=False):
            t[where] = (t[where] + n) / 2
        taken[where.cpu()] += count
        count *= 2
    known = explained.memory.setdefault(_key(method, explained), {})
    for sample, branch, steps in zip(samples.ids.tolist(), samples.branches.tolist(), taken.tolist(), strict=True):
        if branch == 0:  # Not a noisy copy of the sample.
            known.setdefault(sample, steps)
    return each(torch.mul, tuple(total), change) if method.multiply_by_inputs else tuple(total)


def _unfinished(total: list[Tensor], change: tuple[Tensor, ...], gap: Tensor, tolerance: float) -> Tensor:
    sums = torch.stack([flat(t * c).sum(1) for t, c in zip(total, change, strict=True)]).sum(0)
    return (sums - gap).abs() > tolerance * gap.abs()


def _key(method: Any, explained: ExplainedFunction) -> Hashable:
    return ("n_steps", getattr(explained.forward, "unit", None), value_of(method))


def steps_taken(method: Any, explained: ExplainedFunction, samples: Samples) -> Tensor | None:
    """Number of points each sample took when it was first explained, ``(N,)``; ``None`` for a fixed number of steps."""
    if not any(isinstance(key, tuple) and key[:1] == ("n_steps",) for key in explained.memory):
        return None  # No method needed more than a look.
    known = explained.memory.get(_key(method.applied, method.focused(explained)))
    return None if not known else torch.tensor([known[sample] for sample in samples.ids.tolist()])
