"""Spectrograms and their attributions in; pages with both, low frequencies at the bottom, and axes in Hz and seconds, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_explain.core.panels import Panel, SeriesPanel, SpectrogramPanel
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.color import table
from lightning_explain.render.image import smooth, to_bytes
from lightning_explain.render.layout import GRAY
from lightning_explain.render.notes import GAP, MARGIN, PITCH, TOP, Notes, Page, Track, scaled, write_label
from lightning_explain.render.page import HEIGHT, LETTERS, WIDTH
from lightning_explain.render.series import time_axis
from lightning_explain.render.slices import overlay, paste

_COLUMNS, _LABELS, _TICKS = 2, 124, 72
_CELL, _SMALL = (110, 320), 16
_COLORS = "magma"


def pages(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """Two samples side by side, or one on narrow pages, with the map of each track; of a single one, below the spectrogram."""
    assert isinstance(panel, SpectrogramPanel)
    drawn = _Drawn(panel, tracks, [notes.scaled(track.values) for track in tracks], notes)
    samples, most = range(len(panel.values)), drawn.columns
    return [partial(drawn.page, samples[i : i + most]) for i in range(0, len(samples), most)]


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each sample alone, ``(N, h, w, 3)``: the spectrogram, and the map over it."""
    assert isinstance(panel, SpectrogramPanel)
    weights, line, found = scaled(panel.values, "sample"), text.line_height(_SMALL), []
    (height, width), left = _CELL, text.width("100k Hz", _SMALL)
    for sample in range(len(panel.values)):
        canvas = np.full((2 * (height + line), left + width, 3), 255, dtype=np.uint8)
        for i, picture in enumerate((spectrogram(panel, sample, _CELL), mapped(panel, sample, weights[sample], _CELL))):
            y = line // 2 + i * (height + line)
            canvas[y : y + height, left:] = picture
            frequencies(canvas, panel, (left, y), height, _SMALL)
        found.append(canvas)
    return np.stack(found)


def spectrogram(panel: SpectrogramPanel, sample: int, size: tuple[int, int]) -> Picture:
    """The spectrogram of a sample in colors, ``(h, w, 3)``."""
    values = interpolate(panel.image[sample][None, None], size, mode="bilinear", antialias=True)[0, 0]
    found: Picture = to_bytes(table(_COLORS)).numpy()[(values.clamp(0, 1) * 255).round().long().numpy()]
    return found


def mapped(panel: SpectrogramPanel, sample: int, weights: Tensor, size: tuple[int, int]) -> Picture:
    """A map in [-1, 1] over the gray spectrogram: smoothed, and as strong as it is among all samples."""
    known = weights.nan_to_num(0.0).float()
    shown = smooth(known[None])[0] * known.abs().max() if bool(known.any()) else known
    return overlay(panel.image[sample] * 0.8, shown, size)


def frequencies(canvas: Picture, panel: SpectrogramPanel, place: tuple[int, int], height: int, size: int) -> None:
    """The numbers of the axis of frequencies at the left of a picture, as far as they do not overlap; the unit is beside the highest."""
    (x, y), line, taken = place, text.line_height(size), list[int]()
    order = sorted(panel.ticks)
    for place_, words in [*order[:1], *order[-1:], *order[1:-1]]:
        at = y + min(round(place_ * height), height - 1)
        if any(abs(at - other) < line for other in taken):
            continue
        taken.append(at)
        canvas[at, x - 5 : x] = GRAY
        shown = f"{words} {panel.unit}" if panel.unit and (place_, words) == order[0] else words
        text.write(canvas, shown, x - 7 - text.width(shown, size), at - line // 2, size, GRAY)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What the pages show: a panel, its tracks, and these in [-1, 1]."""

    panel: SpectrogramPanel
    tracks: Sequence[Track]
    weights: Sequence[Tensor]
    notes: Notes

    @property
    def columns(self) -> int:
        """How many samples are side by side."""
        return _COLUMNS if self.notes.width == WIDTH else 1

    def page(self, samples: range) -> Picture:
        """The page of these samples."""
        canvas, several = self.notes.canvas(), len(self.tracks) > 1
        left = _LABELS + (_TICKS if several else 0)
        width = (self.notes.width - left) // self.columns
        top = TOP + (2 * PITCH if self.notes.captions else 0)
        rows = len(self.tracks) + 1
        pitch = (HEIGHT - top - PITCH - MARGIN) // rows
        size = (pitch - 2 * GAP, width - 2 * GAP)
        for i, sample in enumerate(samples):
            x = left + i * width
            self.notes.title_in_two_lines(
                canvas, sample, [t.values[sample] for t in self.tracks], (x, TOP), width - GAP
            )
            pictures = [mapped(self.panel, sample, weights[sample], size) for weights in self.weights]
            for k, picture in enumerate([spectrogram(self.panel, sample, size), *pictures]):
                paste(canvas, picture, x, top + k * pitch)
                if i == 0:
                    frequencies(canvas, self.panel, (x, top + k * pitch), size[0], LETTERS - 4)
            axis = SeriesPanel(
                "", torch.empty(0), series=torch.empty(1, 1, self.panel.image.shape[2]), rate=self.panel.rate
            )
            time_axis(canvas, axis, (x, top + rows * pitch - GAP), size[1])
        for k, label in enumerate([("input",), *(track.label for track in self.tracks)] if several else ()):
            write_label(canvas, label, top + k * pitch, pitch, _LABELS - GAP - MARGIN)
        return canvas
