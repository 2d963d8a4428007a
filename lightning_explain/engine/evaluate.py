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

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import Point, Spot, Visit, Want, joined_rows
from lightning_explain.engine.rules import RULES

T = TypeVar("T")


See: TypeAlias = "Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]"


Place: TypeAlias = "Tensor | GradientEdge"


class Caught(NamedTuple):
    """What passed at each spot.

    Args:
        values: As it was when it passed.
        places: What the gradient is taken at.
    """

    values: dict[Spot, tuple[Tensor, ...]]
    places: dict[Spot, tuple[Place, ...]]


def look(subject: Subject, points: Sequence[Point], wants: frozenset[Want]) -> list[Visit]:
    """What the model says at each point.

    Args:
        subject: The explained function.
        points: Of equally many rows each.
        wants: What is read.

    Returns:
        A visit for each point.
    """
    rows = joined_rows([point.rows for point in points])
    rules = sorted({rule for rule, _ in wants if rule})
    with torch.set_grad_enabled(bool(rules)), ExitStack() as stack:
        at_input = any(rule and spot is None for rule, spot in wants)
        inputs = tuple(x.detach().requires_grad_(at_input) for x in subject.laid_out(rows.inputs))
        caught = stack.enter_context(watching(subject, wants))
        values = subject.forward(*inputs, *rows.extra)
        read: dict[Want, tuple[Tensor, ...]] = {(None, s): _at(s, caught.values) for r, s in wants if r is None}
        places: dict[Any, tuple[Place, ...]] = {None: inputs, **caught.places}
        # Layers stay watched, for checkpointing runs them again, and has to find what it found before.
        for number, rule in enumerate(rules, 1):
            read |= _back(rule, wants, values, places, number < len(rules))
    # A copy, for the explained outputs may be a view of all outputs.
    return visits_of(points, values.detach().clone(), read)


def _back(
    rule: str, wants: frozenset[Want], values: Tensor, places: Mapping[Spot | None, tuple[Place, ...]], again: bool
) -> dict[Want, tuple[Tensor, ...]]:
    """The gradients by one rule at all places where they are wanted."""
    spots = [spot for r, spot in wants if r == rule]
    leaves = [_at(spot, places) for spot in spots]
    with RULES[rule](values):
        at: Any = [x for part in leaves for x in part]
        found = iter(torch.autograd.grad(values.sum(), at, retain_graph=again))
    return {(rule, spot): tuple(next(found) for _ in part) for spot, part in zip(spots, leaves, strict=True)}


def _at(spot: Any, found: Mapping[Any, tuple[T, ...]]) -> tuple[T, ...]:
    if spot not in found:
        raise ValueError(f"The layer {getattr(spot, 'layer', spot)!r} does not run in this model for these inputs.")
    return found[spot]


def visits_of(points: Sequence[Point], values: Tensor, read: Mapping[Want, tuple[Tensor, ...]]) -> list[Visit]:
    """A visit for each point, from what the model said of all of them at once.

    Args:
        points: P points of N rows each.
        values: The outputs, ``(P * N,)``.
        read: What was read, each ``(P * N, ...)``.
    """
    n = len(points[0].rows)
    for (_, spot), parts in read.items():
        for part in parts:
            if part.ndim == 0 or len(part) != n * len(points):
                raise ValueError(
                    f"The layer {spot.layer if spot else spot!r} gives {tuple(part.shape)} for {n * len(points)} rows; its first "
                    "dimension must be the rows. Choose a layer where it is."
                )
    return [
        Visit(
            point,
            values[i : i + n],
            {want: tuple(p.detach()[i : i + n] for p in parts) for want, parts in read.items()},
        )
        for i, point in zip(range(0, n * len(points), n), points, strict=True)
    ]


@contextmanager
def watching(subject: Subject, wants: Iterable[Want]) -> Iterator[Caught]:
    """Catches what layers say, or are told, and where the gradient is wanted the place in the graph."""
    caught = Caught({}, {})
    differentiated, read = ({spot for rule, spot in wants if spot and bool(rule) == back} for back in (True, False))

    def see(spot: Spot, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if spot in differentiated:
            tensors = tuple(_begun(t) for t in tensors)
            caught.places[spot] = tuple(get_gradient_edge(t) if t.requires_grad else t for t in tensors)
        if spot in read:
            # Whoever else has them may write into them: who made the input of a layer, or of one that hands it on as it is.
            caught.values[spot] = tuple(t.detach().clone() for t in tensors)
        return tensors

    with ExitStack() as stack:
        for spot in {spot for _, spot in wants if spot}:
            stack.callback(intercept(subject, spot, partial(see, spot)).remove)
        yield caught


def intercept(subject: Subject, spot: Spot, see: See) -> RemovableHandle:
    """Shows the tensors that go into a layer, or come out of it, and hands on copies.

    Args:
        subject: The explained function.
        spot: The layer, and which of the two.
        see: Is given the tensors and returns those to go on with, as many.
    """

    def passed(value: Any) -> Any:
        several = isinstance(value, (tuple, list))
        parts = list(value) if several else [value]
        tensors = tuple(part for part in parts if isinstance(part, Tensor))
        if not tensors:
            raise ValueError(_without_tensor(spot, value))
        going_on = iter(see(tensors))
        # What follows may write into them.
        copies = [next(going_on).clone() if isinstance(part, Tensor) else part for part in parts]
        return _like(value, copies) if several else copies[0]

    module = subject.layer(spot.layer)
    if spot.of_input:
        return module.register_forward_pre_hook(lambda module, arguments: passed(arguments))
    return module.register_forward_hook(lambda module, arguments, output: passed(output))


def _like(value: Any, parts: list[Any]) -> Any:
    """The parts in a container of that kind; fields of named tuples keep their names."""
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _without_tensor(spot: Spot, value: Any) -> str:
    if spot.of_input and not value:
        return f"The layer {spot.layer!r} is called with arguments by name alone; explain its output, or the layer before it."
    return f"The layer {spot.layer!r} gives no tensor but {type(value).__name__}; choose another."


def _begun(tensor: Tensor) -> Tensor:
    """Where nothing before it is differentiated, the graph begins at the layer."""
    begins = tensor.is_floating_point() and not tensor.requires_grad
    return tensor.detach().clone().requires_grad_() if begins else tensor
