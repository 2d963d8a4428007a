"""What methods that are a path, wants and a reducer have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lightning_explain.methods._paths import AtInput
from lightning_explain.types import Attribution, Rows, Subject
from lightning_explain.visits import Path, Reducer, Visit, Want


class OnPath:
    """A method that the sweep computes, together with all others that look at the same points."""

    wants: Any = frozenset[Want]()
    floating: ClassVar[bool] = True
    """Whether the inputs have to be floating-point numbers, for they are changed by small amounts or differentiated."""

    @property
    def path(self) -> Path | None:
        """Where the model is evaluated."""
        return AtInput()

    def reduce(self, subject: Subject, rows: Rows) -> Reducer:
        """The map of the rows from the visits of the path."""
        raise NotImplementedError

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """The attribution of the rows, each ``(N, ...)``, computed alone."""
        return subject.swept(self, rows)


class AtOnce(OnPath):
    """A method that needs one visit of the input."""

    def finish(self, visit: Visit) -> tuple[Tensor, ...]:
        """The map from that visit."""
        raise NotImplementedError

    def reduce(self, subject: Subject, rows: Rows) -> Reducer:
        """The map of the rows from one visit."""
        return self.finish((yield))


def added(total: tuple[Tensor, ...] | None, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The sum, begun with the parts themselves."""
    return parts if total is None else tuple(t + p for t, p in zip(total, parts, strict=True))


def sum_of_visits(count: int, one: Callable[[Visit], tuple[Tensor, ...]]) -> Reducer:
    """What one visit gives, added up over so many of them."""
    total: tuple[Tensor, ...] | None = None
    for _ in range(count):
        total = added(total, one((yield)))
    assert total is not None
    return total


def each(function: Callable[..., Tensor], *columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The function of one tensor from each column at a time."""
    return tuple(function(*parts) for parts in zip(*columns, strict=True))
