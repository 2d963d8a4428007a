"""Helpers shared by the metrics: batches of (sample, draw) pairs and input checks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_explain.core.probe import Samples


def draws_of(samples: Samples, count: int, limit: int) -> Iterator[tuple[slice, Samples, Tensor]]:
    """Splits all (sample, draw) pairs into batches of at most ``limit``.

    Yields:
        Slice of the samples in the batch, these samples repeated once for each draw, and the draw index of each
        repeated sample.
    """
    for start in range(0, len(samples), limit):
        where = slice(start, min(start + limit, len(samples)))
        part = samples[where]
        size = max(1, limit // len(part))
        for first in range(0, count, size):
            k = min(size, count - first)
            yield where, part.repeat(k), torch.arange(first, first + k).repeat(len(part))


def needs_floating(owner: str, inputs: tuple[Tensor, ...], fix: str) -> None:
    """Refuses inputs that cannot be perturbed.

    Raises:
        ValueError: If an input is not floating-point.
    """
    for x in inputs:
        if not x.is_floating_point():
            raise ValueError(
                f"{owner} perturbs floating-point inputs, but these are {x.dtype}; leave it out, or {fix}."
            )
