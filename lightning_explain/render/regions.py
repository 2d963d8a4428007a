"""Pictures and the places of a segmentation in; pictures with the explained pixels, the prediction and the label drawn on them, out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from lightning_explain.core.regions import EXPLAINED, LABELLED, PREDICTED, masks_of

LABEL_COLOR, OUTLINE_COLOR, EDGE_COLOR = (0, 220, 100), (245, 245, 245), (20, 20, 20)
"""Green, and white with a black edge: no color of maps, and none that looks like a stronger or a weaker place of one."""
LABEL_INK, PREDICTION_INK = (0, 140, 90), (20, 20, 20)
"""What the lines are called is written in these colors, legible on white."""


def marked(pixels: NDArray[np.uint8], regions: Tensor) -> NDArray[np.uint8]:
    """Images ``(N, h, w, 3)`` with a thin line around the prediction, and one just inside of the label.

    Args:
        pixels: The images.
        regions: The bytes of their places, ``(N, *places)``.
    """
    predicted, labelled = (masks_of(regions, bit, pixels.shape[1:3]) for bit in (PREDICTED, LABELLED))
    found = pixels.copy()
    outline(found, predicted)
    found[(_grown(~labelled, 1) & labelled).numpy()] = LABEL_COLOR
    return found


def contoured(pixels: NDArray[np.uint8], regions: Tensor) -> NDArray[np.uint8]:
    """Images ``(N, h, w, 3)`` with a thin line around the explained pixels."""
    found = pixels.copy()
    outline(found, masks_of(regions, EXPLAINED, pixels.shape[1:3]))
    return found


def outline(pixels: NDArray[np.uint8], masks: Tensor) -> None:
    """Draws a white line with a black edge around masks ``(N, h, w)``, on images ``(N, h, w, 3)``, in place."""
    line = _grown(masks, 1)
    pixels[(_grown(masks, 2) & ~line).numpy()] = EDGE_COLOR
    pixels[(line & ~masks).numpy()] = OUTLINE_COLOR


def _grown(masks: Tensor, by: int) -> Tensor:
    """Masks ``(N, h, w)`` that reach so many pixels farther."""
    return max_pool2d(masks[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0
