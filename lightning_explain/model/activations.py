"""Which function calls are activations and maxima, and what the nodes of an autograd graph are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def words(text: str) -> set[str]:
    """The whitespace-separated words of a text, as a set."""
    return set(text.split())


# Each name stands for a function, a tensor method, and their in-place variants. All are elementwise in their first
# argument.
_ELEMENTWISE = words(
    "relu relu6 hardtanh threshold leaky_relu rrelu prelu elu celu selu gelu silu mish hardswish hardsigmoid sigmoid expit tanh "
    "hardshrink softshrink tanhshrink softplus softsign logsigmoid log_sigmoid clamp clip clamp_min clamp_max abs absolute exp "
    "exp2 expm1 log log2 log10 log1p logit sqrt rsqrt square reciprocal sin cos tan sinh cosh asinh acosh atanh asin acos atan "
    "arctan erf erfc rdiv rtruediv rpow nan_to_num round floor ceil trunc frac sign"
)
# Elementwise in either argument, if the other one is a constant.
_ELEMENTWISE_IN_EITHER = words("maximum minimum fmax fmin pow ipow")
_POOLS = {
    f"{kind}max_pool{n}d{suffix}" for kind in ("", "adaptive_") for n in (1, 2, 3) for suffix in ("", "_with_indices")
}
_MAXIMA, _MINIMA = _POOLS | {"amax", "max"}, {"amin", "min"}


def name_of(function: Callable[..., Any]) -> str:
    """The plain name of a function: ``relu`` for ``F.relu``, ``Tensor.relu_`` and the like."""
    return str(getattr(function, "__name__", function)).strip("_")


def depending(value: Any) -> list[Tensor]:
    """The tensors in nested arguments that require grad, that is, depend on the explained inputs."""
    return [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.requires_grad]


# Graph nodes that only move or convert values.
ARRANGING = words(
    "View Reshape ReshapeAlias UnsafeView Squeeze Unsqueeze Select Slice Index Clone ToCopy T Transpose Permute Expand Alias "
    "Split Unbind Chunk AsStrided Copy"
)


def kind_of(node: Any) -> str:
    """The plain name of a graph node: ``Softmax`` for ``SoftmaxBackward0``."""
    return str(node.name()).rstrip("0123456789").removesuffix("Backward")


def family(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """A call's family, for calls with exactly one tensor that depends on the input.

    Returns:
        ``"relu"``, ``"elementwise"``, ``"maximum"`` or ``"minimum"`` (over a window or a dimension), ``"softmax"``; ``None`` for all
        other calls, and for calls with several tensors that depend on the input.
    """
    name = name_of(function)
    if name not in _FAMILIES or len(depending([args, dict(kwargs)])) != 1:
        return None
    first = args[0] if args else kwargs.get("input")
    if not (isinstance(first, Tensor) and first.requires_grad):
        return "elementwise" if name in _ELEMENTWISE_IN_EITHER or (name in ("max", "min") and args[1:]) else None
    if name in ("max", "min"):
        other = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("other"))
        if other is None:
            return None
        return "elementwise" if isinstance(other, Tensor) else _FAMILIES[name]
    return "relu" if name == "relu" or _is_relu(name, args[1:], kwargs) else _FAMILIES[name]


_FAMILIES: dict[str, str] = {
    **dict.fromkeys(_ELEMENTWISE | _ELEMENTWISE_IN_EITHER, "elementwise"),
    **dict.fromkeys(_MAXIMA, "maximum"),
    **dict.fromkeys(_MINIMA, "minimum"),
    "softmax": "softmax",
}


def _is_relu(name: str, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is a ReLU under another name: ``x.clamp(min=0)``, ``F.threshold(x, 0, 0)``."""
    bounds = [*rest, *(v for key, v in kwargs.items() if key in ("min", "max", "threshold", "value"))]
    numbers = [b for b in bounds if b is not None and not isinstance(b, bool)]
    lower = name == "clamp_min" or (name in ("clamp", "clip") and "max" not in kwargs and len(numbers) == 1)
    zero = all(isinstance(b, (int, float)) and b == 0 for b in numbers)
    return zero and ((lower and (not rest or rest[0] is not None)) or (name == "threshold" and len(numbers) == 2))
