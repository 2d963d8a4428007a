"""Videos and their attributions in; pages with the most attributed frames, and how much lies on each frame, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_explain.core.panels import FramesPanel, Panel
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.image import smooth
from lightning_explain.render.layout import BLACK, GRAY, LINE
from lightning_explain.render.notes import (
    GAP,
    MARGIN,
    PITCH,
    TOP,
    Notes,
    Page,
    Track,
    scaled,
    write,
    write_label,
    write_right,
)
from lightning_explain.render.page import HEIGHT, WIDTH
from lightning_explain.render.slices import overlay, paste, resized

_BESIDE, _FRAMES, _FEWER = 2, 6, 3
"""How many samples are side by side where tracks are compared, the most frames of a sample, and of each sample there."""
_LABELS, _CURVE, _LEAST = 124, 40, 0.01
_CELL, _SMALL = 110, 16


def pages(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """A sample with its frames, the map over them, and how much lies on each; of several tracks, those of two samples."""
    assert isinstance(panel, FramesPanel)
    drawn = _Drawn(panel, tracks, [notes.scaled(track.values) for track in tracks], notes)
    several = len(tracks) > 1
    most = _BESIDE if several and notes.width == WIDTH else 1
    samples, draw = range(len(panel.values)), drawn.several if several else drawn.page
    return [partial(draw, samples[i : i + most]) for i in range(0, len(samples), most)]


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each sample alone, ``(N, h, w, 3)``: its frames, and the map over them."""
    assert isinstance(panel, FramesPanel)
    weights, line, found = scaled(panel.values, "sample"), text.line_height(_SMALL), []
    count = min(_FRAMES, panel.values.shape[1])
    for sample in range(len(panel.values)):
        shown = Shown(panel, sample, weights[sample])
        chosen, (height, width) = shown.strongest(count), shown.fitted((_CELL, _CELL))
        canvas = np.full((2 * height + line + GAP, count * (width + GAP), 3), 255, dtype=np.uint8)
        for i, frame in enumerate(chosen):
            x = i * (width + GAP)
            text.write(canvas, shown.name(frame), x, 0, _SMALL, BLACK)
            canvas[line : line + height, x : x + width] = shown.colors(frame, (height, width))
            canvas[line + height + GAP :, x : x + width] = shown.picture(frame, (height, width))
        found.append(canvas)
    return np.stack(found)


def strongest(strengths: Tensor, most: int) -> list[int]:
    """The indices of the largest of some numbers ``(T,)``, in their order; among those that are hardly any, evenly spaced ones."""
    order: list[int] = strengths.argsort(descending=True, stable=True).tolist()
    found = [i for i in order if strengths[i] > _LEAST * strengths.max()][:most]
    others = [i for i in range(len(order)) if i not in found]
    spaced = torch.linspace(0, len(others) - 1, min(most - len(found), len(others))).round().long().tolist()
    return sorted([*found, *(others[i] for i in spaced)])


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample of a panel with one map.

    Args:
        panel: The panel.
        sample: The number of the sample.
        weights: Its map in [-1, 1], ``(t, h, w)``, at any resolution.
    """

    panel: FramesPanel
    sample: int
    weights: Tensor

    @cached_property
    def known(self) -> Tensor:
        """The map ``(T, H, W)``, zero where it is not finite."""
        return resized(self.weights, self.panel.values.shape[1:])

    @cached_property
    def by_frame(self) -> Tensor:
        """How much of the absolute map lies on each frame, ``(T,)``."""
        return self.known.abs().sum((1, 2))

    def strongest(self, most: int) -> list[int]:
        """The frames on which most of the map lies, in their order; among those on which hardly anything lies, evenly spaced ones."""
        return strongest(self.by_frame, most)

    def name(self, frame: int) -> str:
        """Its time, or its number from 1."""
        return f"{frame / self.panel.rate:.2f} s" if self.panel.rate else f"frame {frame + 1}"

    def fitted(self, box: tuple[int, int]) -> tuple[int, int]:
        """The largest size in the box that has the proportions of a frame."""
        size = self.panel.values.shape[2:]
        scale = min(most / length for most, length in zip(box, size, strict=True))
        height, width = (max(1, int(length * scale)) for length in size)
        return height, width

    def picture(self, frame: int, size: tuple[int, int]) -> Picture:
        """The map over a frame: smoothed, and as strong as it is among all frames."""
        weights = self.known[frame]
        if bool(weights.any()):
            weights = smooth(weights[None])[0] * (weights.abs().max() / self.known.abs().max())
        masks = self.panel.masks
        return overlay(
            self.panel.frames[self.sample, frame], weights, size, None if masks is None else masks[self.sample, frame]
        )

    def colors(self, frame: int, size: tuple[int, int]) -> Picture:
        """A frame as it is."""
        image = interpolate(self.panel.frames[self.sample, frame][None], size, mode="bilinear", antialias=True)[0]
        found: Picture = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return found

    def curve(self, canvas: Picture, chosen: Sequence[int], place: tuple[int, int], width: int) -> None:
        """Draws a bar for each frame, as high as what lies on it; those of the chosen ones are black."""
        (x, y), count = place, len(self.by_frame)
        canvas[y + _CURVE, x : x + width] = LINE
        heights = (self.by_frame / self.by_frame.max().clamp(min=1e-30) * (_CURVE - 2)).round().int().tolist()
        for frame, height in enumerate(heights):
            left, right = x + frame * width // count, max(x + (frame + 1) * width // count - 1, x + 1)
            canvas[y + _CURVE - height : y + _CURVE, left:right] = BLACK if frame in chosen else (170, 170, 170)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What the pages show: a panel, its tracks, and these in [-1, 1]."""

    panel: FramesPanel
    tracks: Sequence[Track]
    weights: Sequence[Tensor]
    notes: Notes

    def page(self, samples: range) -> Picture:
        """The page of a sample."""
        (sample,), canvas, width = samples, self.notes.canvas(), self.notes.width - 2 * MARGIN
        pitch, count = width // _FRAMES, min(_FRAMES, self.panel.values.shape[1])
        shown = Shown(self.panel, sample, self.weights[0][sample])
        self.notes.title(canvas, sample, [self.tracks[0].values[sample]], MARGIN, TOP, width)
        top, chosen = TOP + (PITCH if self.notes.captions else 0), shown.strongest(count)
        below = HEIGHT - _CURVE - PITCH - MARGIN
        size = shown.fitted(((below - top - PITCH) // 2 - 2 * GAP, pitch - GAP))
        for k, frame in enumerate(chosen):
            x = MARGIN + k * pitch
            write(canvas, shown.name(frame), x, top, GRAY, pitch - GAP)
            paste(canvas, shown.colors(frame, size), x, top + PITCH)
            paste(canvas, shown.picture(frame, size), x, top + PITCH + size[0] + GAP)
        y = top + PITCH + 2 * (size[0] + GAP) + GAP
        shown.curve(canvas, chosen, (MARGIN, y), width)
        first, last = shown.name(0), shown.name(len(shown.by_frame) - 1)
        write(canvas, f"{first}: how much lies on each frame", MARGIN, y + _CURVE + 3)
        write_right(canvas, last, MARGIN + width, y + _CURVE + 3)
        return canvas

    def several(self, samples: range) -> Picture:
        """The page of these samples, side by side, with the frames that are the strongest ones over all tracks, plain and of each."""
        canvas = self.notes.canvas()
        width = (self.notes.width - _LABELS) // (_BESIDE if self.notes.width == WIDTH else 1)
        top = TOP + 2 * PITCH
        pitch, each = (HEIGHT - top - MARGIN) // (len(self.tracks) + 1), (width - 2 * GAP) // _FEWER
        for k, label in enumerate([("video",), *(track.label for track in self.tracks)]):
            write_label(canvas, label, top + k * pitch, pitch, _LABELS - GAP - MARGIN)
        for i, sample in enumerate(samples):
            x, each_of = _LABELS + i * width, [Shown(self.panel, sample, weights[sample]) for weights in self.weights]
            shares = [shown.by_frame / shown.by_frame.sum().clamp(min=1e-30) for shown in each_of]
            chosen = strongest(torch.stack(shares).sum(0), min(_FEWER, self.panel.values.shape[1]))
            maps, names = [track.values[sample] for track in self.tracks], ", ".join(map(each_of[0].name, chosen))
            names = names if self.panel.rate else "frames " + names.replace("frame ", "")
            self.notes.title_in_two_lines(canvas, sample, maps, (x, TOP), width - GAP, names)
            size = each_of[0].fitted((pitch - GAP, each - GAP))
            for j, frame in enumerate(chosen):
                pictures = [each_of[0].colors(frame, size), *(shown.picture(frame, size) for shown in each_of)]
                for k, picture in enumerate(pictures):
                    paste(canvas, picture, x + j * each, top + k * pitch)
        return canvas
