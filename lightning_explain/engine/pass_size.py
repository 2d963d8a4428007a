"""Chooses how many samples go into one pass: the fastest number, found by timing, and one that fits into memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, Point
from lightning_explain.core.probe import Samples
from lightning_explain.engine.evaluate import forward_backward

T = TypeVar("T")

_NO_MEMORY = re.compile(
    r"(CUDA|HIP|MPS|XPU)\b.*out of memory|(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|MIOPEN|ROCBLAS|HIPBLAS)\w*_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
)
"""How an allocation that failed is reported where it is no ``torch.OutOfMemoryError``."""

SMALLEST = 16
"""The smallest pass that is timed, in samples."""
BUDGET = 2.0
"""Seconds after which no further size is timed."""
GAIN = 0.95
"""A smaller pass is chosen only if its samples take less than this fraction of the time; smaller gains are noise."""


def fastest(explained: ExplainedFunction, samples: Callable[[int], Samples], limit: int) -> int:
    """Returns the pass size with the least time per sample, forward and backward, found by throw-away passes of doubling size.

    It is the limit if no smaller size is clearly faster, and if passes take too long to try them.

    Args:
        explained: The explained function.
        samples: Returns as many samples as it is asked for, to time a pass on.
        limit: The most samples in a pass, such as those of a training batch.
    """
    sizes = candidates(limit, samples(1))
    if len(sizes) < 2:
        return limit
    started, best, least = time.perf_counter(), limit, float("inf")
    _seconds_per_sample(explained, samples(sizes[0]))  # Warms up.
    for size in sizes:
        seconds = float("inf")
        for _ in range(2):
            if time.perf_counter() - started > BUDGET:
                return limit
            seconds = min(seconds, _seconds_per_sample(explained, samples(size)))
        if seconds > least / GAIN:
            return best
        best, least = size, min(least, seconds)
    return best


def candidates(limit: int, sample: Samples) -> list[int]:
    """Returns the pass sizes worth timing, the smallest first."""
    floating = all(x.is_floating_point() for x in sample.inputs)
    return [*(size for size in (limit // 4, limit // 2) if floating and size >= SMALLEST), limit]


def synchronize(device: torch.device) -> None:
    """Waits until an accelerator has done what it was given, so that it can be timed; a CPU is never behind."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _seconds_per_sample(explained: ExplainedFunction, samples: Samples) -> float:
    device = samples.inputs[0].device
    synchronize(device)
    started = time.perf_counter()
    try:
        forward_backward(explained, [Point(samples)], frozenset({(PLAIN, None)}))
        synchronize(device)
    except (RuntimeError, torch.OutOfMemoryError):
        # Out of memory, or a model without a gradient at its input.
        return float("inf")
    return (time.perf_counter() - started) / len(samples)


@dataclass(eq=False)
class Held:
    """The most samples in a pass that fit into memory so far; ``None``: nothing did not fit."""

    limit: int | None = None

    def most(self, limit: int) -> int:
        """The most samples in a pass, of at most ``limit``."""
        return limit if self.limit is None else min(limit, self.limit)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns the errors by which torch's libraries say that memory ran out into :class:`torch.OutOfMemoryError`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not _NO_MEMORY.search(str(error)):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def within_memory(work: Callable[[int], T], limit: int) -> tuple[T, int]:
    """Runs ``work(limit)``, halving the limit each time memory runs out.

    Returns:
        The result of ``work``, and the limit that fit.
    """
    while True:
        try:
            with memory_errors():
                return work(limit), limit
        except torch.OutOfMemoryError:
            if limit == 1:
                raise
        # Outside the handler: the exception keeps the frames of the failed pass, and with them its tensors, alive.
        limit //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
