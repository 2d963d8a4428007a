"""The interfaces that users can extend (method, metric, sink), and the records that the package passes to them."""

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
"""One score per sample, ``(N,)``, and its standard errors, ``(N,)``, or ``None`` for a metric without them."""


class Draws(Protocol):
    """Random numbers for samples; each number depends only on (seed, purpose, sample id, branch, draw index).

    So a sample gets the same numbers whatever its batch, its rank, or the order of the samples.
    """

    def normal(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers in shape, dtype and device of ``like`` ``(N, ...)``, for draw indices ``(N,)``."""
        ...

    def uniform(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) in shape, dtype and device of ``like`` ``(N, ...)``, for draw indices ``(N,)``."""
        ...

    def seeded(self, purpose: str, samples: Samples, indices: Tensor) -> AbstractContextManager[None]:
        """A context for a user's own random function: seeds the global generators for one sample and draw."""
        ...


@dataclass(frozen=True, eq=False)
class ExplainedFunction:
    """The explained function f, samples to one number each: all that methods and metrics see of the model.

    Args:
        forward: A module that maps ``(*inputs, *extra)`` to ``(N,)``: the explained output of each sample.
        layer: Returns the layer with a dotted name; for ``None`` the last layer with a feature map.
        baseline: Converts a baseline as the user writes it to tensors shaped like the samples' inputs.
        distribution: Converts such a baseline to K reference samples, one tensor ``(K, ...)`` per input.
        draws: Random numbers keyed by sample.
        limit: The largest number of samples in one call of the model.
        probe: All clean samples of the probe, even while only some of them are being explained.
        execute: Computes the attributions of several path methods (path, reads, reducer) in shared passes.
        canonized: A context in which the model carries the changes that the methods with these names need (see
            :class:`~lightning_explain.core.verdict.Canonizer`).
        channels_last: Whether images go through the model in the channels-last memory format.
        memory: Results cached for the duration of one explanation; see :meth:`remembered`.
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
        """The attribution of the samples by one path method (path, reads, reducer)."""
        return self.execute(self, {"": method}, samples)[""]

    def evaluate(self, samples: Samples) -> Tensor:
        """The values of f at the samples, ``(N,)``, computed without gradients, at most ``limit`` samples per call."""
        with torch.no_grad():
            return torch.cat(
                [self.forward(*self.in_memory_layout(p.inputs), *p.extra) for p in samples.split(self.limit)]
            )

    def in_memory_layout(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs ``(N, ...)`` in the memory format in which the model receives them."""
        if not self.channels_last:
            return inputs
        return tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of ``compute()``, which runs only at the first call with this key in an explanation."""
        if key not in self.memory:
            self.memory[key] = compute()
        found: T = self.memory[key]
        return found


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference point of a complete method: its map sums to f(x) - f(baseline).

    Args:
        baselines: The method's ``baselines`` argument.
        distribution: Whether the baselines are a set of samples; f(baseline) is then the mean of f over the set.
    """

    baselines: Baseline = None
    distribution: bool = False


@runtime_checkable
class Method(Protocol):
    """An attribution method: samples in, attributions out; a frozen dataclass with Captum's class and argument names.

    A method may also define:

    - ``reference``, a property: the :class:`Reference` that its maps sum to, or ``None`` if its arguments break
      completeness.
    - ``fits(explained, samples)``: raises if the method cannot explain these samples.
    - ``arranged(explained, found, inputs)``: how its maps lie on the image, in the form that
      :func:`lightning_explain.modalities.image.arrange` returns.
    """

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """The attributions of N <= ``explained.limit`` samples: a tensor ``(N, ...)``, or a tuple of them."""
        ...


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """The input of ``Metric.score``: the explained function, the samples, and the map of every method.

    Args:
        explained: The explained function.
        samples: All samples, on the model's device.
        outputs: f at the samples, ``(N,)``.
        maps: Method name to its map in input space: one tensor per input, broadcastable to that input.
        explain: Recomputes the maps of every method at other points of the same samples.
        masks: The probe's regions, ``(N, H, W)`` boolean, or ``None``.
        attributions: Method name to what the method returned, in its own shape; includes methods without a map in input
            space.
        attribute: Recomputes the attributions of every method.
        references: Method name to its :class:`Reference`, for the methods whose map is complete.
        history: ``"previous"`` and ``"first"`` to the maps of the same samples in those explanations, in the form of
            ``maps`` with the channels of an image summed. An explanation or a method that did not exist is missing.
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
    """The input of ``Metric.passes``, with which a metric predicts how many passes it will take.

    Args:
        explained: The explained function.
        samples: All samples, with their targets.
        maps: Names of the methods that will have a map in input space.
        explain: Cost of recomputing those maps for all samples; ``None`` if it is unknown beforehand.
        attribute: Cost of recomputing the attributions of every method; ``None`` if it is unknown beforehand.
        references: Method name to its :class:`Reference`, for the methods whose map is complete.
    """

    explained: ExplainedFunction
    samples: Samples
    maps: tuple[str, ...]
    explain: PassCount | None
    attribute: PassCount | None
    references: Mapping[str, Reference]


@runtime_checkable
class Metric(Protocol):
    """A metric: the maps of all methods in, one score per sample and method out; a frozen dataclass.

    A metric may also define:

    - ``passes(cost_inputs)``: the :class:`PassCount` for all samples together, or ``None`` if it is unknown beforehand.
    - ``fitted(inputs)``: the metric without the scores that do not apply to these inputs; raises ``ValueError`` if none
      applies.
    - ``scored(methods, maps, references)``: the names of the methods that it will score, given the names of all
      methods, of those with a map in input space, and the references of the complete ones. Without it: the methods with
      such a map.
    - ``needs``: in words, what a method must have to be scored.
    - ``needs_history``: whether ``metric_inputs.history`` must hold the maps of earlier explanations.
    """

    @property
    def higher_is_better(self) -> bool | None:
        """Whether a higher score is the better one; ``None`` if neither end is."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """One suffix of the metric's name for each score it returns; ``("",)`` for a metric with a single score."""
        ...

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Suffix to method name to the scores of the samples, ``(N,)``, with their standard errors."""
        ...


class Sink(Protocol):
    """Writes explanations to one logger; called on global rank zero only."""

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Prepares the charts; called once, before the first explanation.

        Args:
            charts: ``charts[monitor name][metric]`` lists the tags that belong on one chart.
        """
        ...

    def write(self, publication: Publication) -> None:
        """Writes one explanation."""
        ...


def samples_needed(method: Method) -> int:
    """How many samples the method must see together; 1 for a method that explains each sample alone."""
    return int(getattr(innermost(method), "samples_needed", 1))


def innermost(method: Method) -> Any:
    """The method inside all wrappers, such as ``Saliency`` inside ``NoiseTunnel(Saliency())``."""
    inner = getattr(method, "attribution_method", None)
    return method if inner is None else innermost(inner)


def with_layer(method: Method, name: str, layer: str | None) -> Method:
    """A copy of the method that explains ``layer``; the method itself if it already names a layer or needs none.

    Args:
        method: The method, possibly wrapped.
        name: The user's name for the method, for errors.
        layer: Dotted name of the default layer; ``None`` if the model has no layer with a feature map.

    Raises:
        ValueError: If the method needs a layer, names none, and ``layer`` is ``None``.
    """
    inner = getattr(method, "attribution_method", None)
    if inner is not None:
        return replace(method, attribution_method=with_layer(inner, name, layer))  # type: ignore[type-var]
    if not hasattr(method, "layer") or method.layer is not None:
        return method
    if layer is None:
        raise ValueError(
            f"The method {name!r} ({type(method).__name__}) has no layer, and no module of this model returns a map "
            "(N, C, h, w); give layer=..., or leave this method out."
        )
    return replace(method, layer=layer)  # type: ignore[type-var]
