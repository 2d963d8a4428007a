"""Places of a segmentation in one byte each (explained? predicted? labelled?) in; masks of these at the size of an input, out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate

EXPLAINED, PREDICTED, LABELLED = 1, 2, 4
"""The bits of a place: it is explained; it is predicted as the explained class; it is labelled as that."""
NAME = "region"
"""The name of such bytes in ``Report.explained``."""


def packed(explained: Tensor, predicted: Tensor, labelled: Tensor | None) -> Tensor:
    """Boolean tensors of one shape as the bytes of their places, uint8."""
    found = explained.byte() * EXPLAINED | predicted.byte() * PREDICTED
    return found if labelled is None else found | labelled.byte() * LABELLED


def masks_of(regions: Tensor, bit: int, size: tuple[int, ...] | torch.Size) -> Tensor:
    """The places ``(N, *places)`` with this bit as masks ``(N, *size)``: each pixel has what the nearest place has."""
    inside = (regions & bit) > 0
    if inside.shape[1:] == tuple(size):
        return inside
    return interpolate(inside[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].bool()


def label_masks(explained: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor | None:
    """Where each sample is labelled as its explained class, ``(N, *places)`` of the first input with as many dimensions.

    Args:
        explained: What is known of the explained outputs, as in ``Report.explained``.
        inputs: The inputs, ``(N, C, *places)``.

    Returns:
        ``None`` if that is not known.
    """
    regions = explained.get(NAME)
    if regions is None or "overlap" not in explained:
        return None
    sizes = (x.shape[2:] for x in inputs if x.ndim == regions.ndim + 1)
    return next((masks_of(regions, LABELLED, size) for size in sizes), None)
