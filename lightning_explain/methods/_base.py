"""Base classes of the built-in methods: arguments that are checked, a path of points, what is read there, and a reducer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Layers, Method, Reference
from lightning_explain.core.points import PLAIN, Evaluation, LayerSite, Path, Read, Reducer
from lightning_explain.core.probe import Samples
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.engine.paths import AtInput

AttributionFunc: TypeAlias = Callable[..., tuple[Tensor, ...]] | None


class CaptumMethod(CheckedArguments, Method):
    """Base class of all built-in methods: their arguments are Captum's, and are checked as soon as they are given."""


class SumsUp(CaptumMethod):
    """Base class of methods whose map sums to f(x) - f(baseline), unless an argument turns it into something else."""

    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None

    @property
    def completeness(self) -> Reference | None:
        """What the map promises to sum to (in expectation, if baselines are drawn); ``None`` if it promises nothing."""
        changed = self.custom_attribution_func is not None or self.feature_mask is not None
        return Reference(self.baselines, self.takes_distribution) if self.multiply_by_inputs and not changed else None


class OnPath(CaptumMethod, ABC):
    """Base class of methods that the executor computes; methods with equal paths share their evaluations."""

    @property
    def path(self) -> Path | None:
        """Points at which the model is evaluated; ``None`` for a method that evaluates the model itself."""
        return AtInput()

    @abstractmethod
    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Receives one evaluation for each point of the path and returns the map of the samples."""


class AtOnce(OnPath):
    """Base class of methods that need a single evaluation, at the input itself."""

    @abstractmethod
    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Map from that evaluation, each ``(N, ...)``."""

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Receives one evaluation and returns the map of the samples."""
        return self.finish((yield))


def added(total: tuple[Tensor, ...], parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Elementwise sum of two tuples of tensors; ``parts`` itself when the total is still empty."""
    return each(lambda t, p: t + p, total, parts) if total else parts


def sum_of_evaluations(count: int, one: Callable[[Evaluation], tuple[Tensor, ...]]) -> Reducer:
    """Reducer that receives ``count`` evaluations and returns the sum of ``one(evaluation)``."""
    total: tuple[Tensor, ...] = ()
    for _ in range(count):
        total = added(total, one((yield)))
    return total


def each(function: Callable[..., Tensor], *columns: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Applies the function to the i-th tensor of every column, for each i."""
    return tuple(function(*parts) for parts in zip(*columns, strict=True))


@dataclass(frozen=True)
class AtLayer(CaptumMethod):
    """Base class of methods whose map has the shape of a layer's output or input."""

    place = "layer"
    reaches_input = False
    layer_shaped = True

    layer: Layers = None

    @property
    def site(self) -> LayerSite:
        """Layer site that the method reads."""
        return LayerSite(None if self.layer is None else str(self.layer), self.of_input)

    @property
    def reads(self) -> frozenset[Read]:
        """Gradient and activation at the layer site."""
        return frozenset({(PLAIN, self.site), (None, self.site)})
