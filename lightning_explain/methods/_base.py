"""What methods that are a path, wants and a reducer have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, Evaluation, LayerSite, Path, Read, Reducer
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.engine.captum_adapter import freeze
from lightning_explain.engine.paths import AtInput
from lightning_explain.modalities.image import Reshape, arrange, check_reshape


class OnPath:
    """A method that the executor computes, together with all others that look at the same points."""

    reads: Any = frozenset[Read]()
    floating: ClassVar[bool] = True
    """Whether the inputs have to be floating-point numbers, for they are changed by small amounts or differentiated."""

    @property
    def path(self) -> Path | None:
        """Where the model is evaluated."""
        return AtInput()

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """The map of the samples from the evaluations of the path."""
        raise NotImplementedError

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """The attribution of the samples, each ``(N, ...)``, computed alone."""
        return explained.executed(self, samples)


class AtOnce(OnPath):
    """A method that needs one evaluation of the input."""

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """The map from that evaluation."""
        raise NotImplementedError

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """The map of the samples from one evaluation."""
        return self.finish((yield))


def added(total: tuple[Tensor, ...] | None, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The sum, begun with the parts themselves."""
    return parts if total is None else tuple(t + p for t, p in zip(total, parts, strict=True))


def sum_of_evaluations(count: int, one: Callable[[Evaluation], tuple[Tensor, ...]]) -> Reducer:
    """What one evaluation gives, added up over so many of them."""
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
    def site(self) -> LayerSite:
        """Where it looks."""
        return LayerSite(self.layer, self.attribute_to_layer_input)

    @property
    def reads(self) -> frozenset[Read]:
        """Gradient and activation there."""
        return frozenset({(PLAIN, self.site), (None, self.site)})

    def __post_init__(self) -> None:
        freeze(self)
        check_reshape(type(self).__name__, self.reshape)

    def arranged(
        self, explained: ExplainedFunction, found: Attribution, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        """Where the map lies on the image, as :func:`lightning_explain.maps.arrange` says it.

        Raises:
            ValueError: If ``reshape`` does not fit the map.
        """
        layer = explained.layer(self.layer)
        return arrange(as_tuple(found), inputs, self.reshape, layer, self.attribute_to_layer_input)
