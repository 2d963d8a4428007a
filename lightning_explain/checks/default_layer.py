"""The layer of layer methods that name none, chosen from what preflight recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import Arrangement, Modality
from lightning_explain.core.record import Record, nodes
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.engine.evaluate import by_sample
from lightning_explain.modalities.image import is_grid
from lightning_explain.modalities.placement import place
from lightning_explain.model.attention import FUSED, PRODUCTS
from lightning_explain.model.layers import plain

# Between the softmax of attention and its product with the values lie at most a dropout and changes of shape.
_NEAR = 5
# Layers whose gradient is looked at.
_MOST = 40


def default_layer(model: nn.Module, record: Record, modalities: tuple[Modality, ...], frames: int = 1) -> str | None:
    """The dotted name of the last layer whose places lie on the input, on the way to the explained output.

    Feature maps and tokens count; tokens only before the last attention, because behind it nothing but a class token may matter.
    Left out are layers inside of attention, whose dimensions are heads and pairs of tokens, and those that do not have the
    samples first. With several inputs, on which no place is known, it is the last feature map ``(N, C, h, w)``.

    Args:
        model: The module.
        record: The record of a forward pass.
        modalities: What the inputs are.
        frames: How many tensors a layer has for each sample, where the frames of a video are among the samples.

    Returns:
        The name; ``None`` if there is no such layer.
    """
    ahead = None if record.chosen.grad_fn is None else set(nodes(record.chosen.grad_fn))
    leading = (
        one for one in _candidates(model, record, modalities, frames) if ahead is None or ahead.intersection(one.nodes)
    )
    last = next(leading, None)
    if last is None:
        return None
    # Ranks of a sharded model would have to go back together.
    if last.value.ndim == 3 and ahead is not None and not is_sharded(model):
        last = next(iter(_of_use([last, *islice(leading, _MOST - 1)], model, record, modalities)), last)
    return plain(last.name)


class _Candidate(NamedTuple):
    """A layer whose places lie on the input, what it returned, and the graph nodes of that."""

    name: str
    module: nn.Module
    value: Tensor
    nodes: list[Any]


def _candidates(
    model: nn.Module, record: Record, modalities: tuple[Modality, ...], frames: int
) -> Iterator[_Candidate]:
    """The layers whose places lie on the input, the last first."""
    attention = attention_in(record)
    modules = {id(module): (name, module) for name, module in model.named_modules() if name}
    for key, passed in reversed(record.returned.items()):
        end = record.spans[key][1]
        if key not in modules or not isinstance(passed.value, Tensor) or passed.value.ndim < 3:
            continue
        value = by_sample(passed.value, len(record.samples), frames)
        if len(value) != len(record.samples):
            continue
        if any(part.contains(end) for part in attention) or _runs_in(key, attention, record, model):
            continue
        name, module = modules[key]
        placed = _placed(value, module, model, record, modalities, bool(attention))
        too_late = value.ndim == 3 and attention and end > attention[-1].product
        if placed is not None and placed[0, 0].numel() > 1 and not too_late:
            yield _Candidate(name, module, value, passed.nodes)


def _of_use(
    found: list[_Candidate], model: nn.Module, record: Record, modalities: tuple[Modality, ...]
) -> list[_Candidate]:
    """Those of some layers where a place, and not only a class token, changes the explained output; none if that fails."""
    found = [one for one in found if one.value.requires_grad]
    with suppress(RuntimeError):
        end, values = record.chosen.sum(), [one.value for one in found]
        gradients = torch.autograd.grad(end, values, retain_graph=True, allow_unused=True)
        placed = (
            None
            if g is None
            else place(g, record.samples.inputs, modalities, Arrangement(layer=one.module, model=model))
            for one, g in zip(found, gradients, strict=True)
        )
        return [one for one, g in zip(found, placed, strict=True) if g is not None and bool(g.any())]
    return []


def _placed(
    value: Tensor, module: nn.Module, model: nn.Module, record: Record, modalities: tuple[Modality, ...], mixes: bool
) -> Tensor | None:
    """What a layer returned, as it lies on the input; ``None`` if it does not. ``mixes``: whether the model has attention."""
    inputs = record.samples.inputs
    placed = place(value, inputs, modalities, Arrangement(layer=module, model=model))
    placed = value if len(inputs) > 1 and value.ndim == 4 else placed
    if placed is None or value.ndim == 3 or not mixes:
        return placed
    # Where heads and numbers of tokens may be dimensions, rows and columns must be in proportion to an image's.
    grids = (modality.grid(x) for modality, x in zip(modalities, inputs, strict=True))
    return placed if any(grid and is_grid(tuple(placed.shape[2:]), grid) for grid in grids) else None


class _Attention(NamedTuple):
    """Where attention is computed: the calls from the softmax to the product with the values, and the module that makes them."""

    softmax: int
    product: int
    module: nn.Module

    def contains(self, end: int) -> bool:
        """Whether a module returns after so many calls between the two, with weights of pairs of tokens."""
        return self.softmax < end <= self.product


def attention_in(record: Record) -> list[_Attention]:
    """The calls that mix tokens by attention, in order."""
    calls, found = [op.name for op in record.ops], []
    for i, op in enumerate(record.ops):
        before = calls[max(0, i - _NEAR) : i]
        if op.name in FUSED:
            found.append(_Attention(i, i, op.module))
        elif op.name in PRODUCTS and op.activations > 1 and "softmax" in before:
            found.append(_Attention(i - 1 - before[::-1].index("softmax"), i, op.module))
    return found


def _runs_in(key: int, attention: list[_Attention], record: Record, model: nn.Module) -> bool:
    """Whether a module ran in the forward of one that computes attention; the model as a whole does not count."""
    owners, seen = {id(part.module) for part in attention} - {id(model)}, {id(model)}
    while key not in seen:
        seen.add(key)
        key = record.callers[key]
        if key in owners:
            return True
    return False
