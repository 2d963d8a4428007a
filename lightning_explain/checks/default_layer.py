"""The layer of layer methods that name none, chosen from what preflight recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import Arrangement, Modality
from lightning_explain.core.record import Op, Passed, Record, meet, nodes
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.engine.evaluate import by_sample
from lightning_explain.modalities.image import is_grid
from lightning_explain.modalities.placement import place
from lightning_explain.model.activations import ARRANGING, kind_of, words
from lightning_explain.model.attention import FUSED, PRODUCTS
from lightning_explain.model.layers import plain

# Between the softmax of attention and its product with the values lie at most a dropout and changes of shape.
_NEAR = 5
# Graph nodes that are linear in what they receive.
_LINEAR = ARRANGING | words("Addmm Mm Sum Mean Add Gather AvgPool2D MkldnnAdaptiveAvgPool2D AdaptiveAvgPool2D")
_CONVOLUTIONS = words("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
# Layers whose gradient is looked at.
_MOST = 40
# By how much gradients that are the same may differ, of the largest.
_SAME = 1e-3
# Share of the squares of a layer's values; a SiLU has less below zero.
_MUCH = 0.1
_POOLS = tuple(
    getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg") for n in (1, 2, 3)
)


class DefaultLayer(NamedTuple):
    """A layer's dotted name, ``None`` if there is none; and whether several tokens behind the last attention are read, as by a mean."""

    name: str | None = None
    reads_several: bool = False


def default_layer(
    model: nn.Module, record: Record, modalities: tuple[Modality, ...], frames: int = 1, detects: bool = False
) -> DefaultLayer:
    """The last layer whose places lie on the input, on the way to the explained output.

    Feature maps and tokens count. Of a transformer it is what enters the last block, if a module returns that, or its norm: behind the last
    attention each token holds what it read from others, wherever that lies, and may be a class token. Behind a convolution that follows
    attention, maps are feature maps. Without a layer before attention it is the last one where several places matter.
    Where the outputs have places themselves, as those of a segmentation, it is the layer with the most channels, of several the one with
    the fewest places, and of these the last: the bottleneck of a U-Net, or the end of a backbone (Vinogradova et al. 2020). The map of the
    last layer would be the outputs themselves.
    Left out are layers inside of attention, whose dimensions are heads and pairs of tokens, and those that do not have the
    samples first. With several inputs, on which no place is known, it is the last feature map ``(N, C, h, w)``. Of a detector
    with a pyramid of feature maps it is the last one that all levels depend on, because each object is read from one of them alone.

    Args:
        model: The module.
        record: The record of a forward pass.
        modalities: What the inputs are.
        frames: How many tensors a layer has for each sample, where the frames of a video are among the samples.
        detects: Whether the model is a detector.

    Returns:
        The layer, and what reads it.
    """
    ahead = None if record.chosen.grad_fn is None else set(nodes(record.chosen.grad_fn))
    leading = (
        one for one in _candidates(model, record, modalities, frames) if ahead is None or ahead.intersection(one.nodes)
    )
    if record.dense:
        return DefaultLayer(_bottleneck(leading))
    levels = _levels(model, record) if detects else []
    leading = (one for one in leading if all(level.intersection(one.nodes) for level in levels))
    first = next(leading, None)
    if first is None:
        return DefaultLayer()
    if first.value.ndim != 3 and not first.late:
        return DefaultLayer(plain(first.name))
    found = [first, *islice(leading, _MOST - 1)]
    # Ranks of a sharded model would have to go back together.
    useful = [] if ahead is None or is_sharded(model) else _of_use(found, model, record, modalities)
    early = [one for one in found if not one.late]
    chosen = next((one for one in (*(one for one in early if one in useful), *early, *useful)), None)
    name = None if chosen is None else plain(_stream(chosen, found, record).name)
    return DefaultLayer(name, any(one.late for one in useful))


def _stream(chosen: _Candidate, found: list[_Candidate], record: Record) -> _Candidate:
    """The layer whose output enters the chosen one and also bypasses it, as the residual stream does a block's norm; or the chosen one."""
    if chosen.late:
        return chosen
    received = {one.name: {id(x) for x in record.received[id(one.module)].tensors} for one in found}
    returned = {one.name: id(record.returned[id(one.module)].value) for one in found}
    entering = [one for one in found if one is not chosen and returned[one.name] in received[chosen.name]]
    # Layers that made it come before those that only pass it on.
    entering.sort(key=lambda one: returned[one.name] in received[one.name])
    # What leads to the explained output by another way than through the chosen layer.
    past = set(nodes(record.chosen.grad_fn, chosen.nodes)) if entering else set()
    return next((one for one in entering if not past.isdisjoint(one.nodes)), chosen)


def weighs_places(
    layer: nn.Module,
    model: nn.Module,
    record: Record,
    modalities: tuple[Modality, ...],
    unknown: bool = False,
    frames: int = 1,
) -> bool:
    """Whether the explained output weighs the places of a layer by themselves, as a flattened head or a class token does.

    Behind global average pooling, the gradient is the same at all places. Takes a backward pass from the explained output to the
    layer; ``False`` also where that is not known: sharded models, layers that run several times or return no single tensor. Where
    there is no gradient, as before a head that begins with zeros, it is ``unknown``. ``frames``: how many tensors the layer may have for
    each sample.
    """
    count, read = len(record.samples), _gradient(layer, model, record)
    if read is None or len(by_sample(read[0], count, frames)) != count:
        return False
    with suppress(RuntimeError):
        how = Arrangement(layer=layer, model=model)
        placed = place(by_sample(read[1], count, frames), record.samples.inputs, modalities, how)
        if placed is not None:
            if not placed.any():
                return unknown
            mean = placed.flatten(2).mean(2, keepdim=True)
            return bool((placed.flatten(2) - mean).abs().max() > _SAME * placed.abs().max())
    return False


def reads_below_zero(layer: nn.Module, model: nn.Module, record: Record) -> bool:
    """Whether a layer is the last with several places, and much of what is read there is below zero.

    Zero is not the absence then that it is behind a ReLU: before a LayerNorm, say, features may have values of both signs that are the
    same everywhere. A ReLU or a maximum behind the layer reads no values below zero. ``False`` where nothing is known, as in
    :func:`weighs_places`.
    """
    later = list(record.returned).index(id(layer)) + 1
    if any(map(_has_places, islice(record.returned.values(), later, None))):
        return False
    read = _gradient(layer, model, record)
    if read is None:
        return False
    value, gradient = read
    energy = value.detach().float().square() * gradient.ne(0)
    return bool((energy * value.lt(0)).sum() > _MUCH * energy.sum())


def _has_places(passed: Passed) -> bool:
    """Whether a tensor that a module returned has several places, whether channels come first or last."""
    return any(min(x.shape[2:].numel(), x.shape[1:-1].numel()) > 1 for x in passed.tensors if x.ndim > 2)


def _gradient(layer: nn.Module, model: nn.Module, record: Record) -> tuple[Tensor, Tensor] | None:
    """What a layer returned, and the gradient of the explained outputs there; ``None`` where they are not known."""
    passed = record.passed(layer, of_input=False)
    value = None if passed is None else passed.value
    if not isinstance(value, Tensor) or not (value.requires_grad and record.chosen.requires_grad):
        return None
    if record.calls[id(layer)] > 1 or is_sharded(model):
        return None
    known = record.gradients
    if id(layer) not in known:
        known[id(layer)] = None
        with suppress(RuntimeError):
            (known[id(layer)],) = torch.autograd.grad(record.chosen.sum(), value, retain_graph=True, allow_unused=True)
    found = known[id(layer)]
    return None if found is None else (value, found)


def is_linear_behind(layer: nn.Module, record: Record) -> bool:
    """Whether the explained output is a linear function of what the layer returns, as with one linear layer behind a flattened map."""
    passed = record.passed(layer, of_input=False)
    ends = set() if passed is None else set(passed.nodes)
    return all(kind_of(node) in _LINEAR for node in nodes(record.chosen.grad_fn, ends))


def _levels(model: nn.Module, record: Record) -> list[set[Any]]:
    """The graph nodes that lead to each level of the last pyramid: feature maps of several sizes that a module returns by name."""
    found: list[Tensor] = []
    for module in model.modules():
        passed = record.returned.get(id(module))
        parts = list(passed.value.values()) if passed is not None and isinstance(passed.value, Mapping) else []
        maps = [x for x in parts if isinstance(x, Tensor) and x.ndim == 4 and x.grad_fn is not None]
        if len({x.shape[2:] for x in maps}) > 1 and (not found or meet([maps[-1].grad_fn], [found[0].grad_fn])):
            found = maps
    return [set(nodes(x.grad_fn)) for x in found]


class _Candidate(NamedTuple):
    """A layer whose places lie on the input, what it returned, the graph nodes of that, and whether it is tokens behind all attention,
    in three dimensions or with rows and columns.

    ``size`` is how many channels and places that has.
    """

    name: str
    module: nn.Module
    value: Tensor
    nodes: list[Any]
    late: bool
    size: tuple[int, int]


def _bottleneck(found: Iterator[_Candidate]) -> str | None:
    """The name of the layer with the most channels, of several the one with the fewest places; pools are none."""
    layers = [one for one in found if not isinstance(one.module, _POOLS) and not one.late]
    sizes = [(channels, -places) for channels, places in (one.size for one in layers)]
    return plain(layers[sizes.index(max(sizes))].name) if layers else None


def _candidates(
    model: nn.Module, record: Record, modalities: tuple[Modality, ...], frames: int
) -> Iterator[_Candidate]:
    """The layers whose places lie on the input, the last first."""
    attention = attention_in(record)
    convolved = bool(attention) and any(map(_mixes_places, record.ops[attention[-1].product :]))
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
        late = bool(attention) and end > attention[-1].product and (value.ndim == 3 or not convolved)
        # Channels after pooling, (N, C, 1), may be as many as there are patches.
        pooled = placed is not None and placed.ndim > value.ndim and value.shape[2] == 1
        # Of a video, frames alone are no places.
        if placed is not None and placed.shape[max(2, placed.ndim - 2) :].numel() > 1 and not pooled:
            yield _Candidate(name, module, value, passed.nodes, late, (placed.shape[1], placed[0, 0].numel()))


def _mixes_places(op: Op) -> bool:
    """Whether a call is a convolution of more than one place."""
    module = op.module
    of_one = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and max(module.kernel_size) == 1
    return op.name in _CONVOLUTIONS and not of_one


def _of_use(
    found: list[_Candidate], model: nn.Module, record: Record, modalities: tuple[Modality, ...]
) -> list[_Candidate]:
    """Those of some layers where several places, and not only a class token, change the explained output; none if that fails."""
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
        return [one for one, g in zip(found, placed, strict=True) if g is not None and _several(g)]
    return []


def _several(gradient: Tensor) -> bool:
    """Whether a gradient ``(N, C, ...)`` is other than zero at more than one place of a sample."""
    return bool((gradient.flatten(2).ne(0).any(1).sum(1) > 1).any())


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
