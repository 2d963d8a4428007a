"""Integrated gradients with as many points as each row needs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import PLAIN, Point, Reducer, value_of
from lightning_explain.core.probe import Baseline, Rows, as_tuple
from lightning_explain.engine.noise import narrowed, wide
from lightning_explain.engine.paths import FromBaseline
from lightning_explain.methods._base import OnPath, added, each

AUTO = "auto"
FIRST, MOST = 8, 1024
"""Intervals of the first and of the last refinement."""
_STEPS = "n_steps"


@dataclass(frozen=True)
class Between(FromBaseline):
    """Points on the line from the baseline to the row.

    Args:
        alphas: How far along, 0 to 1.
        baselines: Where the line begins.
    """

    alphas: tuple[float, ...]
    baselines: Baseline

    def points(self, subject: Subject, rows: Rows) -> Iterator[Point]:
        """One for each of ``alphas``, weighted by one, at the ends by a half."""
        starts, name = subject.baseline(self.baselines, rows), value_of(self.baselines)
        for alpha in self.alphas:
            inputs = tuple(b + alpha * (x - b) for b, x in zip(starts, rows.inputs, strict=True))
            yield Point(rows.at(inputs), ("between", name, alpha), 0.5 if alpha in (0, 1) else 1.0)


@dataclass(frozen=True)
class _Sums(OnPath):
    """The weighted sum of the gradients between, and the outputs at the first and the last point ``(N, 2)``."""

    between: Between

    wants = frozenset({(PLAIN, None)})

    @property
    def path(self) -> Between:
        """Where the gradients are taken."""
        return self.between

    def reduce(self, subject: Subject, rows: Rows) -> Reducer:
        """The sums, one for each input, and the outputs."""
        total: tuple[Tensor, ...] | None = None
        outputs = []
        for _ in self.between.alphas:
            visit = yield
            total = added(total, tuple(wide(g) * visit.point.weight for g in visit.gradient()))
            outputs.append(wide(visit.output))
        assert total is not None
        return (*total, torch.stack([outputs[0], outputs[-1]], 1))


def check_tolerance(owner: str, tolerance: Any) -> None:
    """Refuses what is no relative error.

    Raises:
        ValueError: If it is no number above 0.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise ValueError(f"{owner}(tolerance={tolerance!r}); allowed: a number above 0.")


def adaptive(method: Any, subject: Subject, rows: Rows) -> tuple[Tensor, ...]:
    """The integral of the gradients from the baseline to the input, refined until the map adds up.

    Args:
        method: Has ``baselines``, ``multiply_by_inputs`` and ``tolerance``.
        subject: The explained function.
        rows: N rows.
    """
    starts = subject.baseline(method.baselines, rows)
    change = tuple(wide(x - b) for x, b in zip(rows.inputs, starts, strict=True))
    *total, ends = _sums(method, subject, rows, tuple(i / FIRST for i in range(FIRST + 1)))

    def middles(some: Rows, count: int) -> tuple[Tensor, ...]:
        *found, _ = _sums(method, subject, some, tuple((i + 0.5) / count for i in range(count)))
        return tuple(part / count for part in found)

    first = [part / FIRST for part in total]
    return narrowed(refined(method, subject, rows, first, change, ends[:, 1] - ends[:, 0], middles), rows)


def refined(
    method: Any,
    subject: Subject,
    rows: Rows,
    total: list[Tensor],
    change: tuple[Tensor, ...],
    gap: Tensor,
    middles: Callable[[Rows, int], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """The integral by the trapezoidal rule, each interval halved until the map adds up.

    Halving adds the points in the middle of all intervals, so no point is visited twice. A row is finished when
    ``|sum of the map - gap| <= tolerance * |gap|``, or after ``MOST`` intervals; how many points each row took is kept in
    ``subject.memory``.

    Args:
        method: Has ``multiply_by_inputs`` and ``tolerance``.
        subject: The explained function.
        rows: N rows.
        total: The mean gradient by the trapezoidal rule on ``FIRST`` intervals, each ``(N, ...)``; changed in place.
        change: What it is multiplied by, each ``(N, ...)``.
        gap: What the products have to add up to, ``(N,)``.
        middles: The mean gradient in the middles of so many intervals, for some of the rows.
    """
    count, taken = FIRST, torch.full((len(rows),), FIRST + 1)
    while count < MOST and (left := _unfinished(total, change, gap, method.tolerance)).any():
        where = left.nonzero().squeeze(1)
        for t, n in zip(total, middles(rows[where.cpu()], count), strict=True):
            t[where] = (t[where] + n) / 2
        taken[where.cpu()] += count
        count *= 2
    _note(method, subject, rows, taken)
    return each(torch.mul, tuple(total), change) if method.multiply_by_inputs else tuple(total)


def _sums(method: Any, subject: Subject, rows: Rows, alphas: tuple[float, ...]) -> tuple[Tensor, ...]:
    return as_tuple(subject.swept(_Sums(Between(alphas, method.baselines)), rows))


def _unfinished(total: list[Tensor], change: tuple[Tensor, ...], gap: Tensor, tolerance: float) -> Tensor:
    sums = torch.stack([(t * c).flatten(1).sum(1) for t, c in zip(total, change, strict=True)]).sum(0)
    return (sums - gap).abs() > tolerance * gap.abs()


def _note(method: Any, subject: Subject, rows: Rows, taken: Tensor) -> None:
    known = subject.memory.setdefault(_key(method, subject), {})
    for row, steps in zip(rows.ids.tolist(), taken.tolist(), strict=True):
        known.setdefault(row, steps)


def _key(method: Any, subject: Subject) -> Hashable:
    return (_STEPS, getattr(subject.forward, "unit", None), value_of(method))


def steps_taken(method: Any, subject: Subject, rows: Rows) -> Tensor | None:
    """``(N,)``: points that each row took when it was first explained; ``None`` for a method with a fixed number."""
    inside = getattr(method, "inside", None)
    known = subject.memory.get(_key(*(inside(subject) if inside is not None else (method, subject))))
    return None if known is None else torch.tensor([known[row] for row in rows.ids.tolist()])
