"""What the parts of the house promise each other: methods, metrics and sinks, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_explain.core.probe import Attribution, Baseline, Samples
from lightning_explain.core.report import PassCount, Publication

T = TypeVar("T")


Score: TypeAlias = "tuple[Tensor, Tensor | None]"
"""Values ``(N,)`` and their standard errors ``(N,)``, ``None`` where there are none."""


class Draws(Protocol):
    """Random numbers that depend on (seed, purpose, sample id, branch, draw index) alone."""

    def normal(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of ``like`` ``(N, ...)``."""
        ...

    def uniform(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) in the shape, dtype and device of ``like`` ``(N, ...)``."""
        ...

    def seeded(self, purpose: str, samples: Samples, indices: Tensor) -> AbstractContextManager[None]:
        """Seeds the global generators for one sample and draw while a user's own random function runs."""
        ...


@dataclass(frozen=True, eq=False)
class ExplainedFunction:
    """The function that is explained, as methods and metrics see it.

    Args:
        forward: A module that maps ``(*inputs, *extra)`` to ``(N,)``: the explained output of each sample.
        layer: Finds a layer by its dotted name; ``None`` asks for the last layer with a feature map.
        baseline: Turns a baseline as the user writes it into tensors shaped like the samples' inputs.
        distribution: Turns it into a set of K reference samples, each ``(K, ...)``.
        draws: Random numbers keyed by sample.
        limit: Samples the model may see in one call.
        probe: All clean samples of the probe, whichever of them are being explained.
        execute: Explains samples by several methods that are each a path, wants and a reducer, in shared passes.
        canonized: In here methods of these names see the model with what is canonized for them.
        channels_last: Images go through the model in that memory layout.
        memory: What need not be computed twice within one explanation.
    """

    forward: nn.Module
    layer: Callable[[str | None], nn.Module]
    baseline: Callable[[Baseline, Samples], tuple[Tensor, ...]]
    distribution: Callable[[Baseline, Samples], tuple[Tensor, ...]]
    draws: Draws
    limit: int
    probe: Samples
    execute: Callable[[ExplainedFunction, Mapping[str, Any], Samples], Mapping[str, Attribution]]
    canonized: Callable[[Sequence[str]], AbstractContextManager[Any]] = lambda names: nullcontext()
    channels_last: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)

    def executed(self, method: Any, samples: Samples) -> Attribution:
        """The attribution by one method that is a path, wants and a reducer."""
        return self.execute(self, {"": method}, samples)[""]

    def evaluate(self, samples: Samples) -> Tensor:
        """F at the samples, ``(N,)``, without gradients, at most ``limit`` samples a call."""
        with torch.no_grad():
            return torch.cat(
                [self.forward(*self.in_memory_layout(p.inputs), *p.extra) for p in samples.split(self.limit)]
            )

    def in_memory_layout(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs in the memory layout in which they go through the model, each ``(N, ...)``."""
        if not self.channels_last:
            return inputs
        return tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` gave the first time within this explanation."""
        if key not in self.memory:
            self.memory[key] = compute()
        found: T = self.memory[key]
        return found


@dataclass(frozen=True, eq=False)
class Reference:
    """What the sum of a map is promised to be: f(x) - f(baseline).

    Args:
        baselines: As the method takes it.
        distribution: They are a set of samples; f(baseline) is the mean of f over it.
    """

    baselines: Baseline = None
    distribution: bool = False


@runtime_checkable
class Method(Protocol):
    """An attribution method: a frozen dataclass with Captum's class name and argument names.

    A method whose maps promise to add up has a property ``reference``, a :class:`Reference`; ``None`` where its arguments break
    the promise. One that can see for itself whether it fits some samples has ``fits(explained, samples)``, which raises if not. A
    method that knows how its maps lie on the image has ``arranged(explained, found, inputs)``, which returns what
    ``maps.arrange`` does.
    """

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """The attribution of at most ``explained.limit`` samples, each ``(N, ...)``."""
        ...


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """What a metric is given: the function, the samples, and the map of every method.

    Args:
        explained: The explained function.
        samples: All samples, on the model's device.
        outputs: f at the samples, ``(N,)``.
        maps: For each method its map in input space, one tensor per input, broadcastable to it.
        explain: Computes the maps of every method again, at other points of the same samples.
        masks: ``(N, H, W)`` boolean, or ``None``.
        attributions: For each method what it returned, in its own shape; also methods that have no map in input space.
        attribute: Computes the attributions of every method again.
        references: For each method that promises that its map adds up, to what.
        history: ``"previous"`` and ``"first"``: the maps of the same samples in those explanations, as ``maps``; the channels of an
            image are summed, and what there was not is missing.
    """

    explained: ExplainedFunction
    samples: Samples
    outputs: Tensor
    maps: Mapping[str, tuple[Tensor, ...]]
    explain: Callable[[Samples], Mapping[str, tuple[Tensor, ...]]]
    masks: Tensor | None
    attributions: Mapping[str, Attribution]
    attribute: Callable[[Samples], Mapping[str, Attribution]]
    references: Mapping[str, Reference]
    history: Mapping[str, Mapping[str, tuple[Tensor, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CostInputs:
    """What a metric is told so that it can say what it will cost.

    Args:
        explained: The explained function.
        samples: All samples, with their targets.
        maps: Names of the methods that will have a map in input space.
        explain: What it costs to compute those maps again for all samples; ``None`` where that cannot be said.
        attribute: What it costs to compute the attributions of every method again.
        references: For each method that promises that its map adds up, to what.
    """

    explained: ExplainedFunction
    samples: Samples
    maps: tuple[str, ...]
    explain: PassCount | None
    attribute: PassCount | None
    references: Mapping[str, Reference]


@runtime_checkable
class Metric(Protocol):
    """A score per sample and method: a frozen dataclass.

    ``higher_is_better`` says where the better end is (``None``: neither). ``suffixes`` names what ``score`` returns;
    ``("",)`` for a metric of one score. A metric that can say beforehand what it costs has ``passes(cost_inputs)``, which returns a
    :class:`PassCount` for all samples together, or ``None`` if it depends on something that cannot.
    Scores of some inputs only are left out by ``fitted(inputs)``, if there is such a method, which returns the metric for these
    inputs, or raises ``ValueError`` if it has none at all. One that does not score just the methods with a map in input space
    has ``scored(methods, maps, references)``: of all methods, of those with such a map and of those that promise a sum, the
    names of those that it will score; ``needs`` says in words what that takes. A metric with ``needs_history`` is given the maps
    of earlier explanations.
    """

    @property
    def higher_is_better(self) -> bool | None:
        """Which end is the better one; ``None``: neither."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is appended to the metric's name, one for each score it returns."""
        ...

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """For each suffix and each method the score of the samples."""
        ...


class Sink(Protocol):
    """Writes explanations to one logger. Only called on global rank zero."""

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Once, before the first explanation: ``charts[monitor name][metric]`` lists the tags that belong on one chart."""
        ...

    def write(self, publication: Publication) -> None:
        """Writes one explanation."""
        ...


def samples_needed(method: Method) -> int:
    """How many samples the method looks at together."""
    return int(getattr(innermost(method), "samples_needed", 1))


def innermost(method: Method) -> Any:
    """The method inside all that is around it."""
    inner = getattr(method, "attribution_method", None)
    return method if inner is None else innermost(inner)


def with_layer(method: Method, name: str, layer: str | None) -> Method:
    """The method at this layer, unless it names one or needs none.

    Raises:
        ValueError: If it needs a layer, and there is none.
    """
    inner = getattr(method, "attribution_method", None)
    if inner is not None:
        return replace(method, attribution_method=with_layer(inner, name, layer))  # type: ignore[type-var]
    if not hasattr(method, "layer") or method.layer is not None:
        return method
    if layer is None:
        raise ValueError(
            f"The method {name!r} ({type(method).__name__}) has no layer, and no module of this model returns a map "
            "(N, C, h, w); give layer=... or leave it out."
        )
    return replace(method, layer=layer)  # type: ignore[type-var]
