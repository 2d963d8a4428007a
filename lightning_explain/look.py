"""One pass: the model at several points at once, forward, and back by every rule that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from lightning_explain.types import Subject
from lightning_explain.visits import DECONVOLUTION, GUIDED, PLAIN, Point, Spot, Visit, Want, joined_rows

T = TypeVar("T")
Rule: TypeAlias = "Callable[[Tensor], AbstractContextManager[None]]"
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
    for number, rule in enumerate(rules, 1):
        read |= _back(rule, wants, values, places, number < len(rules))
    return _split(points, values.detach(), read)


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


def _split(points: Sequence[Point], values: Tensor, read: dict[Want, tuple[Tensor, ...]]) -> list[Visit]:
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
    """Catches what layers say, or are told, and where the gradient is wanted the place in the graph.

    What follows a layer is given copies, for it may write into them.
    """
    caught = Caught({}, {})
    differentiated = {spot for rule, spot in wants if rule and spot}
    with ExitStack() as stack:
        for spot in {spot for _, spot in wants if spot}:
            catch = _Catch(caught, spot, spot in differentiated)
            stack.callback(catch.hook(subject.layer(spot.layer)).remove)
        yield caught


class _Catch:
    """A hook that keeps what passes."""

    def __init__(self, caught: Caught, spot: Spot, differentiated: bool) -> None:
        self._caught, self._spot, self._differentiated = caught, spot, differentiated

    def hook(self, module: nn.Module) -> RemovableHandle:
        """Catches what goes into the module, or what comes out."""
        if self._spot.of_input:
            return module.register_forward_pre_hook(lambda module, arguments: self._passed(arguments))
        return module.register_forward_hook(lambda module, arguments, output: self._passed(output))

    def _passed(self, value: Any) -> Any:
        several = isinstance(value, (tuple, list))
        parts = list(value) if several else [value]
        kept = [self._begun(part) if isinstance(part, Tensor) else part for part in parts]
        found = tuple(part for part in kept if isinstance(part, Tensor))
        if not found:
            raise ValueError(
                f"The layer {self._spot.layer!r} gives no tensor but {type(value).__name__}; choose another."
            )
        # Whoever made the input of a layer still has it, and may write into it.
        self._caught.values[self._spot] = tuple(
            p.detach().clone() if self._spot.of_input else p.detach() for p in found
        )
        if self._differentiated:
            self._caught.places[self._spot] = tuple(get_gradient_edge(p) if p.requires_grad else p for p in found)
        copies = [part.clone() if isinstance(part, Tensor) else part for part in kept]
        return tuple(copies) if several else copies[0]

    def _begun(self, part: Tensor) -> Tensor:
        # Where nothing before it is differentiated, the graph begins at the layer.
        if self._differentiated and part.is_floating_point() and not part.requires_grad:
            return part.detach().clone().requires_grad_()
        return part


def _plain(values: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _guided(values: Tensor) -> Iterator[None]:
    """Springenberg et al. 2014: what is negative is not passed on at a ReLU."""
    with _at_relus(values, lambda grad_inputs, grad_outputs: _positive(grad_inputs)):
        yield


@contextmanager
def _deconvolution(values: Tensor) -> Iterator[None]:
    """Zeiler & Fergus 2013: a ReLU passes on what is positive, whatever it saw."""
    with _at_relus(values, lambda grad_inputs, grad_outputs: _positive(grad_outputs)):
        yield


RULES: dict[str, Rule] = {PLAIN: _plain, GUIDED: _guided, DECONVOLUTION: _deconvolution}


def _positive(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None else functional.relu(g) for g in gradients)


@contextmanager
def _at_relus(values: Tensor, rule: Callable[..., Any]) -> Iterator[None]:
    """The rule at each ReLU between the values and what is differentiated, whether a module's or a function's."""
    with ExitStack() as stack:
        for node in _nodes(values.grad_fn):
            if _is_relu(node):
                stack.callback(node.register_hook(rule).remove)
        yield


def _nodes(last: Any) -> Iterator[Any]:
    """Every operation of a graph."""
    seen, left = set(), [last]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [earlier for earlier, _ in node.next_functions]


def _is_relu(node: Any) -> bool:
    name = node.name()
    if name.startswith("Relu"):
        return True
    if name.startswith("ClampMin"):
        return bool(node._saved_min == 0)
    if name.startswith("ClampBackward1"):
        return node._saved_max is None and bool(node._saved_min == 0)
    return name.startswith("ThresholdBackward") and bool(node._saved_threshold == 0)
