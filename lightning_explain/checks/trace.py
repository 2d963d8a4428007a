"""Records one forward pass: which functions are called on tensors that depend on the input, and by which module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_explain.checks.lookups import Followed
from lightning_explain.core.record import Op, Passed, Record, node_of, nodes
from lightning_explain.model.activations import ARRANGING, depending, family, kind_of, name_of, words
from lightning_explain.model.attention import attention_call
from lightning_explain.model.hooks import at_modules
from lightning_explain.model.inventory import is_layer

# They inspect a tensor without computing with it.
_READS_SHAPE = words(
    "get set size dim ndimension numel element_size stride storage_offset data_ptr is_floating_point is_complex is_contiguous len "
    "repr format hash bool register_hook requires_grad retain_grad detach item tolist shape_as is_same_size"
)


T = TypeVar("T")
_ARITHMETIC = words("add radd sub mul rmul div truediv true_divide")


def _equal(out: Any, x: Tensor) -> bool:
    # In place, they are one tensor, whatever was done to it.
    return out is not x and out.shape == x.shape and torch.equal(out, x)


class _Recorder(TorchFunctionMode):
    def __init__(self, model: nn.Module, record: Record, begin: bool) -> None:
        super().__init__()
        self.record, self._begin = record, begin
        self._names = {id(module): name for name, module in model.named_modules()}
        self._inside = [model]
        self._kept: list[Tensor] = []
        self._followed = Followed(record.points)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        activations = depending((args, kwargs))
        name = name_of(func) if activations else ""
        recorded = activations and name not in _READS_SHAPE and torch.is_grad_enabled()
        kind = family(func, args, kwargs) if recorded else None
        out = func(*args, **kwargs)
        self._followed.note(func, args, kwargs, out)
        if recorded:
            module = self._inside[-1]
            idle = name in _ARITHMETIC and len(activations) == 1 and _equal(out, activations[0])
            call = attention_call(func, args, kwargs)
            where, attends = self._names.get(id(module)), call.size if call else None
            self.record.ops.append(Op(name, kind, module, where, len(activations), idle, attends))
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
        self.record.callers[id(module)] = id(self._inside[-1])
        self._inside.append(module)
        self.record.calls[id(module)] += 1
        self.record.spans.setdefault(id(module), (len(self.record.ops), 0))
        self._note_passed(self.record.received, module, arguments)
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and arguments:
            lookup = self._followed.lookup(arguments[0])
            if lookup is not None:
                self.record.lookups[id(module)] = lookup

    def leave(self, module: nn.Module, arguments: Any, output: Any) -> Tensor | None:
        if self._inside[-1] is module:
            self._inside.pop()
        self.record.spans[id(module)] = (self.record.spans[id(module)][0], len(self.record.ops))
        begun = self._begun(module, output)
        for tensor in self._note_passed(self.record.returned, module, output if begun is None else begun):
            # A module that returns its input unchanged does not consume it.
            if module in self.record.consumers.get(id(tensor), []):
                self.record.consumers[id(tensor)].remove(module)
        return begun

    def _begun(self, module: nn.Module, output: Any) -> Tensor | None:
        """An output with which the graph begins, as a copy, because the model may write into it; ``None`` for others."""
        begins = self._begin or id(module) in self.record.lookups
        if not (begins and isinstance(output, Tensor) and output.is_floating_point()) or output.requires_grad:
            return None
        return output.requires_grad_().clone()

    def _note_passed(self, passed: dict[int, Passed], module: nn.Module, value: Any) -> tuple[Tensor, ...]:
        """Notes what a module received or returned, as the last; returns its floating-point tensors."""
        earlier = passed.pop(id(module), Passed(None))
        passed[id(module)] = new = Passed(value, earlier.nodes)
        for tensor in new.floating:
            # Integer inputs cannot carry a gradient; the graph starts at the first floating-point tensor.
            begins = self._begin or id(module) in self.record.lookups
            if begins and passed is self.record.returned and not tensor.requires_grad:
                tensor.requires_grad_()
        new.nodes += [node_of(tensor) for tensor in new.floating if tensor.requires_grad]
        return new.floating


def _quietly(note: Callable[..., T]) -> Callable[..., T]:
    """The same, but torch does not hand what it reads of tensors to the recorder: that is no call of the model's."""

    def quiet(*arguments: Any) -> T:
        with torch._C.DisableTorchFunction():
            return note(*arguments)

    return quiet


def record(model: nn.Module, forward: Callable[..., Tensor], found: Record) -> None:
    """Runs one forward pass with gradients, and fills the record of its samples.

    Args:
        model: The module, inside the isolation.
        forward: ``forward(*inputs, *extra) -> (N, ...)``, which calls the model.
        found: The record.
    """
    inputs = found.samples.inputs
    found.points = tuple(x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs)
    recorder = _Recorder(model, found, begin=not any(x.is_floating_point() for x in inputs))
    with torch.enable_grad(), at_modules(model, _quietly(recorder.enter), _quietly(recorder.leave)), recorder:
        found.outputs = forward(*found.points, *found.samples.extra)


_WHOLE = words("long int short char byte to type type_as")


class _Casts(TorchFunctionMode):
    """Notes whether floating-point numbers are made whole."""

    found: bool = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if args and name_of(func) in _WHOLE and isinstance(args[0], Tensor) and args[0].is_floating_point():
            self.found |= not (out.is_floating_point() or out.is_complex() or out.dtype == torch.bool)
        return out


def reads_whole(run: Callable[[], object]) -> bool:
    """Whether a model that is given fractions makes them whole, or cannot run on them."""
    casts = _Casts()
    with casts:
        try:
            run()
        except (RuntimeError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return True
    return casts.found


_PROBABILITIES = {"Softmax": ("softmax",), "LogSoftmax": ("log_softmax",), "Sigmoid": ("sigmoid", "expit")}


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
