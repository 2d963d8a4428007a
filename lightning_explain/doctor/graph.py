"""What the graph of the outputs shows and the calls do not."""

from __future__ import annotations

from typing import Any

from lightning_explain.repair import nodes, words

# They arrange numbers, or convert them.
_HANDS_ON = words(
    "View Reshape ReshapeAlias UnsafeView Squeeze Unsqueeze Select Slice Index Clone ToCopy T Transpose Permute Expand Alias "
    "Split Unbind Chunk AsStrided Copy"
)
_PROBABILITIES = {
    "Softmax": ("softmax",),
    "LogSoftmax": ("log_softmax",),
    "Sigmoid": ("sigmoid", "expit"),
}


def probabilities(last: Any) -> tuple[str, ...] | None:
    """By what functions the outputs are probabilities, or a multiple of them; ``None`` if they are not."""
    exponent = False
    while last is not None:
        kind = _kind(last)
        if kind in _PROBABILITIES:
            return _PROBABILITIES[kind] if exponent == (kind == "LogSoftmax") else None
        before = [node for node, _ in last.next_functions if node is not None]
        scaled = kind in ("Mul", "Div") and len(before) == 1
        exponent = exponent or kind == "Exp"
        if len(before) != 1 or not (kind in _HANDS_ON or kind == "Exp" or scaled):
            return None
        last = before[0]
    return None


def reentrant(last: Any) -> bool:
    """Whether something is computed again in the backward pass by a backward pass of its own."""
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes(last))


def _kind(node: Any) -> str:
    """``Softmax`` for ``SoftmaxBackward0``, ``Squeeze`` for ``SqueezeBackward1``."""
    return str(node.name()).rstrip("0123456789").removesuffix("Backward")
