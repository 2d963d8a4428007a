"""Labelled and detected boxes in; images with these boxes drawn on them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.probe import Probe

Color: TypeAlias = "tuple[int, int, int]"
LABELLED: Color = (255, 220, 0)
EXPLAINED: Color = (0, 200, 255)
INKS: dict[Color, tuple[str, Color]] = {LABELLED: ("label", (140, 105, 0)), EXPLAINED: ("predicted", (0, 115, 165))}
"""What the boxes of a color are called, and a darker one, legible on white."""
_DASH = 6
_EDGE: Color = (0, 0, 0)
EDGES = ("left", "top", "right", "bottom")
"""What a report says of the explained box."""


def of_samples(explained: Mapping[str, Tensor], probe: Probe, samples: slice) -> tuple[tuple[Tensor, Color], ...]:
    """The boxes of some samples, ``(N, M, 4)`` each, with their colors: those of all labels, and over them the explained one, in dashes."""
    if any(name not in explained for name in EDGES):
        return ()
    chosen = torch.stack([explained[name][samples].float() for name in EDGES], 1)[:, None]
    labelled = [] if probe.targets is None else [(probe.targets[samples, :, :4].cpu(), LABELLED)]
    return (*labelled, (chosen.cpu(), EXPLAINED))


def drawn(pixels: NDArray[np.uint8], boxes: Sequence[tuple[Tensor, Color]], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Images ``(N, h, w, 3)`` with boxes ``(N, M, 4)``, which are in pixels of images of another size ``(H, W)``."""
    pixels = pixels.copy()
    height, width = pixels.shape[1:3]
    scale = torch.tensor([width / size[1], height / size[0]] * 2)
    for found, color in boxes:
        for image, own in zip(pixels, found.float(), strict=True):
            for box in own[(own[:, 2] > own[:, 0]) & (own[:, 3] > own[:, 1])]:
                left, top, right, bottom = (box * scale).round().long().tolist()
                framed = image.copy()
                _frame(framed, (left - 1, top - 1, right + 1, bottom + 1), _EDGE, 1)
                _frame(framed, (left, top, right, bottom), color, 2)
                shown = _dashes(image.shape[:2]) if color == EXPLAINED else ...
                image[shown] = framed[shown]
    return pixels


def _dashes(size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where lines on an image ``(h, w)`` are drawn, so that a line below them is seen, too."""
    found: NDArray[np.bool_] = np.add.outer(*map(np.arange, size)) // _DASH % 2 == 0
    return found


def _frame(image: NDArray[np.uint8], box: tuple[int, int, int, int], color: Color, width: int) -> None:
    """Draws a rectangle into an image ``(h, w, 3)``; what lies outside is left out."""
    left, top, right, bottom = box
    for rows, columns in (
        ((top, top + width), (left, right)),
        ((bottom - width, bottom), (left, right)),
        ((top, bottom), (left, left + width)),
        ((top, bottom), (right - width, right)),
    ):
        image[max(rows[0], 0) : max(rows[1], 0), max(columns[0], 0) : max(columns[1], 0)] = color
