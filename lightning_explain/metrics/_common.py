"""What metrics have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_explain.types import PassCount, Prospect, Rows


class Free:
    """A metric that looks at the maps alone."""

    def passes(self, prospect: Prospect) -> PassCount:
        """None at all."""
        return PassCount()


def draws_of(rows: Rows, count: int, limit: int) -> Iterator[tuple[slice, Rows, Tensor]]:
    """Streams every (row, draw) at most ``limit`` at a time.

    Yields:
        Which rows, those rows repeated once for each draw of this part, and the draw index of each repeated row.
    """
    for start in range(0, len(rows), limit):
        where = slice(start, min(start + limit, len(rows)))
        part = rows[where]
        size = max(1, limit // len(part))
        for first in range(0, count, size):
            k = min(size, count - first)
            yield where, part.repeat(k), torch.arange(first, first + k).repeat(len(part))


def needs_floating(owner: str, inputs: tuple[Tensor, ...], way_out: str) -> None:
    """Refuses inputs that cannot be moved by a little.

    Raises:
        ValueError: If one is made of whole numbers.
    """
    for x in inputs:
        if not x.is_floating_point():
            raise ValueError(
                f"{owner} moves the inputs by a little, but they are {x.dtype}; leave it out, or {way_out}."
            )


def check_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """Refuses anything but a whole number of at least ``least``.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}({name}={value!r}); allowed: a whole number of at least {least}.")


def check_size(owner: str, name: str, value: Any) -> None:
    """Refuses anything but a number above 0.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{owner}({name}={value!r}); allowed: a number above 0.")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Refuses anything but ``True`` and ``False``.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{owner}({name}={value!r}); allowed: True or False.")


def check_methods(metric: Any) -> None:
    """Refuses anything but names of methods, or ``None`` for all; a list becomes a tuple.

    Raises:
        TypeError: If it is something else.
    """
    names = metric.methods
    if names is None:
        return
    if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{type(metric).__name__}(methods={names!r}); allowed: None (all) or a list of the names that methods have."
        )
    object.__setattr__(metric, "methods", tuple(names))
