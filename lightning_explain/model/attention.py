"""Function calls that compute attention in; over how many tokens they do so, and with which weights, out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_explain.core.record import AttentionSize
from lightning_explain.model.activations import name_of, words

FUSED = words("scaled_dot_product_attention multi_head_attention_forward")
"""Functions that compute attention as a whole."""
PRODUCTS = words("matmul bmm mm einsum baddbmm")
"""Functions with which attention by hand multiplies its weights by the values."""


class AttentionCall(NamedTuple):
    """A call that computes attention, or its weights.

    Args:
        size: Over what.
        weights: The weights ``(batch, heads, queries, keys)``, or without heads, from what the call returned.
        sequence_first: Whether what it returns has the tokens before the samples.
    """

    size: AttentionSize
    weights: Callable[[Any], Tensor]
    sequence_first: bool = False


def attention_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> AttentionCall | None:
    """What a call computes of attention; ``None`` if nothing.

    A softmax is attention by hand only if its result is then multiplied by the values, as :data:`PRODUCTS` do.
    """
    name = name_of(function)
    read = _READ.get(name)
    return None if read is None else read(*args, **kwargs)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall | None:
    """Of ``scaled_dot_product_attention``."""
    if query.ndim < 3:
        return None
    size = AttentionSize(len(query), query.shape[-2], key.shape[-2], query.ndim > 3)

    def weights(returned: Any) -> Tensor:
        q, k = (t.detach().float() if t.element_size() < 4 else t.detach() for t in (query, key))
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3) if enable_gqa else k
        scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if boolean else scores + attn_mask
        # Where all keys are masked.
        return scores.softmax(-1).nan_to_num(0.0)

    return AttentionCall(size, weights)


def _multi_head(*args: Any, **kwargs: Any) -> AttentionCall | None:
    """Of ``multi_head_attention_forward``, which ``nn.MultiheadAttention`` calls."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    query, key = given["query"], given["key"]
    if query.ndim != 3:
        return None

    def weights(returned: Any) -> Tensor:
        with torch.no_grad():
            again = F.multi_head_attention_forward(**{**given, "need_weights": True, "average_attn_weights": False})
        return cast("Tensor", again[1])

    return AttentionCall(AttentionSize(query.shape[1], len(query), len(key)), weights, sequence_first=True)


def _softmax(input: Tensor, dim: int | None = None, *others: Any, **further: Any) -> AttentionCall | None:
    """Of a softmax over the last of three or four dimensions."""
    if input.ndim not in (3, 4) or dim not in (-1, input.ndim - 1):
        return None
    size = AttentionSize(len(input), input.shape[-2], input.shape[-1], input.ndim > 3)
    return AttentionCall(size, lambda returned: returned.detach())


_READ: dict[str, Callable[..., AttentionCall | None]] = {
    "scaled_dot_product_attention": _fused,
    "multi_head_attention_forward": _multi_head,
    "softmax": _softmax,
}
