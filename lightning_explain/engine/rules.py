"""Backward rules: plain, guided, deconvolution and DeepLIFT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lightning_explain.core.points import DECONVOLUTION, GUIDED, PLAIN
from lightning_explain.core.record import nodes
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.model.activations import ARRANGING, depending, family, kind_of, name_of, words

T = TypeVar("T")
Gradients: TypeAlias = "tuple[Tensor | None, ...]"


def _positive(gradients: Gradients) -> Gradients:
    return tuple(g if g is None else functional.relu(g) for g in gradients)


# What a ReLU passes back, from the gradients at its inputs and at its outputs; None: its derivative.
_AT_RELU: dict[str, Callable[[Gradients, Gradients], Gradients] | None] = {
    PLAIN: None,
    # Springenberg et al. 2014: what is negative is not passed on.
    GUIDED: lambda at_inputs, at_outputs: _positive(at_inputs),
    # Zeiler & Fergus 2013: what is positive is passed on, whatever the ReLU saw.
    DECONVOLUTION: lambda at_inputs, at_outputs: _positive(at_outputs),
}


@contextmanager
def in_force(rule: str, values: Tensor) -> Iterator[None]:
    """Context in which a rule holds at each ReLU between the values and what is differentiated, a module's or a function's."""
    at_relu = _AT_RELU[rule]
    with ExitStack() as stack:
        for node in () if at_relu is None else nodes(values.grad_fn):
            if _is_relu(node):
                stack.callback(node.register_hook(at_relu).remove)
        yield


def _is_relu(node: Any) -> bool:
    # Torch's own have a number at the end; a function of the user's may have a name that begins like theirs.
    name = node.name()
    if name == "ReluBackward0":
        return True
    if name.startswith("ClampMinBackward"):
        return bool(torch.as_tensor(node._saved_min == 0).all())
    if name == "ClampBackward1":
        return node._saved_max is None and bool(node._saved_min == 0)
    return name == "ThresholdBackward0" and bool(node._saved_threshold == 0)


# -- DeepLIFT ----------------------------------------------------------------------------------------------------------

INSTEAD = "use IntegratedGradients or GradientShap, which need no backward rule"
_HALF = (torch.float16, torch.bfloat16)


class NoRuleError(ValueError):
    """DeepLIFT does not hold for a model.

    Args:
        reason: What stands in the way; a sentence without its subject, DeepLIFT.
        fix: What the user can do; an instruction.
    """

    def __init__(self, reason: str, fix: str = INSTEAD) -> None:
        super().__init__(f"DeepLIFT {reason}; {fix}.")
        self.reason, self.fix = reason, fix


class Rescaling(TorchFunctionMode):
    """Context in which every activation and maximum gets DeepLIFT's rescale rule (Shrikumar et al. 2017; ``captum.attr.DeepLift``).

    Samples and their baselines go through the model as one batch. In the backward pass an elementwise function multiplies
    the gradient by (difference of outputs) / (difference of inputs), between each sample and its own baseline; a maximum
    sends the change of each output to the positions it came from, where overlapping windows add up. Functions of several
    tensors that depend on the input (products, attention, divisions) keep their derivative. The context must enclose the
    backward pass as well, in which activation checkpointing runs the forward again. Autocast is off inside.

    Args:
        count: Size of the batch, 2M: M samples, then their M baselines.
        eps: Differences of inputs below this keep the derivative; in units of the function's input.
        device: The device of the batch.
        from_integers: Whether inputs are integers. Where floating-point tensors are first made of these, the graph begins;
            they are collected in ``begins``.
    """

    def __init__(self, count: int, eps: float, device: torch.device, from_integers: bool = False) -> None:
        super().__init__()
        self.eps, self.goes_back, self.begins = eps, False, list[Tensor]()
        self._count, self._device, self._from_integers = count, device.type, from_integers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with _in_single(self._device):
            kind = family(func, args, kwargs) if torch.is_grad_enabled() else None
            if kind is None:
                return self._begun(func(*args, **kwargs), args)
            (x,) = depending([args, kwargs])
            call = _Call(func, args, kwargs, x)
            dim = self.batch_dim(x)
            if dim is None or dim in call.reduced:
                return call(x)
            if torch._C._functorch.is_functorch_wrapped_tensor(x):
                raise NoRuleError("does not hold inside transforms of torch.func, such as grad")
            return call.packed((_Softmax if kind == "softmax" else _Rescaled).apply(x, call, _RESCALE[kind], self))

    def _begun(self, out: Any, args: tuple[Any, ...]) -> Any:
        """The result of a call; the graph begins there if it is the first floating-point tensor made of integer inputs."""
        makes_float = isinstance(out, Tensor) and out.is_floating_point() and not out.requires_grad
        if not (self._from_integers and makes_float and torch.is_grad_enabled()) or self.batch_dim(out) is None:
            return out
        if not any(isinstance(x, Tensor) and not x.is_floating_point() and self.batch_dim(x) is not None for x in args):
            return out
        self.begins.append(out.detach().requires_grad_())
        # A copy, because the model may write into it.
        return self.begins[-1].clone()

    def batch_dim(self, x: Tensor) -> int | None:
        """The batch dimension of an activation: the first, or, where time comes first, the one of the batch's size."""
        if x.ndim and len(x) % self._count == 0:
            return 0
        return next((dim for dim, size in enumerate(x.shape) if size == self._count), None)

    def difference(self, x: Tensor) -> Tensor:
        """Sample minus baseline, in the shape of ``x``: once for the samples, once for the baselines."""
        dim = self.batch_dim(x) or 0
        samples, baselines = x.chunk(2, dim)
        return torch.cat(2 * [samples - baselines], dim)


@contextmanager
def _in_single(device: str) -> Iterator[None]:
    """Context in which neither autocast nor the default dtype makes a function compute in 16 bits."""
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        if default in _HALF:
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


class _Call:
    """A call as a function of the one argument that depends on the input."""

    def __init__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> None:
        self._func, self._args, self._kwargs, self._x = func, args, kwargs, x
        self._name, self._ndim = name_of(func), x.ndim

    def __call__(self, x: Tensor) -> Any:
        """Calls the function: a tensor, or a maximum and its indices."""
        args = (x if argument is self._x else argument for argument in self._args)
        return self._func(*args, **{k: x if argument is self._x else argument for k, argument in self._kwargs.items()})

    @property
    def reduced(self) -> set[int]:
        """The dimensions that the function reduces or normalizes."""
        if self._name not in ("amax", "amin", "max", "min", "softmax"):
            return set()
        given = self._kwargs.get("dim", self._args[1] if len(self._args) > 1 else ())
        if isinstance(given, Tensor):
            return set()
        dims = given if isinstance(given, (tuple, list)) else (given,)
        return {int(dim) % self._ndim for dim in dims or range(self._ndim)}

    def packed(self, found: Any) -> Any:
        """A maximum and its indices in the named tuple that the function returns."""
        kind = getattr(torch.return_types, self._name, None) if isinstance(found, tuple) else None
        return found if kind is None else kind(found)


class _Rescaled(torch.autograd.Function):
    """A call whose backward pass follows a rule of DeepLIFT."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, call: _Call, rule: Callable[..., Tensor], mode: Rescaling) -> Any:
        # A copy: the call itself, or a later one, may write into x.
        ctx.save_for_backward(x.clone())
        ctx.call, ctx.rule, ctx.mode = call, rule, mode
        out = call(x)
        if out is x:
            ctx.mark_dirty(x)
        if isinstance(out, tuple):
            ctx.mark_non_differentiable(out[1])
            return tuple(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        # Activation checkpointing runs the forward again here, with the rule in force.
        (x,) = ctx.saved_tensors
        if not ctx.mode.goes_back:
            raise NoRuleError("does not hold for a forward that takes gradients itself (torch.autograd.grad)")
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            point = x.detach().requires_grad_()
            out = ctx.call(point.clone())
            out = out[0] if isinstance(out, tuple) else out

            def pull(values: Tensor) -> Tensor:
                found: tuple[Tensor, ...] = torch.autograd.grad(out, point, values, retain_graph=True)
                return found[0]

            with torch.no_grad():
                return ctx.rule(ctx.mode, x, out.detach(), gradient, pull), None, None, None


class _Softmax(_Rescaled):
    """A softmax; a class of its own, so that its graph node has a name of its own."""


Pull: TypeAlias = "Callable[[Tensor], Tensor]"


def _elementwise(mode: Rescaling, x: Tensor, out: Tensor, gradient: Tensor, pull: Pull) -> Tensor:
    """Multiplies by the ratio of the differences."""
    if out.shape != x.shape:
        return pull(gradient)
    change = mode.difference(x)
    return torch.where(change.abs() < mode.eps, pull(gradient), gradient * mode.difference(out) / change)


def _softmax(mode: Rescaling, x: Tensor, out: Tensor, gradient: Tensor, pull: Pull) -> Tensor:
    """Multiplies by the ratio, and subtracts the mean over each sample and its baseline, as Captum does for a single sample."""
    found = _elementwise(mode, x, out, gradient, pull)
    pairs = found.unflatten(0, (2, -1))
    mean = pairs.mean([0, *range(2, pairs.ndim)], keepdim=True)
    return torch.sub(pairs, mean).flatten(0, 1)


def _extreme(
    mode: Rescaling, x: Tensor, out: Tensor, gradient: Tensor, pull: Pull, further: Callable[..., Tensor]
) -> Tensor:
    """Sends the change of each output to the positions it came from; contributions of overlapping windows add up."""
    dim, out_dim = mode.batch_dim(x) or 0, mode.batch_dim(out) or 0
    value, reference = out.chunk(2, out_dim)
    extreme = further(value, reference)
    total = torch.add(*pull(gradient * torch.cat([extreme - reference, value - extreme], out_dim)).chunk(2, dim))
    change = mode.difference(x)
    return torch.where(change.abs() < mode.eps, pull(gradient), torch.cat([total, total], dim) / change)


_RESCALE: dict[str, Callable[..., Tensor]] = {
    "relu": _elementwise,
    "elementwise": _elementwise,
    "softmax": _softmax,
    "maximum": partial(_extreme, further=torch.maximum),
    "minimum": partial(_extreme, further=torch.minimum),
}

# Graph nodes that move, scale or add values. A softmax that only these follow is at the model's output.
_LINEAR = ARRANGING | words("Gather Sum Mean Add Sub Neg Mul Div")
_SOFTMAX = words("_Softmax Softmax SafeSoftmax LogSoftmax")


def check_softmax(starts: Iterable[Any], ends: Iterable[Any]) -> None:
    """Refuses a softmax inside the model, between where the backward pass starts and where it ends.

    Args:
        starts: The graph nodes of what is explained.
        ends: The graph nodes at which the backward pass ends.

    Raises:
        NoRuleError: If there is one.
    """
    ends, seen, left = set(ends), set(), [(start, True) for start in starts]
    while left:
        node, at_output = left.pop()
        if node is None or node in ends or (node, at_output) in seen:
            continue
        seen.add((node, at_output))
        kind = kind_of(node)
        inside = (kind in _SOFTMAX and not at_output) or "Attention" in kind
        if inside and not ends.isdisjoint(nodes(node)):
            raise NoRuleError("has no rule for a softmax inside the model, such as that of attention")
        several = sum(earlier is not None for earlier, _ in node.next_functions) > 1
        linear = kind in _LINEAR and not (kind in ("Mul", "Div") and several)
        left += [(earlier, at_output and linear) for earlier, _ in node.next_functions]


def in_precision(forward: nn.Module, work: Callable[[], T], dtype: torch.dtype = torch.float32) -> T:
    """Does the work with copies in place of all weights and buffers of fewer bits: 4 or 8 bytes for each number.

    Args:
        forward: The module that the work calls.
        work: The forward and the backward pass.
        dtype: The floating-point type of the copies.

    Raises:
        NoRuleError: If such weights are sharded over ranks.
    """
    copies = {
        f"forward_of.{name}": tensor.detach().to(dtype)
        for name, tensor in chain(forward.named_parameters(), forward.named_buffers())
        if tensor.is_floating_point() and tensor.element_size() < dtype.itemsize
    }
    if not copies:
        return work()
    if is_sharded(forward):
        raise NoRuleError(_SHARDED)
    found: T = torch.func.functional_call(_Held(forward, work), copies, ())
    return found


def check_precision(forward: nn.Module) -> None:
    """Refuses weights of 16 bits that are sharded over ranks, which cannot be copied.

    Raises:
        NoRuleError: If there are such weights.
    """
    if is_sharded(forward) and any(p.dtype in _HALF for p in forward.parameters()):
        raise NoRuleError(_SHARDED)


_SHARDED = "needs float32 weights, and these have 16 bits and are sharded over ranks"


class _Held(nn.Module):
    """A module that contains another one, and does work with it."""

    def __init__(self, forward_of: nn.Module, work: Callable[[], Any]) -> None:
        super().__init__()
        self.forward_of, self._work = forward_of, work

    def forward(self) -> Any:
        """Does the work."""
        return self._work()
