"""Records one forward pass: which functions are called on tensors that depend on the input, and by which module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_explain.model.activations import ARRANGING, depending, family, kind_of, name_of, nodes, words
from lightning_explain.model.inventory import is_layer

# They inspect a tensor without computing with it.
_READS_SHAPE = words(
    "get set size dim ndimension numel element_size stride storage_offset data_ptr is_floating_point is_complex is_contiguous len "
    "repr format hash bool register_hook requires_grad retain_grad detach item tolist shape_as is_same_size"
)


@dataclass(frozen=True, eq=False)
class Op:
    """One function call on tensors that depend on the input.

    Args:
        name: The function's plain name, such as ``relu``.
        family: The kind of activation, such as ``"relu"`` or ``"elementwise"``; ``None`` for other functions.
        module: The innermost module that makes the call.
        where: The module's dotted name; ``None`` if the module is not registered in the model.
        activations: How many arguments depend on the input.
    """

    name: str
    family: str | None
    module: nn.Module
    where: str | None
    activations: int

    def __str__(self) -> str:
        place = f"{self.where!r} ({type(self.module).__name__})" if self.where else type(self.module).__name__
        return f"{self.name} in {place}"


@dataclass(eq=False)
class Record:
    """What happened in one forward pass. Modules and tensors are keyed by ``id``.

    Args:
        ops: The calls, in order.
        calls: How often each module ran.
        spans: For each module, the range of ``ops`` from the start of its first run to the end of its last.
        ends: For each module, the graph nodes of the tensors it returned; the tensors themselves where they are leaves.
        nested: Modules that returned anything but a tensor or a plain tuple of tensors.
        low_precision: Whether something was computed in 16 bits.
        outputs: The model's outputs, ``(N, ...)``.
        points: The model's inputs, each ``(N, ...)``.
        consumers: For each tensor, the layers that receive it, and the modules that compute with it outside of layers.
    """

    ops: list[Op] = field(default_factory=list)
    calls: Counter[int] = field(default_factory=Counter)
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    ends: dict[int, list[Any]] = field(default_factory=dict)
    nested: set[int] = field(default_factory=set)
    low_precision: bool = False
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    points: tuple[Tensor, ...] = ()
    consumers: dict[int, list[nn.Module]] = field(default_factory=dict)

    def leads_on(self, module: nn.Module) -> bool:
        """Returns whether gradients flow from the outputs back to the tensors that the module returned."""
        return _meet([self.outputs.grad_fn], self.ends[id(module)])

    def unread(self, module: nn.Module | None = None) -> list[int]:
        """Returns the indices of inputs that no gradient reaches from the outputs, or from what a module returned."""
        starts = [self.outputs.grad_fn] if module is None else self.ends.get(id(module), [])
        return [i for i, x in enumerate(self.points) if x.requires_grad and not _meet(starts, [x])]


def _meet(starts: Iterable[Any], ends: Iterable[Any]) -> bool:
    """Returns whether the autograd graph leads from some nodes back to others, or to leaf tensors."""
    wanted = {id(end) for end in ends}
    return any(
        id(node) in wanted or id(getattr(node, "variable", None)) in wanted for start in starts for node in nodes(start)
    )


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, begin: bool) -> None:
        super().__init__()
        self._begin = begin
        self.record = Record()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._inside = [model]
        self._kept: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, activations = name_of(func), list(depending([args, kwargs]))
        kind = family(func, args, kwargs) if activations else None
        out = func(*args, **kwargs)
        if activations and name not in _READS_SHAPE and torch.is_grad_enabled():
            module = self._inside[-1]
            self.record.ops.append(Op(name, kind, module, self._names.get(id(module)), len(activations)))
            if not is_layer(module):
                self._note_consumers(activations, module)
        self.record.low_precision |= isinstance(out, Tensor) and out.dtype in (torch.float16, torch.bfloat16)
        return out

    def _note_consumers(self, tensors: Iterable[Tensor], module: nn.Module) -> None:
        for tensor in tensors:
            self.record.consumers.setdefault(id(tensor), []).append(module)
            # Kept alive, so that its id is not used again.
            self._kept.append(tensor)

    def enter(self, module: nn.Module, arguments: Any) -> None:
        if is_layer(module) and not any(is_layer(outer) for outer in self._inside[1:]):
            self._note_consumers(depending(arguments), module)
        self._inside.append(module)
        self.record.calls[id(module)] += 1
        first, last = self.record.spans.get(id(module), (len(self.record.ops), 0))
        self.record.spans[id(module)] = (first, last)

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._inside[-1] is module:
            self._inside.pop()
        self.record.spans[id(module)] = (self.record.spans[id(module)][0], len(self.record.ops))
        parts = output if isinstance(output, (tuple, list)) else [output]
        if not all(isinstance(part, Tensor) for part in parts) or hasattr(output, "_fields"):
            self.record.nested.add(id(module))
        for tensor in parts:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                # A module that returns its input unchanged does not consume it.
                if module in self.record.consumers.get(id(tensor), []):
                    self.record.consumers[id(tensor)].remove(module)
                # Integer inputs cannot carry a gradient; the graph starts at the first floating-point tensor.
                if self._begin and not tensor.requires_grad:
                    tensor.requires_grad_()
                ends = self.record.ends.setdefault(id(module), [])
                ends += [tensor if tensor.grad_fn is None else tensor.grad_fn] if tensor.requires_grad else []


@contextmanager
def _watching(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    with ExitStack() as stack:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(recorder.enter).remove)
                stack.callback(module.register_forward_hook(recorder.leave).remove)
        stack.enter_context(recorder)
        yield


def record(model: nn.Module, forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], extra: Any) -> Record:
    """Runs one forward pass with gradients and returns its record.

    Args:
        model: The module, inside the isolation.
        forward: ``forward(*inputs, *extra) -> (N, ...)``, which calls the model.
        inputs: The explained inputs, each ``(N, ...)``.
        extra: Further arguments of ``forward``.
    """
    points = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    recorder = _Recorder(model, begin=not any(x.is_floating_point() for x in inputs))
    with _watching(model, recorder):
        outputs = forward(*points, *extra)
    recorder.record.outputs, recorder.record.points = outputs, tuple(points)
    return recorder.record


_PROBABILITIES = {
    "Softmax": ("softmax",),
    "LogSoftmax": ("log_softmax",),
    "Sigmoid": ("sigmoid", "expit"),
}


def probabilities(last: Any) -> tuple[str, ...] | None:
    """Returns the names of the function that made the outputs probabilities, or a multiple; ``None`` if none did."""
    exponent = False
    while last is not None:
        kind = kind_of(last)
        if kind in _PROBABILITIES:
            return _PROBABILITIES[kind] if exponent == (kind == "LogSoftmax") else None
        before = [node for node, _ in last.next_functions if node is not None]
        scaled = kind in ("Mul", "Div") and len(before) == 1
        exponent = exponent or kind == "Exp"
        if len(before) != 1 or not (kind in ARRANGING or kind == "Exp" or scaled):
            return None
        last = before[0]
    return None


def reentrant(last: Any) -> bool:
    """Returns whether the graph contains activation checkpointing with ``use_reentrant=True``."""
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes(last))
