"""Canonizers: give every activation call a module of its own, so that Captum's backward rules apply to all of them.

Captum hooks *modules*: it does not see ``F.relu``, cannot distinguish the calls of one module that is used twice, and
has rules for few classes. While a canonizer is active, calls are intercepted as functions (``TorchFunctionMode``),
wherever they come from, and each call runs in a module of its own. No code is rewritten, no weight is copied, and the
hooks of every named layer still run.
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
    """The whitespace-separated words of a text, as a set."""
    return set(text.split())


RELU = {"relu"}
# Each name stands for a function, a tensor method, and their in-place variants. All are elementwise in their first
# argument.
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
    """The plain name of a function: ``relu`` for ``F.relu``, ``Tensor.relu_`` and the like."""
    return str(getattr(function, "__name__", function)).strip("_")


def depending(value: Any) -> Iterator[Tensor]:
    """The tensors in nested arguments that require grad, that is, depend on the explained inputs."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from depending(part)
    elif isinstance(value, dict):
        yield from depending(list(value.values()))


def nodes(last: Any) -> Iterator[Any]:
    """Every node of the autograd graph that leads to ``last`` (a ``grad_fn``), each once."""
    seen, left = set(), [last]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [earlier for earlier, _ in node.next_functions]


def family(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """A call's family: ``"relu"``, ``"elementwise"``, ``"pool"``, or ``None`` if it cannot be canonized."""
    name = name_of(function)
    if name not in ELEMENTWISE and name not in POOLS:
        return None
    if len(list(depending([args, kwargs]))) != 1 or not _first(args, kwargs).requires_grad:
        return None
    if name in POOLS:
        return None if kwargs.get("return_indices") else "pool"
    return "relu" if name in RELU or _is_relu(name, args[1:], kwargs) else "elementwise"


def _is_relu(name: str, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is a ReLU under another name: ``x.clamp(min=0)``, ``F.threshold(x, 0, 0)``."""
    bounds = [*rest, *(v for key, v in kwargs.items() if key in ("min", "max", "threshold", "value"))]
    numbers = [b for b in bounds if b is not None and not isinstance(b, bool)]
    lower = name == "clamp_min" or (name in ("clamp", "clip") and "max" not in kwargs and len(numbers) == 1)
    zero = all(isinstance(b, (int, float)) and b == 0 for b in numbers)
    return zero and ((lower and (not rest or rest[0] is not None)) or (name == "threshold" and len(numbers) == 2))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    first = args[0] if args else kwargs.get("input")
    return first if isinstance(first, Tensor) else torch.empty(0)


class Call(nn.Module):
    """One function call in one forward pass, as a module that Captum can hook."""

    function: Callable[[Tensor], Tensor]
    wrote = False

    def forward(self, x: Tensor) -> Tensor:
        """The function's value at ``x``; records in ``wrote`` whether the function worked in place."""
        out = self.function(x)
        self.wrote = out is x
        return out


class ReluCall(Call, nn.ReLU):
    """A call of the ReLU family; an ``nn.ReLU``, because guided backpropagation and deconvolution hook that class."""


class ElementwiseCall(Call):
    """A call of an elementwise function, to which DeepLIFT's rescale rule applies."""


class PoolCall(Call):
    """A call of a maximum over windows, to which DeepLIFT's rule for maxima applies."""


class Router(TorchFunctionMode):
    """Runs the activation calls of one forward pass through modules, each module at most once.

    Args:
        modules: Each family of calls to its modules; calls of other families run as they are.
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
        # A clone, because where two hooked modules share a tensor, Captum reads the gradient before replacing it (its
        # issue 1104).
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
    """A context that yields a route: in it guided backpropagation and deconvolution reach every ReLU call once.

    Args:
        calls: The list to which the modules that stand for calls are added, for the duration of the context.
        counts: Number of calls of each family in one forward pass.
    """
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
    """A context that yields a route: in it Captum's DeepLIFT reaches every elementwise call and every maximum.

    Elementwise calls get the rescale rule; maxima get :func:`maximum`, whose windows may overlap.

    Args:
        calls: The list to which the modules that stand for calls are added, for the duration of the context.
        counts: Number of calls of each family in one forward pass.
    """
    elementwise = _modules(ElementwiseCall, counts["relu"] + counts["elementwise"])
    modules = {"relu": elementwise, "elementwise": elementwise, "pool": _modules(PoolCall, counts["pool"])}
    rules = {ElementwiseCall: in_single(deep_lift.nonlinear), PoolCall: in_single(maximum)}
    with (
        _within(calls, (elementwise, modules["pool"])),
        patch.dict(deep_lift.SUPPORTED_NON_LINEAR, rules, clear=True),
    ):
        yield partial(Router, modules)


def in_single(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The rule, computed in float32 for half precision: in float16 ``eps`` is 0, and the rule would divide 0 by 0."""

    def widened(module: nn.Module, *tensors: Tensor, eps: float = 1e-10) -> Tensor:
        dtype = tensors[-1].dtype
        if dtype not in (torch.float16, torch.bfloat16):
            return rule(module, *tensors, eps=eps)
        return rule(module, *(t.float() for t in tensors), eps=eps).to(dtype)

    return widened


def maximum(
    module: PoolCall, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """DeepLIFT's rule for maxima: the gradient ``(2N, ...)`` that replaces the one at the call's input.

    Captum's rule (``maxpool2d`` in ``captum.attr.DeepLift``), except that contributions are added where windows
    overlap; Captum's unpooling keeps only the last one.

    Args:
        module: The call.
        inputs: The call's inputs, ``(2N, ...)``: N samples, then their N baselines.
        outputs: The maxima of both, ``(2N, ...)``.
        grad_input: The gradient at the inputs that autograd computed.
        grad_output: The gradient at the outputs.
        eps: Differences between sample and baseline smaller than this keep ``grad_input``; in units of the input.
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
    """Adds modules to ``calls`` inside the context, not to the model, whose forward may run all its submodules."""
    calls.append(nn.ModuleList(modules).eval())
    try:
        yield
    finally:
        calls.pop(-1)


CANONIZERS: dict[str, Callable[[nn.ModuleList, dict[str, int]], AbstractContextManager[Route]]] = {
    "guided": guided,
    "deeplift": deeplift,
}
