"""Samples in; the standard deviation of each number of an input, over many samples, out."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FEWEST, MOST = 16, 1024
"""A standard deviation is taken over at least and at most this many samples."""
_MOST_NUMBERS = 2**27


def measured(x: Tensor) -> bool:
    """Whether noise on an input ``(N, ...)`` is in standard deviations by default: tables and series, but not images or ids."""
    return x.is_floating_point() and x.ndim < 4


def standard_deviations(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The standard deviations of up to 1,024 samples, unbiased as ``torch.std``; missing values (NaN) do not count.

    Args:
        parts: Groups of samples, one tensor ``(N, ...)`` for each input. Groups of another shape than the first are skipped.

    Returns:
        For each input ``(1, ...)`` on the CPU, in float32 or higher; exactly 0 where a number is constant, and for inputs that
        are not floating-point. An empty tuple for fewer than 16 samples.
    """
    shapes: list[torch.Size] = []
    sums: list[Tensor] = []
    first: list[Tensor] = []
    dtypes: list[torch.dtype] = []
    count = numbers = 0
    for inputs in parts:
        values = [_as_double(x) for x in inputs]
        if not first:
            # Differences from one sample: sums of squares then lose no digits to a large mean, and constants are exactly 0.
            shapes, first = [x.shape[1:] for x in inputs], [v[:1].nan_to_num() for v in values]
            sums = [torch.zeros(3, *shape, dtype=torch.float64) for shape in shapes]
            dtypes = [
                torch.promote_types(v.dtype, torch.float32) if v.is_floating_point() else torch.float32 for v in inputs
            ]
        if [x.shape[1:] for x in inputs] != shapes:
            continue
        for total, value, origin in zip(sums, values, first, strict=True):
            change = (value - origin).nan_to_num()
            total += torch.stack([value.isfinite().double().sum(0), change.sum(0), change.square().sum(0)])
        count += len(inputs[0])
        numbers += sum(x.numel() for x in inputs)
        if count >= MOST or numbers >= _MOST_NUMBERS:
            break
    if count < FEWEST:
        return ()
    return tuple(_deviation(*total)[None].to(dtype) for total, dtype in zip(sums, dtypes, strict=True))


def _as_double(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return torch.zeros(x.shape, dtype=torch.float64)
    value = x.detach().cpu().double()
    return torch.where(value.isfinite(), value, torch.nan)


def _deviation(count: Tensor, total: Tensor, squares: Tensor) -> Tensor:
    found: Tensor = ((squares - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)).clamp(min=0).sqrt()
    return found
