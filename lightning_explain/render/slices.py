"""Volumes and their attributions in; pages with three slices through the strongest voxel, plain and with the map over them, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from lightning_explain.core.panels import Panel, VolumePanel
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.image import panel as image_panel
from lightning_explain.render.image import smooth
from lightning_explain.render.layout import BLACK, GRAY, LINE
from lightning_explain.render.notes import GAP, MARGIN, PITCH, TOP, Notes, Page, Track, scaled, write, write_label
from lightning_explain.render.page import HEIGHT, LETTERS, WIDTH
from lightning_explain.render.regions import outline

_BESIDE = 2
"""How many samples are side by side where tracks are compared."""
_LABELS = 124
_CELL, _SMALL = 160, 18
_CROSS, _EDGE = (0, 200, 90), (235, 235, 235)
"""The colors of the cross, and of the letters at the edges."""
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_PLANES = (("axial", "S", "A", "R"), ("coronal", "A", "S", "R"), ("sagittal", "R", "S", "A"))
"""By the convention of radiologists: the name of a slice, what its axis leads to, what is at the top, and what is at the left."""


class View(NamedTuple):
    """How slices across one axis are shown.

    Args:
        name: What they are called.
        fixed: The axis across which they lie.
        down: The axis that runs down.
        across: The axis that runs to the right.
        flipped: Whether each of these two runs the other way.
        edges: The letters at the top, right, bottom and left.
    """

    name: str
    fixed: int
    down: int
    across: int
    flipped: tuple[bool, bool] = (False, False)
    edges: tuple[str, str, str, str] = ("", "", "", "")

    def of(self, values: Tensor, index: int | None = None) -> Tensor:
        """The slice ``(h, w)`` of a volume ``(D, H, W)``; with no index, what is the strongest along the axis."""
        if index is None:
            place = values.abs().argmax(self.fixed, keepdim=True)
            values, index = values.gather(self.fixed, place), 0
        found = values.select(self.fixed, index)
        found = found if self.down < self.across else found.T
        return found.flip([axis for axis in (0, 1) if self.flipped[axis]])

    def place(self, voxel: Sequence[int], shape: Sequence[int]) -> tuple[float, float]:
        """Where the middle of a voxel lies, in parts of height and width."""
        places = [(voxel[axis] + 0.5) / shape[axis] for axis in (self.down, self.across)]
        down, across = (1 - at if flip else at for at, flip in zip(places, self.flipped, strict=True))
        return down, across


def views(orientation: str) -> list[View]:
    """The axial, coronal and sagittal view of a volume whose axes lead there; across each axis, if that is not known."""
    if not orientation:
        axes = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
        return [
            View(f"slice {'DHW'[f]}", f, d, a, edges=("", "", f"{'DHW'[a]} →", f"{'DHW'[d]} ↓")) for f, d, a in axes
        ]

    def axis(letter: str) -> int:
        return next(i for i, end in enumerate(orientation) if end in (letter, _OPPOSITE[letter]))

    found = []
    for name, through, top, left in _PLANES:
        down, across = axis(top), axis(left)
        flipped = orientation[down] == top, orientation[across] == left
        found.append(
            View(name, axis(through), down, across, flipped, (top, _OPPOSITE[left], _OPPOSITE[top], left)),
        )
    return found


def pages(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """A sample with three slices and a projection, plain and with the map over them; of several tracks, the slices of two samples."""
    assert isinstance(panel, VolumePanel)
    drawn = _Drawn(panel, tracks, [notes.scaled(track.values) for track in tracks], notes)
    several = len(tracks) > 1
    most = _BESIDE if several and notes.width == WIDTH else 1
    samples, draw = range(len(panel.values)), drawn.several if several else drawn.page
    return [partial(draw, samples[i : i + most]) for i in range(0, len(samples), most)]


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each sample alone, ``(N, h, w, 3)``: three slices and a projection, and below them the same with the map."""
    assert isinstance(panel, VolumePanel)
    weights, line, found = scaled(panel.values, "sample"), text.line_height(_SMALL), []
    for sample in range(len(panel.values)):
        shown = Shown(panel, sample, weights[sample])
        canvas = np.full((line + 2 * (_CELL + GAP), 4 * (_CELL + GAP), 3), 255, dtype=np.uint8)
        for row, mapped in enumerate((False, True)):
            for i, (name, picture) in enumerate(shown.pictures((_CELL, _CELL), _SMALL, mapped=mapped)):
                x, y = i * (_CELL + GAP), line + row * (_CELL + GAP)
                text.write(canvas, name, x, 0, _SMALL, BLACK)
                canvas[y : y + len(picture), x : x + picture.shape[1]] = picture
        found.append(canvas)
    return np.stack(found)


def resized(weights: Tensor, size: Sequence[int]) -> Tensor:
    """A map ``(d, h, w)``, zero where it is not finite, at the size of its input."""
    known = weights.nan_to_num(0.0).float()
    return known if known.shape == tuple(size) else interpolate(known[None, None], size, mode="trilinear")[0, 0]


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample of a panel with one map.

    Args:
        panel: The panel.
        sample: The number of the sample.
        weights: Its map in [-1, 1], ``(d, h, w)``, at any resolution.
        at: The voxel through which the slices go. Default: the strongest one.
    """

    panel: VolumePanel
    sample: int
    weights: Tensor
    at: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(D, H, W)``."""
        return tuple(self.panel.volume.shape[1:])

    @cached_property
    def map(self) -> Tensor:
        """The map ``(D, H, W)`` as it is drawn: smoothed, with the strongest place as strong as before."""
        known = resized(self.weights, self.shape)
        return smooth(known[None])[0] * known.abs().max()

    @cached_property
    def voxel(self) -> tuple[int, int, int]:
        """The voxel through which the slices go."""
        return self.at or strongest(self.map)

    def pictures(
        self, box: tuple[int, int], size: int, projected: bool = True, mapped: bool = True
    ) -> list[tuple[str, Picture]]:
        """The slices, and the projection along the first axis, with their names; of one scale, none larger than the box.

        ``mapped``: with the map over them, and a cross where they meet.
        """
        found, gray = list[tuple[str, Picture]](), self.panel.volume[self.sample]
        seen, drawn = views(self.panel.orientation), self.map if mapped else torch.zeros_like(self.map)
        for view, fitted in zip(seen, self._sizes(seen, box), strict=True):
            index, masks = self.voxel[view.fixed], self.panel.masks
            inside = None if masks is None else view.of(masks[self.sample], index)
            picture = overlay(view.of(gray, index), view.of(drawn, index), fitted, inside)
            self._mark(picture, view, size, drawn)
            found.append((f"{view.name} {index + 1}/{self.shape[view.fixed]}", picture))
        if projected:
            first = seen[0]
            along = gray.mean(first.fixed, keepdim=True)
            picture = overlay(first.of(along, 0), first.of(drawn), found[0][1].shape[:2])
            self._mark(picture, first, size, drawn)
            found.append(("projection", picture))
        return found

    def _sizes(self, seen: Sequence[View], box: tuple[int, int]) -> list[tuple[int, int]]:
        """Height and width of each view in pixels; a millimeter is equally long in all."""
        lengths = [n * step for n, step in zip(self.shape, self.panel.spacing or (1.0,) * 3, strict=True)]
        scale = min(min(box[0] / lengths[view.down], box[1] / lengths[view.across]) for view in seen)
        return [(max(1, int(lengths[v.down] * scale)), max(1, int(lengths[v.across] * scale))) for v in seen]

    def _mark(self, picture: Picture, view: View, size: int, drawn: Tensor) -> None:
        """Draws a cross, open in the middle, where the slices meet, if there is a map, and the letters at the edges."""
        (height, width), (down, across) = picture.shape[:2], view.place(self.voxel, self.shape)
        y, x = min(int(down * height), height - 1), min(int(across * width), width - 1)
        if bool(self.weights.isfinite().any()) and bool(drawn.any()):
            reach = max(4, min(height, width) // 8)
            for part in (picture[: max(y - reach, 0), x], picture[y + reach :, x]):
                part[:] = _CROSS
            for part in (picture[y, : max(x - reach, 0)], picture[y, x + reach :]):
                part[:] = _CROSS
        line = text.line_height(size)
        for i, words in enumerate(view.edges if min(height, width) > 4 * line else ()):
            wide = text.width(words, size) + 2
            places = [(0, (width - wide) // 2), ((height - line) // 2, width - wide - 1)]
            places += [(height - line - 1, (width - wide) // 2), ((height - line) // 2, 1)]
            text.stamp(picture, words, places[i][1], places[i][0], size, _EDGE)


def strongest(values: Tensor) -> tuple[int, int, int]:
    """The place of the largest absolute value of a map ``(D, H, W)``."""
    d, h, w = np.unravel_index(int(values.abs().argmax()), tuple(values.shape))
    return int(d), int(h), int(w)


def overlay(image: Tensor, weights: Tensor, size: tuple[int, ...], mask: Tensor | None = None) -> Picture:
    """A map ``(h, w)`` over gray values ``(h, w)`` or colors ``(3, h, w)`` in [0, 1], as a picture of a size; masks are outlined."""
    colors = image.expand(3, *image.shape[-2:])[None].float()
    enlarged, spread = (_resized(part, size) for part in (colors, weights[None, None].float()))
    drawn = image_panel("blended_heat_map", "all", enlarged.clamp(0, 1), spread[:, 0].clamp(-1, 1))
    picture: Picture = np.ascontiguousarray(drawn[0].permute(1, 2, 0).numpy())
    if mask is not None:
        outline(picture[None], interpolate(mask[None, None].float(), size, mode="nearest")[0].bool())
    return picture


def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
    return interpolate(values, size, mode="bilinear", antialias=size[0] < values.shape[2] or size[1] < values.shape[3])


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What the pages show: a panel, its tracks, and these in [-1, 1]."""

    panel: VolumePanel
    tracks: Sequence[Track]
    weights: Sequence[Tensor]
    notes: Notes

    def page(self, samples: range) -> Picture:
        """The page of a sample: slices and projection, plain, and below them with the map."""
        (sample,), canvas = samples, self.notes.canvas()
        pitch, width = (self.notes.width - 2 * MARGIN) // 4, self.notes.width - 2 * MARGIN
        self.notes.title(canvas, sample, [self.tracks[0].values[sample]], MARGIN, TOP, width)
        top = TOP + (PITCH if self.notes.captions else 0)
        height = (HEIGHT - top - PITCH - MARGIN) // 2
        shown = Shown(self.panel, sample, self.weights[0][sample])
        for row, mapped in enumerate((False, True)):
            for k, (name, picture) in enumerate(
                shown.pictures((height - GAP, pitch - GAP), LETTERS - 4, mapped=mapped)
            ):
                x = MARGIN + k * pitch
                if not row:
                    write(canvas, name, x, top, GRAY, pitch - GAP)
                paste(canvas, picture, x, top + PITCH + row * height)
        return canvas

    def several(self, samples: range) -> Picture:
        """The page of these samples, side by side: slices where all tracks together are strongest, plain and of each track."""
        canvas = self.notes.canvas()
        width = (self.notes.width - _LABELS) // (_BESIDE if self.notes.width == WIDTH else 1)
        top = TOP + (2 * PITCH if self.notes.captions else 0)
        pitch = (HEIGHT - top - MARGIN) // (len(self.tracks) + 1)
        for k, label in enumerate([("volume",), *(track.label for track in self.tracks)]):
            write_label(canvas, label, top + k * pitch, pitch, _LABELS - GAP - MARGIN)
        box, each = (pitch - GAP, (width - 2 * GAP) // 3 - GAP), (width - 2 * GAP) // 3
        for i, sample in enumerate(samples):
            x = _LABELS + i * width
            maps = [track.values[sample] for track in self.tracks]
            self.notes.title_in_two_lines(canvas, sample, maps, (x, TOP), width - GAP)
            own = [Shown(self.panel, sample, weights[sample]) for weights in self.weights]
            at = strongest(torch.stack([shown.map.abs() for shown in own]).sum(0))
            rows = [(own[0], False), *((shown, True) for shown in own)]
            for k, (shown, mapped) in enumerate(rows):
                slices = replace(shown, at=at).pictures(box, LETTERS - 8, projected=False, mapped=mapped)
                for j, (_, picture) in enumerate(slices):
                    paste(canvas, picture, x + j * each, top + k * pitch)
        return canvas


def paste(canvas: Picture, picture: Picture, x: int, y: int) -> None:
    """Draws a picture in a frame, top left corner at (x, y)."""
    height, width = picture.shape[:2]
    canvas[y - 1 : y + height + 1, x - 1 : x + width + 1] = LINE
    canvas[y : y + height, x : x + width] = picture
