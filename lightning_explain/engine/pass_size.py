"""How many rows a pass should have: what is fastest, found by trying, and what fits into memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import PLAIN, Point
from lightning_explain.core.probe import Rows
from lightning_explain.engine.evaluate import look

T = TypeVar("T")

SMALLEST = 16
"""Below this many rows a pass is not made smaller."""
BUDGET = 2.0
"""Seconds after which no further size is tried."""
GAIN = 0.95
"""What is faster by less than that is noise."""


def fastest(subject: Subject, rows: Callable[[int], Rows], limit: int) -> int:
    """The size at which a forward and backward pass takes the least time a row; the limit where none is clearly faster.

    Args:
        subject: The explained function.
        rows: So many rows to try it on.
        limit: The most rows that a pass may have, such as those of a training batch.
    """
    sizes = candidates(limit, rows(1))
    if len(sizes) < 2:
        return limit
    started, seconds = time.perf_counter(), dict.fromkeys(sizes, float("inf"))
    # The first pass of all is a warm-up, which is not counted; every size is tried twice in turn.
    for size in (limit, *sizes, *sizes):
        if time.perf_counter() - started < BUDGET:
            seconds[size] = min(seconds[size], _seconds_a_row(subject, rows(size)))
    best = min(sizes, key=seconds.__getitem__)
    return best if seconds[best] < GAIN * seconds[limit] else limit


def candidates(limit: int, row: Rows) -> list[int]:
    """The sizes that are worth trying, the largest first."""
    floating = all(x.is_floating_point() for x in row.inputs)
    return [limit, *(size for size in (limit // 2, limit // 4) if floating and size >= SMALLEST)]


def _seconds_a_row(subject: Subject, rows: Rows) -> float:
    started = time.perf_counter()
    try:
        look(subject, [Point(rows)], frozenset({(PLAIN, None)}))
    except (RuntimeError, torch.OutOfMemoryError):
        # Too many rows at once, or a model that has no gradient at its input.
        return float("inf")
    return (time.perf_counter() - started) / len(rows)


def within_memory(work: Callable[[int], T], limit: int) -> tuple[T, int]:
    """What the work gives, in passes of half the size each time the device runs out of memory, and the size that fits."""
    while True:
        try:
            return work(limit), limit
        except torch.OutOfMemoryError:
            if limit == 1:
                raise
        # Outside of the handler: the exception keeps the frames, and so the tensors, of the failed pass.
        limit //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
