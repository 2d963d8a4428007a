"""How many rows a pass should have, and in which memory layout they are fastest, found by trying."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from lightning_explain.look import look
from lightning_explain.types import Rows, Subject
from lightning_explain.visits import PLAIN, Point

SMALLEST = 16
"""Below this many rows a pass is not made smaller."""
BUDGET = 2.0
"""Seconds after which no further way is tried."""
GAIN = 0.95
"""What is faster by less than that is noise."""


@dataclass(frozen=True)
class Pace:
    """A way to send rows through a model.

    Args:
        limit: Rows in a pass.
        channels_last: Images ``(N, C, H, W)`` in the memory layout that many convolutions prefer.
    """

    limit: int
    channels_last: bool = False


def measured(subject_of: Callable[[Pace], Subject], rows: Callable[[int], Rows], limit: int) -> Pace:
    """The fastest way for a forward and backward pass; the first of its kind where nothing is clearly faster.

    Args:
        subject_of: The explained function at a pace.
        rows: So many rows to try it on.
        limit: The most rows that a pass may have, such as those of a training batch.
    """
    ways = candidates(limit, rows(1))
    if len(ways) < 2:
        return ways[0]
    started, seconds = time.perf_counter(), {way: float("inf") for way in ways}
    # The first pass of all is a warm-up, which is not counted; every way is tried twice in turn.
    for way in (ways[0], *ways, *ways):
        if time.perf_counter() - started < BUDGET:
            seconds[way] = min(seconds[way], _seconds_a_row(subject_of(way), rows(way.limit)))
    best = min(ways, key=seconds.__getitem__)
    return best if seconds[best] < GAIN * seconds[ways[0]] else ways[0]


def candidates(limit: int, row: Rows) -> list[Pace]:
    """What is worth trying, the most likely first."""
    sizes = [size for size in (limit, limit // 2, limit // 4) if size >= SMALLEST] or [limit]
    images = any(x.ndim == 4 and x.shape[1] > 1 for x in row.inputs)
    floating = all(x.is_floating_point() for x in row.inputs)
    layouts = (False, True) if images and limit >= SMALLEST else (False,)
    return [Pace(size, layout) for size, layout in product(sizes, layouts)] if floating else [Pace(limit)]


def _seconds_a_row(subject: Subject, rows: Rows) -> float:
    started = time.perf_counter()
    try:
        look(subject, [Point(rows)], frozenset({(PLAIN, None)}))
    except (RuntimeError, torch.OutOfMemoryError):
        # A model may insist on a layout (``view``), or have no gradient at its input: that is not the way.
        return float("inf")
    return (time.perf_counter() - started) / len(rows)
