"""Attribution maps as tensors: from a layer's own shape to input space."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def upsample(layer_map: Tensor, size: tuple[int, ...]) -> Tensor:
    """A layer's map ``(N, C, h, w)`` at another resolution ``(N, C, *size)``, bilinear.

    The same as Captum's ``LayerAttribution.interpolate(map, size, "bilinear")``.
    """
    return F.interpolate(layer_map, size, mode="bilinear")


def to_input_space(found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A method's map, broadcastable to the inputs, or ``None`` if the map has no place in input space.

    A map shaped like the inputs stays as it is. A layer's map ``(N, C, h, w)`` is summed over its channels and
    upsampled to the one image input, ``(N, 1, H, W)``.
    """
    if len(found) == len(inputs) and all(m.shape == x.shape for m, x in zip(found, inputs, strict=True)):
        return found
    if len(found) == 1 and len(inputs) == 1 and found[0].ndim == inputs[0].ndim == 4 and min(found[0].shape[2:]) > 0:
        return (upsample(found[0].sum(1, keepdim=True), tuple(inputs[0].shape[2:])),)
    return None
