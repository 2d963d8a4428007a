"""What metrics have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_explain.core.contracts import CostInputs
from lightning_explain.core.probe import Samples
from lightning_explain.core.report import PassCount


class Free:
    """A metric that looks at the maps alone."""

    def passes(self, cost_inputs: CostInputs) -> PassCount:
        """None at all."""
        return PassCount()


def draws_of(samples: Samples, count: int, limit: int) -> Iterator[tuple[slice, Samples, Tensor]]:
    """Streams every (sample, draw) at most ``limit`` at a time.

    Yields:
        Which samples, those samples repeated once for each draw of this part, and the draw index of each repeated sample.
    """
    for start in range(0, len(samples), limit):
        where = slice(start, min(start + limit, len(samples)))
        part = samples[where]
        size = max(1, limit // len(part))
        for first in range(0, count, size):
            k = min(size, count - first)
            yield where, part.repeat(k), torch.arange(first, first + k).repeat(len(part))


def needs_floating(owner: str, inputs: tuple[Tensor, ...], fix: str) -> None:
    """Refuses inputs that cannot be moved by a little.

    Raises:
        ValueError: If one is made of whole numbers.
    """
    for x in inputs:
        if not x.is_floating_point():
            raise ValueError(f"{owner} moves the inputs by a little, but they are {x.dtype}; leave it out, or {fix}.")
