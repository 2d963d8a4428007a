"""How many samples a pass should have: what is fastest, found by trying, and what fits into memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, Point
from lightning_explain.core.probe import Samples
from lightning_explain.engine.evaluate import forward_backward

T = TypeVar("T")

SMALLEST = 16
"""Below this many samples a pass is not made smaller."""
BUDGET = 2.0
"""Seconds after which no further size is tried."""
GAIN = 0.95
"""What is faster by less than that is noise."""


def fastest(explained: ExplainedFunction, samples: Callable[[int], Samples], limit: int) -> int:
    """The size at which a forward and backward pass takes the least time a sample; the limit where none is clearly faster.

    Args:
        explained: The explained function.
        samples: So many samples to try it on.
        limit: The most samples that a pass may have, such as those of a training batch.
    """
    sizes = candidates(limit, samples(1))
    if len(sizes) < 2:
        return limit
    started, seconds = time.perf_counter(), dict.fromkeys(sizes, float("inf"))
    # The first pass of all is a warm-up, which is not counted; every size is tried twice in turn.
    for size in (limit, *sizes, *sizes):
        if time.perf_counter() - started < BUDGET:
            seconds[size] = min(seconds[size], _seconds_per_sample(explained, samples(size)))
    best = min(sizes, key=seconds.__getitem__)
    return best if seconds[best] < GAIN * seconds[limit] else limit


def candidates(limit: int, sample: Samples) -> list[int]:
    """The sizes that are worth trying, the largest first."""
    floating = all(x.is_floating_point() for x in sample.inputs)
    return [limit, *(size for size in (limit // 2, limit // 4) if floating and size >= SMALLEST)]


def _seconds_per_sample(explained: ExplainedFunction, samples: Samples) -> float:
    started = time.perf_counter()
    try:
        forward_backward(explained, [Point(samples)], frozenset({(PLAIN, None)}))
    except (RuntimeError, torch.OutOfMemoryError):
        # Too many samples at once, or a model that has no gradient at its input.
        return float("inf")
    return (time.perf_counter() - started) / len(samples)


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
