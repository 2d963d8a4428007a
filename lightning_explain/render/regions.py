"""Pictures and the places of a segmentation in; pictures with the explained pixels, the prediction and the label drawn on them, out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import max_pool2d

from lightning_explain.core.regions import EXPLAINED, LABELLED, PREDICTED, masks_of

LABEL_COLOR, PREDICTION_COLOR = (0, 140, 90), (200, 40, 150)
"""Green and purple: neither a color of maps, nor alike for the color-blind."""
_TINT = 0.4
_THICK = 2


def marked(pixels: NDArray[np.uint8], regions: Tensor) -> NDArray[np.uint8]:
    """Images ``(N, h, w, 3)``: explained pixels tinted, a line around the prediction, and one just inside of the label.

    Args:
        pixels: The images.
        regions: The bytes of their places, ``(N, *places)``.
    """
    explained, predicted, labelled = (
        masks_of(regions, bit, pixels.shape[1:3]) for bit in (EXPLAINED, PREDICTED, LABELLED)
    )
    found, inside = pixels.copy(), explained.numpy()
    found[inside] = ((1 - _TINT) * found[inside] + _TINT * np.array(PREDICTION_COLOR)).astype(np.uint8)
    found[(_grown(predicted, _THICK) & ~predicted).numpy()] = PREDICTION_COLOR
    found[(_grown(~labelled, _THICK) & labelled).numpy()] = LABEL_COLOR
    return found


def contoured(pixels: NDArray[np.uint8], regions: Tensor) -> NDArray[np.uint8]:
    """Images ``(N, h, w, 3)`` with a thin line around the explained pixels."""
    explained, found = masks_of(regions, EXPLAINED, pixels.shape[1:3]), pixels.copy()
    found[(_grown(explained, 1) & ~explained).numpy()] = PREDICTION_COLOR
    return found


def _grown(masks: Tensor, by: int) -> Tensor:
    """Masks ``(N, h, w)`` that reach so many pixels farther."""
    return max_pool2d(masks[:, None].float(), 2 * by + 1, 1, by)[:, 0] > 0
