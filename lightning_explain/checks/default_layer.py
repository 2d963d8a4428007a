"""The layer of layer methods that name none, chosen from what preflight recorded."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_explain.core.contracts import Arrangement, Modality
from lightning_explain.core.record import Op, Record, meet
from lightning_explain.modalities.placement import place
from lightning_explain.model.activations import words
from lightning_explain.model.layers import plain

_ATTENTION = words("scaled_dot_product_attention multi_head_attention_forward")
_PRODUCTS = words("matmul bmm mm einsum baddbmm")
# Between the softmax of attention and its product with the values lie at most a dropout and changes of shape.
_NEAR = 5


def default_layer(model: nn.Module, record: Record, modalities: tuple[Modality, ...]) -> str | None:
    """The dotted name of the last layer whose places lie on the input, on the way to the explained output.

    Feature maps and tokens count; tokens only before the last attention, because behind it nothing but a class token may matter.
    Left out are layers inside of attention, whose dimensions are heads and pairs of tokens, and those that do not have the
    samples first. With several inputs, on which no place is known, it is the last feature map ``(N, C, h, w)``.

    Args:
        model: The module.
        record: The record of a forward pass.
        modalities: What the inputs are.

    Returns:
        The name; ``None`` if there is no such layer.
    """
    attention = _attention(record)
    inside, end = tuple(f"{op.where}." for _, op in attention if op.where), attention[-1][0] if attention else None
    modules = {id(module): (name, module) for name, module in model.named_modules() if not name.startswith(inside)}
    last, inputs = record.chosen.grad_fn, record.samples.inputs
    for key, passed in reversed(record.returned.items()):
        (name, module), value = modules.get(key, ("", None)), passed.value
        if not name or not isinstance(value, Tensor) or value.ndim < 3 or len(value) != len(record.samples):
            continue
        placed = value if len(inputs) > 1 and value.ndim == 4 else None
        if len(inputs) == 1:
            placed = place(value, inputs, modalities, Arrangement(layer=module, model=model))
        too_late = value.ndim == 3 and end is not None and record.spans[key][1] > end
        if placed is None or placed[0, 0].numel() < 2 or too_late:
            continue
        if last is None or meet([last], passed.nodes):
            return plain(name)
    return None


def _attention(record: Record) -> list[tuple[int, Op]]:
    """The calls that mix tokens by attention, with their places among all calls."""
    calls = [op.name for op in record.ops]
    return [
        (i, op)
        for i, op in enumerate(record.ops)
        if op.name in _ATTENTION
        or (op.name in _PRODUCTS and op.activations > 1 and "softmax" in calls[max(0, i - _NEAR) : i])
    ]
