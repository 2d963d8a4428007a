"""What preflight recorded of a model of images or videos in; what to give where its last dimension is channels, out."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_explain.core.call import named
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.record import Record

_COLORS = 4
"""The most channels of pictures, which have more rows, columns and frames."""


def channels_last(i: int, probe: Probe, model: nn.Module, record: Record) -> str:
    """What to give where the first convolution of the ``i``-th input ``(N, ..., C)`` takes it as ``(N, C, ...)``; else nothing.

    Such an input would be taken for an image of as many channels as it has rows, or a volume of as many as there are frames.
    """
    x = record.points[i].detach()
    modules = {id(module): module for module in model.modules()}
    for key, passed in record.received.items() if x.ndim in (4, 5) else ():
        module = modules.get(key)
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        for value in (tensor.detach() for tensor in passed.tensors):
            if value.shape == x.shape:
                return ""
            if _is(value, x, x.movedim(-1, 1)):
                return _words(i, probe, value, 1)
            if x.ndim == 5 and isinstance(module, nn.Conv2d) and _is(value, x, x.movedim(-1, 2).flatten(0, 1)):
                return _words(i, probe, value, 2)
    return ""


def _is(value: Tensor, x: Tensor, moved: Tensor) -> bool:
    """Whether a layer received the input with its channels moved: the same numbers, or, if these are scaled before, colors."""
    if value.shape != moved.shape:
        return False
    return value.equal(moved.to(value.dtype)) or x.shape[-1] <= _COLORS < min(x.shape[1:-1])


def _words(i: int, probe: Probe, value: Tensor, place: int) -> str:
    inputs = as_tuple(probe.inputs)
    name = f"the input {named(probe.places[i])}" if len(inputs) > 1 else "the input"
    seen = ", ".join(map(str, inputs[i].shape[1:]))
    found = (
        f"The first convolution takes {name} (N, {seen}) with its last dimension as channels, {tuple(value.shape[1:])}, but "
        f"explanations take dimension {place} for channels, so that maps, scores and pictures mislead; give "
    )
    to, back = f"movedim(-1, {place})", f"movedim({place}, -1)"
    if len(inputs) > 1:
        return f"{found}batch_fn=..., which applies .{to} to it, and forward_fn=..., which applies .{back} before the model."
    return f"{found}batch_fn=lambda b: (b[0].{to}, b[1]) and forward_fn=lambda model, x: model(x.{back})."
