"""What methods that are a path, wants and a reducer have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import PLAIN, Path, Reducer, Spot, Visit, Want
from lightning_explain.core.probe import Attribution, Rows, as_tuple
from lightning_explain.engine.captum_adapter import freeze
from lightning_explain.engine.paths import AtInput
from lightning_explain.modalities.image import Reshape, arrange, check_reshape


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


class AtLayer:
    """A method whose maps are shaped as a layer's output or input. Its fields are the dataclass's own."""

    layer: str | None
    attribute_to_layer_input: bool
    reshape: Reshape

    @property
    def spot(self) -> Spot:
        """Where it looks."""
        return Spot(self.layer, self.attribute_to_layer_input)

    @property
    def wants(self) -> frozenset[Want]:
        """Gradient and activation there."""
        return frozenset({(PLAIN, self.spot), (None, self.spot)})

    def __post_init__(self) -> None:
        freeze(self)
        check_reshape(type(self).__name__, self.reshape)

    def arranged(self, subject: Subject, found: Attribution, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Where the map lies on the image, as :func:`lightning_explain.maps.arrange` says it.

        Raises:
            ValueError: If ``reshape`` does not fit the map.
        """
        layer = subject.layer(self.layer)
        return arrange(as_tuple(found), inputs, self.reshape, layer, self.attribute_to_layer_input)
