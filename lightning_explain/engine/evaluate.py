"""One pass: the model at several points at once, forward, and back by every rule that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Evaluation, LayerSite, Point, Read, joined_samples
from lightning_explain.engine.rules import RULES

T = TypeVar("T")


See: TypeAlias = "Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]"


Place: TypeAlias = "Tensor | GradientEdge"


class Caught(NamedTuple):
    """What passed at each layer site.

    Args:
        values: As it was when it passed.
        places: What the gradient is taken at.
    """

    values: dict[LayerSite, tuple[Tensor, ...]]
    places: dict[LayerSite, tuple[Place, ...]]


def forward_backward(explained: ExplainedFunction, points: Sequence[Point], reads: frozenset[Read]) -> list[Evaluation]:
    """What the model says at each point.

    Args:
        explained: The explained function.
        points: Of equally many samples each.
        reads: What is read.

    Returns:
        An evaluation for each point.
    """
    samples = joined_samples([point.samples for point in points])
    rules = sorted({rule for rule, _ in reads if rule})
    with torch.set_grad_enabled(bool(rules)), ExitStack() as stack:
        at_input = any(rule and site is None for rule, site in reads)
        inputs = tuple(x.detach().requires_grad_(at_input) for x in explained.in_memory_layout(samples.inputs))
        caught = stack.enter_context(watching(explained, reads))
        values = explained.forward(*inputs, *samples.extra)
        readings: dict[Read, tuple[Tensor, ...]] = {(None, s): _at(s, caught.values) for r, s in reads if r is None}
        places: dict[Any, tuple[Place, ...]] = {None: inputs, **caught.places}
        # Layers stay watched, for checkpointing runs them again, and has to find what it found before.
        for number, rule in enumerate(rules, 1):
            readings |= _back(rule, reads, values, places, number < len(rules))
    # A copy, for the explained outputs may be a view of all outputs.
    return evaluations_of(points, values.detach().clone(), readings)


def _back(
    rule: str, reads: frozenset[Read], values: Tensor, places: Mapping[LayerSite | None, tuple[Place, ...]], again: bool
) -> dict[Read, tuple[Tensor, ...]]:
    """The gradients by one rule at all places where they are wanted."""
    sites = [site for r, site in reads if r == rule]
    leaves = [_at(site, places) for site in sites]
    with RULES[rule](values):
        at: Any = [x for part in leaves for x in part]
        found = iter(torch.autograd.grad(values.sum(), at, retain_graph=again))
    return {(rule, site): tuple(next(found) for _ in part) for site, part in zip(sites, leaves, strict=True)}


def _at(site: Any, found: Mapping[Any, tuple[T, ...]]) -> tuple[T, ...]:
    if site not in found:
        raise ValueError(f"The layer {getattr(site, 'layer', site)!r} does not run in this model for these inputs.")
    return found[site]


def evaluations_of(
    points: Sequence[Point], values: Tensor, readings: Mapping[Read, tuple[Tensor, ...]]
) -> list[Evaluation]:
    """An evaluation for each point, from what the model said of all of them at once.

    Args:
        points: P points of N samples each.
        values: The outputs, ``(P * N,)``.
        readings: What was read, each ``(P * N, ...)``.
    """
    n = len(points[0].samples)
    for (_, site), parts in readings.items():
        for part in parts:
            if part.ndim == 0 or len(part) != n * len(points):
                raise ValueError(
                    f"The layer {site.layer if site else site!r} gives {tuple(part.shape)} for {n * len(points)} samples; its first "
                    "dimension must be the samples. Choose a layer where it is."
                )
    return [
        Evaluation(
            point,
            values[i : i + n],
            {read: tuple(p.detach()[i : i + n] for p in parts) for read, parts in readings.items()},
        )
        for i, point in zip(range(0, n * len(points), n), points, strict=True)
    ]


@contextmanager
def watching(explained: ExplainedFunction, reads: Iterable[Read]) -> Iterator[Caught]:
    """Catches what layers say, or are told, and where the gradient is wanted the place in the graph."""
    caught = Caught({}, {})
    differentiated, readings = ({site for rule, site in reads if site and bool(rule) == back} for back in (True, False))

    def see(site: LayerSite, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if site in differentiated:
            tensors = tuple(_begun(t) for t in tensors)
            caught.places[site] = tuple(get_gradient_edge(t) if t.requires_grad else t for t in tensors)
        if site in readings:
            # Whoever else has them may write into them: who made the input of a layer, or of one that hands it on as it is.
            caught.values[site] = tuple(t.detach().clone() for t in tensors)
        return tensors

    with ExitStack() as stack:
        for site in {site for _, site in reads if site}:
            stack.callback(intercept(explained, site, partial(see, site)).remove)
        yield caught


def intercept(explained: ExplainedFunction, site: LayerSite, see: See) -> RemovableHandle:
    """Shows the tensors that go into a layer, or come out of it, and hands on copies.

    Args:
        explained: The explained function.
        site: The layer, and which of the two.
        see: Is given the tensors and returns those to go on with, as many.
    """

    def passed(value: Any) -> Any:
        several = isinstance(value, (tuple, list))
        parts = list(value) if several else [value]
        tensors = tuple(part for part in parts if isinstance(part, Tensor))
        if not tensors:
            raise ValueError(_without_tensor(site, value))
        going_on = iter(see(tensors))
        # What follows may write into them.
        copies = [next(going_on).clone() if isinstance(part, Tensor) else part for part in parts]
        return _like(value, copies) if several else copies[0]

    module = explained.layer(site.layer)
    if site.of_input:
        return module.register_forward_pre_hook(lambda module, arguments: passed(arguments))
    return module.register_forward_hook(lambda module, arguments, output: passed(output))


def _like(value: Any, parts: list[Any]) -> Any:
    """The parts in a container of that kind; fields of named tuples keep their names."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _without_tensor(site: LayerSite, value: Any) -> str:
    if site.of_input and not value:
        return f"The layer {site.layer!r} is called with arguments by name alone; explain its output, or the layer before it."
    return f"The layer {site.layer!r} gives no tensor but {type(value).__name__}; choose another."


def _begun(tensor: Tensor) -> Tensor:
    """Where nothing before it is differentiated, the graph begins at the layer."""
    begins = tensor.is_floating_point() and not tensor.requires_grad
    return tensor.detach().clone().requires_grad_() if begins else tensor
