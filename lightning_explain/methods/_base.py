"""Base classes of the built-in methods: a path of points, what the method reads there, and a reducer to one map."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.points import PLAIN, Evaluation, LayerSite, Path, Read, Reducer
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.engine.captum_adapter import freeze
from lightning_explain.engine.paths import AtInput
from lightning_explain.modalities.image import check_reshape
from lightning_explain.modalities.placement import arrange


class OnPath(Method):
    """Base class of methods that the executor computes; methods with equal paths share their evaluations."""

    """Whether the inputs must be floating-point: the method differentiates them or perturbs them by small amounts."""

    @property
    def path(self) -> Path | None:
        """Points at which the model is evaluated; ``None`` for a method that evaluates the model itself."""
        return AtInput()

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Receives one evaluation for each point of the path and returns the map of the samples."""
        raise NotImplementedError


class AtOnce(OnPath):
    """Base class of methods that need a single evaluation, at the input itself."""

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Map from that evaluation, each ``(N, ...)``."""
        raise NotImplementedError

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Receives one evaluation and returns the map of the samples."""
        return self.finish((yield))


def added(total: tuple[Tensor, ...] | None, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Elementwise sum of two tuples of tensors; ``parts`` itself when there is no total yet."""
    return parts if total is None else tuple(t + p for t, p in zip(total, parts, strict=True))


def sum_of_evaluations(count: int, one: Callable[[Evaluation], tuple[Tensor, ...]]) -> Reducer:
    """Reducer that receives ``count`` evaluations and returns the sum of ``one(evaluation)``."""
    total: tuple[Tensor, ...] | None = None
    for _ in range(count):
        total = added(total, one((yield)))
    assert total is not None
    return total


def each(function: Callable[..., Tensor], *columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Applies the function to the i-th tensor of every column, for each i."""
    return tuple(function(*parts) for parts in zip(*columns, strict=True))


class AtLayer(Method):
    """Base class of methods whose map has the shape of a layer's output or input; the dataclass declares the fields."""

    place: ClassVar[str] = "layer"
    reaches_input: ClassVar[bool] = False
    layer_shaped: ClassVar[bool] = True

    attribute_to_layer_input: bool

    @property
    def site(self) -> LayerSite:
        """Layer site that the method reads."""
        return LayerSite(self.layer, self.attribute_to_layer_input)

    @property
    def reads(self) -> frozenset[Read]:
        """Gradient and activation at the layer site."""
        return frozenset({(PLAIN, self.site), (None, self.site)})

    @property
    def of_input(self) -> bool:
        """Whether it reads what goes into its layer."""
        return self.attribute_to_layer_input

    def __post_init__(self) -> None:
        freeze(self)
        check_reshape(type(self).__name__, self.reshape)

    def arranged(
        self, explained: ExplainedFunction, found: Attribution, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        """The map arranged on the image (:func:`lightning_explain.modalities.placement.arrange`); ``None`` without a place there.

        Raises:
            ValueError: If ``reshape`` does not fit the map.
        """
        layer = explained.layer(self.layer)
        of_input = self.attribute_to_layer_input
        return arrange(as_tuple(found), inputs, explained.modalities, self.reshape, layer, of_input)
