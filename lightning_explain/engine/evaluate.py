"""One pass: evaluates several points in one forward pass, and one backward pass for each backward rule that is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Evaluation, LayerSite, Point, Read, joined_samples
from lightning_explain.core.report import SumCheck
from lightning_explain.engine.rules import in_force
from lightning_explain.model.hooks import at_layer

T = TypeVar("T")
Readings: TypeAlias = "dict[Read, tuple[Tensor, ...]]"


class Place(NamedTuple):
    """A place in the graph where a gradient is taken.

    Args:
        edge: The place; ``None`` for tensors without a gradient, such as indices.
        like: A tensor of the gradient's shape.
    """

    edge: GradientEdge | None
    like: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Place:
        """The place of a tensor."""
        return cls(get_gradient_edge(tensor) if tensor.requires_grad else None, tensor.detach())


Places: TypeAlias = "dict[LayerSite | None, tuple[Place, ...]]"
Checks: TypeAlias = "dict[LayerSite | None, SumCheck]"


class Caught(NamedTuple):
    """What was recorded at each layer site during a forward pass.

    Args:
        values: Copies of the tensors, ``(N, ...)`` each.
        places: The tensors or graph edges at which gradients are taken.
    """

    values: dict[LayerSite | None, tuple[Tensor, ...]]
    places: Places


def forward_backward(explained: ExplainedFunction, points: Sequence[Point], reads: frozenset[Read]) -> list[Evaluation]:
    """Evaluates points together and returns one evaluation, with everything that is read, for each.

    Args:
        explained: The explained function.
        points: P points with the same number of samples each.
        reads: What is recorded at every point.

    Returns:
        P evaluations, in the order of the points.
    """
    samples = joined_samples([point.samples for point in points])
    rules = sorted({rule for rule, _ in reads if rule})
    at_input = any(rule and site is None for rule, site in reads)
    with torch.set_grad_enabled(bool(rules)), watching(explained.layer, reads) as caught:
        inputs = tuple(x.detach().requires_grad_(at_input) for x in explained.in_memory_layout(samples.inputs))
        values = explained.forward(*inputs, *samples.extra)
        readings: Readings = {(None, s): found_at(s, caught.values) for r, s in reads if r is None}
        places = {**caught.places, None: tuple(map(Place.of, inputs))}
        # The hooks stay for the backward pass: activation checkpointing runs layers again, on the same tensors.
        for number, rule in enumerate(rules, 1):
            with in_force(rule, values):
                readings |= gradients(rule, reads, values, places, number < len(rules))
    found = {
        read: tuple(by_sample(part, len(values), explained.frames) if read[1] else part for part in parts)
        for read, parts in readings.items()
    }
    # Cloned, because the explained outputs may be a view of all outputs.
    return evaluations_of(points, values.detach().clone(), found, {})


def by_sample(part: Tensor, count: int, frames: int) -> Tensor:
    """What a layer has for each frame of so many samples, ``(count * frames, ...)``, as ``(count, frames, ...)``; others unchanged."""
    return part.unflatten(0, (count, frames)) if frames > 1 and part.ndim and len(part) == count * frames else part


def gradients(rule: str, reads: frozenset[Read], values: Tensor, places: Places, again: bool = False) -> Readings:
    """Returns the gradients of the values at the sites that a rule reads; zeros where the values do not depend on a tensor.

    Args:
        rule: The backward rule, which is in force.
        reads: What to read.
        values: The explained outputs, ``(N,)``.
        places: The places of each site.
        again: Whether another backward pass follows.
    """
    at = {site: found_at(site, places) for r, site in reads if r == rule}
    edges = [place.edge for part in at.values() for place in part if place.edge is not None]
    # An edge, not a tensor: for tensors torch leaves the mode of the DeepLIFT rule while it goes back.
    end, ones = get_gradient_edge(values), torch.ones_like(values)
    found = iter(torch.autograd.grad((end,), edges, (ones,), retain_graph=again, allow_unused=True))

    def gradient(place: Place) -> Tensor:
        value = next(found) if place.edge is not None else None
        return torch.zeros_like(place.like) if value is None else value

    return {(rule, site): tuple(map(gradient, part)) for site, part in at.items()}


def found_at(site: Any, found: Mapping[Any, tuple[T, ...]]) -> tuple[T, ...]:
    """What was recorded at a site.

    Raises:
        ValueError: If the layer did not run.
    """
    if site not in found:
        name = getattr(site, "layer", site)
        raise ValueError(f"The layer {name!r} does not run in this model for these inputs; name a layer that runs.")
    return found[site]


def evaluations_of(points: Sequence[Point], values: Tensor, readings: Readings, checks: Checks) -> list[Evaluation]:
    """Splits the results of a joint pass into one evaluation for each point.

    Args:
        points: P points of N samples each.
        values: The outputs, ``(P * N,)``.
        readings: What was recorded, each ``(P * N, ...)``.
        checks: The checks of DeepLIFT's sum, each ``(P * N,)``.

    Raises:
        ValueError: If the first dimension of a layer's tensor is not the samples.
    """
    n = len(points[0].samples)
    for (_, site), parts in readings.items():
        for part in parts:
            check_length(site, part, n * len(points))

    def at(place: int, tensor: Tensor) -> Tensor:
        own = tensor.detach()
        return own if len(points) == 1 else own[place * n : (place + 1) * n]

    return [
        Evaluation(
            point,
            at(place, values),
            {read: tuple(at(place, part) for part in parts) for read, parts in readings.items()},
            {site: SumCheck(*(at(place, part) for part in check)) for site, check in checks.items()},
        )
        for place, point in enumerate(points)
    ]


def check_length(site: LayerSite | None, part: Tensor, count: int) -> None:
    """Refuses what passes at a site if it does not have the samples first.

    Raises:
        ValueError: If its first dimension is not so many samples.
    """
    if part.ndim == 0 or len(part) != count:
        found = f"The layer {site and site.layer!r} returns {tuple(part.shape)} for {count} samples"
        raise ValueError(f"{found}; its first dimension must be the samples. Choose a layer where it is.")


@contextmanager
def watching(layer: Callable[[str | None], nn.Module], reads: Iterable[Read]) -> Iterator[Caught]:
    """Context that records what layers receive or return and, where a gradient is read, its place in the graph."""
    caught = Caught({}, {})
    differentiated, readings = ({site for rule, site in reads if site and bool(rule) == back} for back in (True, False))

    def see(site: LayerSite, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if site in differentiated:
            # A node of its own: one output of the layer may be a step to another (the state of an LSTM cell).
            # An alias keeps the strides; with those that a view gives a batch of one, torch 2.14 goes back wrongly on CPUs.
            tensors = tuple(torch.ops.aten.alias(t) for t in map(_begun, tensors))
            caught.places[site] = tuple(map(Place.of, tensors))
        if site in readings:
            # Cloned, because other code may write into these tensors: whatever computed the input of this layer, or
            # of a layer that returns its input unchanged.
            caught.values[site] = tuple(t.detach().clone() for t in tensors)
        return tensors

    with ExitStack() as stack:
        for site in {site for _, site in reads if site}:
            stack.enter_context(intercept(layer(site.layer), site, partial(see, site)))
        yield caught


def intercept(
    module: nn.Module, site: LayerSite, see: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
) -> RemovableHandle:
    """Hooks a layer site: passes its tensors to ``see``, and continues the forward pass with copies of its result.

    Args:
        module: The layer.
        site: Its name, and whether its input or its output is meant.
        see: Receives the tensors and returns equally many to continue with.
    """

    def passed(value: Any) -> Any:
        several = isinstance(value, (tuple, list))
        parts = list(value) if several else [value]
        tensors = tuple(part for part in parts if isinstance(part, Tensor))
        if not tensors:
            if site.of_input and not value:
                raise ValueError(f"The layer {site.layer!r} gets keyword arguments only; explain its output.")
            raise ValueError(
                f"The layer {site.layer!r} has no tensor, only {type(value).__name__}; choose another layer."
            )
        going_on = iter(see(tensors))
        # Cloned, because later layers may write into them.
        copies = [next(going_on).clone() if isinstance(part, Tensor) else part for part in parts]
        if not several:
            return copies[0]
        return type(value)(*copies) if hasattr(value, "_fields") else type(value)(copies)

    return at_layer(module, site.of_input, passed)


def _begun(tensor: Tensor) -> Tensor:
    """Starts the autograd graph at the layer if nothing before it requires a gradient."""
    begins = tensor.is_floating_point() and not tensor.requires_grad
    return tensor.detach().clone().requires_grad_() if begins else tensor
