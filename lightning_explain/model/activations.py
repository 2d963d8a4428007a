"""Mends: how Captum's backward rules reach activations that it cannot hook, or has no rule for.

Captum hooks *modules*: it does not see ``F.relu``, it cannot tell apart the calls of one module used twice, and it has
rules for few classes. Here every *call* gets a module of its own for as long as the canonizer lasts: calls are intercepted as
functions, wherever they come from, so no code is rewritten, no weight is copied and every named layer still fires.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from captum.attr._core import deep_lift, guided_backprop_deconvnet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Route = Callable[[], AbstractContextManager[Any]]
C = TypeVar("C", bound="Call")


def words(text: str) -> set[str]:
    """The words of a text."""
    return set(text.split())


RELU = {"relu"}
# A name that stands for a function, a method and their variants in place. Each is elementwise in its first argument.
ELEMENTWISE = RELU | words(
    "relu6 hardtanh threshold leaky_relu rrelu prelu elu celu selu gelu silu mish hardswish hardsigmoid sigmoid expit tanh "
    "hardshrink softshrink tanhshrink softplus softsign logsigmoid log_sigmoid clamp clip clamp_min clamp_max abs absolute exp "
    "exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan sinh cosh asinh atan arctan erf pow rdiv rpow "
    "nan_to_num"
)
POOLS = {
    f"{kind}max_pool{n}d{suffix}" for kind in ("", "adaptive_") for n in (1, 2, 3) for suffix in ("", "_with_indices")
} | {"amax"}


def name_of(function: Callable[..., Any]) -> str:
    """The plain name: ``relu`` for ``F.relu``, ``Tensor.relu_`` and the like."""
    return str(getattr(function, "__name__", function)).strip("_")


def depending(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments that depend on what is explained."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from depending(part)
    elif isinstance(value, dict):
        yield from depending(list(value.values()))


def nodes(last: Any) -> Iterator[Any]:
    """Every operation of a graph."""
    seen, left = set(), [last]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [earlier for earlier, _ in node.next_functions]


def family(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """``"relu"``, ``"elementwise"`` or ``"pool"`` for calls that can be canonized, ``None`` for all others."""
    name = name_of(function)
    if name not in ELEMENTWISE and name not in POOLS:
        return None
    if len(list(depending([args, kwargs]))) != 1 or not _first(args, kwargs).requires_grad:
        return None
    if name in POOLS:
        return None if kwargs.get("return_indices") else "pool"
    return "relu" if name in RELU or _is_relu(name, args[1:], kwargs) else "elementwise"


def _is_relu(name: str, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether it is a ReLU under another name: ``x.clamp(min=0)``, ``F.threshold(x, 0, 0)``."""
    bounds = [*rest, *(v for key, v in kwargs.items() if key in ("min", "max", "threshold", "value"))]
    numbers = [b for b in bounds if b is not None and not isinstance(b, bool)]
    lower = name == "clamp_min" or (name in ("clamp", "clip") and "max" not in kwargs and len(numbers) == 1)
    zero = all(isinstance(b, (int, float)) and b == 0 for b in numbers)
    return zero and ((lower and (not rest or rest[0] is not None)) or (name == "threshold" and len(numbers) == 2))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    first = args[0] if args else kwargs.get("input")
    return first if isinstance(first, Tensor) else torch.empty(0)


class Call(nn.Module):
    """One call of a function in one forward, as a module that Captum can hook."""

    function: Callable[[Tensor], Tensor]
    wrote = False

    def forward(self, x: Tensor) -> Tensor:
        """The function's value; notes whether it was written over the input."""
        out = self.function(x)
        self.wrote = out is x
        return out


class ReluCall(Call, nn.ReLU):
    """What guided backpropagation and deconvolution look for: a ``nn.ReLU``."""


class ElementwiseCall(Call):
    """What DeepLIFT's rescale rule is for."""


class PoolCall(Call):
    """What DeepLIFT's rule for maxima is for."""


class Router(TorchFunctionMode):
    """Sends the calls of one forward through modules, each of which is used at most once.

    Args:
        modules: For each family that is sent, its modules.
    """

    def __init__(self, modules: dict[str, nn.ModuleList]) -> None:
        super().__init__()
        self._modules = modules

    def __enter__(self) -> Router:
        iterators = {id(modules): iter(modules) for modules in self._modules.values()}
        self._free = {name: iterators[id(modules)] for name, modules in self._modules.items()}
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = family(func, args, kwargs) if torch.is_grad_enabled() else None
        if name not in self._free:
            return func(*args, **kwargs)
        x = _first(args, kwargs)
        module = self._next(name)
        module.function = partial(_call, func, args[1:], {k: v for k, v in kwargs.items() if k != "input"})
        # A tensor of its own: where two hooked modules share one, Captum reads the gradient before it is replaced (its issue 1104).
        out = module(x.clone())
        return x.copy_(out) if module.wrote else out

    def _next(self, name: str) -> Any:
        module = next(self._free[name], None)
        if module is None:
            raise RuntimeError(
                f"The model makes more activation calls than the {len(self._modules[name])} it made when it was examined: its "
                "control flow depends on the data. Use a method without a backward rule, such as IntegratedGradients."
            )
        return module


def _call(function: Callable[..., Tensor], rest: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    return function(x, *rest, **kwargs)


@contextmanager
def guided(calls: nn.ModuleList, counts: dict[str, int]) -> Iterator[Route]:
    """Guided backpropagation and deconvolution at every ReLU call, and at no module twice."""
    owner = guided_backprop_deconvnet.ModifiedReluGradientAttribution
    original = owner._register_hooks

    def only_calls(self: Any, module: nn.Module) -> None:
        if isinstance(module, ReluCall):
            original(self, module)

    modules = {"relu": _modules(ReluCall, counts["relu"])}
    with _within(calls, modules.values()), patch.object(owner, "_register_hooks", only_calls):
        yield partial(Router, modules)


@contextmanager
def deeplift(calls: nn.ModuleList, counts: dict[str, int]) -> Iterator[Route]:
    """DeepLIFT's rescale rule at every elementwise call, and a rule for maxima whose windows may overlap."""
    elementwise = _modules(ElementwiseCall, counts["relu"] + counts["elementwise"])
    modules = {"relu": elementwise, "elementwise": elementwise, "pool": _modules(PoolCall, counts["pool"])}
    rules = {ElementwiseCall: in_single(deep_lift.nonlinear), PoolCall: in_single(maximum)}
    with (
        _within(calls, (elementwise, modules["pool"])),
        patch.dict(deep_lift.SUPPORTED_NON_LINEAR, rules, clear=True),
    ):
        yield partial(Router, modules)


def in_single(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule in float32 where gradients are less: float16 has no number as small as ``eps``, and 0 / 0 is none at all."""

    def widened(module: nn.Module, *tensors: Tensor, eps: float = 1e-10) -> Tensor:
        dtype = tensors[-1].dtype
        if dtype not in (torch.float16, torch.bfloat16):
            return rule(module, *tensors, eps=eps)
        return rule(module, *(t.float() for t in tensors), eps=eps).to(dtype)

    return widened


def maximum(
    module: PoolCall, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """Captum's rule for maxima, with contributions added where windows overlap (unpooling keeps only the last one).

    Args:
        module: The call.
        inputs: ``(2N, ...)``, samples and then their baselines.
        outputs: The maxima of both.
        grad_input: The gradient that would go on.
        grad_output: The gradient that came.
        eps: Below this a difference counts as none.
    """
    x, reference = inputs.chunk(2)
    out, out_reference = outputs.chunk(2)
    highest = torch.maximum(out, out_reference)
    change = torch.cat([highest - out_reference, out - highest])
    with torch.enable_grad():
        point = inputs.detach().requires_grad_()
        (contributions,) = torch.autograd.grad(module.function(point), point, grad_output * change)
    total = torch.add(*contributions.chunk(2))
    delta = torch.cat(2 * [x - reference])
    return torch.where(delta.abs() < eps, grad_input, torch.cat(2 * [total]) / delta)


def _modules(kind: type[C], count: int) -> nn.ModuleList:
    return nn.ModuleList(kind() for _ in range(count))


@contextmanager
def _within(calls: nn.ModuleList, modules: Iterable[nn.ModuleList]) -> Iterator[None]:
    """The modules among the calls; not inside the model, whose forward may run all that is in it."""
    calls.append(nn.ModuleList(modules).eval())
    try:
        yield
    finally:
        calls.pop(-1)


CANONIZERS: dict[str, Callable[[nn.ModuleList, dict[str, int]], AbstractContextManager[Route]]] = {
    "guided": guided,
    "deeplift": deeplift,
}
