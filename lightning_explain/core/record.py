"""What preflight records of a model before the first batch: which modules and functions ran, and how they are connected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lightning_explain.core.contracts import Lookup
from lightning_explain.core.probe import Samples


class AttentionSize(NamedTuple):
    """Over what attention is computed.

    Args:
        batch: The first dimension: the samples; times windows, if attention is computed within them.
        queries: The tokens that attend.
        keys: The tokens that they attend to.
        heads_apart: Whether heads have a dimension of their own; otherwise they may be in the first one, too.
    """

    batch: float
    queries: int
    keys: int
    heads_apart: bool = True

    def within(self, samples: int) -> AttentionSize:
        """The same for each of so many samples."""
        return self._replace(batch=self.batch / samples)


@dataclass(frozen=True, eq=False)
class Op:
    """One function call on tensors that depend on the input.

    Args:
        name: The function's plain name, such as ``relu``.
        family: The kind of activation, such as ``"relu"`` or ``"elementwise"``; ``None`` for other functions.
        module: The innermost module that makes the call.
        where: The module's dotted name; ``None`` if the module is not registered in the model.
        activations: How many arguments depend on the input.
        idle: Whether it adds or multiplies by a constant that changes nothing, as in ``x + 0``.
        attends: Over what it computes attention; ``None`` for other functions. A softmax may be that of attention.
    """

    name: str
    family: str | None
    module: nn.Module
    where: str | None
    activations: int
    idle: bool = False
    attends: AttentionSize | None = None

    def __str__(self) -> str:
        place = f"{self.where!r} ({type(self.module).__name__})" if self.where else type(self.module).__name__
        return f"{self.name} in {place}"


@dataclass(eq=False)
class Passed:
    """What a module received or returned in its last run.

    Args:
        value: As the module received it (a tuple of arguments) or returned it.
        nodes: The graph nodes of its floating-point tensors, over all runs.
    """

    value: Any
    nodes: list[Any] = field(default_factory=list)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors in it, without those in deeper containers."""
        return tuple(part for part in self._parts if isinstance(part, Tensor))

    @property
    def floating(self) -> tuple[Tensor, ...]:
        """The floating-point tensors in it, which alone can have a gradient."""
        return tuple(tensor for tensor in self.tensors if tensor.is_floating_point())

    @property
    def plain(self) -> bool:
        """Whether it is a tensor or a plain tuple of tensors."""
        return all(isinstance(part, Tensor) for part in self._parts) and not hasattr(self.value, "_fields")

    @property
    def _parts(self) -> list[Any]:
        return list(self.value) if isinstance(self.value, (tuple, list)) else [self.value]


@dataclass(eq=False)
class Record:
    """What happened in one forward pass with gradients on a few samples. Modules and tensors are keyed by ``id``.

    Args:
        samples: The samples.
        points: The inputs that the model was given, each ``(N, ...)``; the graph begins there.
        outputs: The model's outputs, ``(N, ...)``, with their graph.
        chosen: The explained outputs, ``(N,)``, with their graph.
        indices: The indices of the explained outputs, ``(N,)``.
        ops: The calls, in order.
        calls: How often each module ran.
        spans: For each module, the range of ``ops`` from the start of its first run to the end of its last.
        callers: For each module, the module in whose forward it ran last.
        received: What each module received.
        returned: What each module returned, in the order in which they returned last.
        low_precision: Whether something was computed in 16 bits.
        lookups: For each embedding layer, what it looks up of an input, where that is known.
        consumers: For each tensor, the layers that receive it, and the modules that compute with it outside of layers.
        squeezed: Whether the outputs are those of one channel of a segmentation, without its dimension.
        gradients: Those of ``chosen`` at what modules returned, as far as they were asked for.
    """

    samples: Samples
    points: tuple[Tensor, ...] = ()
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    chosen: Tensor = field(default_factory=lambda: torch.empty(0))
    indices: Tensor = field(default_factory=lambda: torch.empty(0))
    ops: list[Op] = field(default_factory=list)
    calls: Counter[int] = field(default_factory=Counter)
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    callers: dict[int, int] = field(default_factory=dict)
    received: dict[int, Passed] = field(default_factory=dict)
    returned: dict[int, Passed] = field(default_factory=dict)
    low_precision: bool = False
    lookups: dict[int, Lookup] = field(default_factory=dict)
    consumers: dict[int, list[nn.Module]] = field(default_factory=dict)
    squeezed: bool = False
    # Of a copy for another explained output there are none yet.
    gradients: dict[int, Tensor | None] = field(default_factory=dict, init=False)

    @property
    def dense(self) -> bool:
        """Whether the outputs have places of their own, as those of a segmentation."""
        return self.outputs.ndim > 3 or self.squeezed

    def passed(self, module: nn.Module, of_input: bool) -> Passed | None:
        """What the module received or returned; ``None`` if it did not run."""
        return (self.received if of_input else self.returned).get(id(module))

    def leads_on(self, module: nn.Module) -> bool:
        """Whether gradients flow from the explained outputs back to the tensors that the module returned."""
        return meet([self.chosen.grad_fn], self.returned[id(module)].nodes)

    def unread(self, module: nn.Module | None = None) -> list[int]:
        """The indices of inputs that no gradient reaches from the outputs, or from what a module returned."""
        starts = [self.outputs.grad_fn] if module is None else self.returned[id(module)].nodes
        return [i for i, x in enumerate(self.points) if x.requires_grad and not meet(starts, [node_of(x)])]


def node_of(tensor: Tensor) -> Any:
    """The graph node at which a tensor's gradient is taken."""
    return get_gradient_edge(tensor).node


def nodes(last: Any, before: Iterable[Any] = ()) -> Iterator[Any]:
    """Every node of the autograd graph that leads to ``last`` (a ``grad_fn``), each once; not the nodes ``before`` and beyond."""
    seen, left = set(before), [last]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [earlier for earlier, _ in node.next_functions]


def meet(starts: Iterable[Any], ends: Iterable[Any]) -> bool:
    """Whether the autograd graph leads from some nodes back to others."""
    wanted = set(ends)
    return any(node in wanted for start in starts for node in nodes(start))
