"""Series and their attributions in; pages with a curve over a colored strip for each channel, and axes of values and time, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_explain.core.panels import Panel, SeriesPanel
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.layout import BLACK, GRAY, LINE
from lightning_explain.render.notes import GAP, MARGIN, PITCH, TOP, Notes, Page, Track, colors, scaled, write
from lightning_explain.render.page import HEIGHT, LETTERS, WIDTH, brief

_COLUMNS, _CHANNELS = 2, 4
"""The most samples side by side, and the most channels of each."""
_BIN = 3  # pixels of a colored strip, so that a short peak remains visible
_FINE = 3  # a pixel of a curve is the mean of so many squared
_LABELS = 124
_MARK = 5  # the length of the marks of an axis
_CELL, _CELL_HEIGHT = 320, 72
_DOT = 3.5  # the radius, in pixels, of what marks the explained step
_AHEAD, _FORECAST, _TRUE = (240, 240, 240), (0, 125, 90), (130, 130, 130)
"""The colors of what is ahead: of the ground, of the forecast, and of what it should be."""


def pages(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """Two samples side by side, or one on narrow pages, with up to four channels; or the strongest channel of each, a strip for each track.

    Series of one channel are twice as many on a page, above each other.
    """
    assert isinstance(panel, SeriesPanel)
    drawn = _Drawn(panel, tracks, [notes.scaled(track.values) for track in tracks], notes)
    samples, most = range(len(panel.series)), drawn.lines * drawn.columns
    return [partial(drawn.page, samples[i : i + most]) for i in range(0, len(samples), most)]


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each sample alone, ``(N, h, w, 3)``: its strongest channels in their order."""
    assert isinstance(panel, SeriesPanel)
    weights, pictures = scaled(panel.values, "sample"), []
    limits = _limits(panel)
    for i, series in enumerate(panel.series):
        shown = _strongest([weights[i : i + 1]], len(series), _CHANNELS)
        strips = [strip(series[c], _of_channel(weights[i], c), (_CELL_HEIGHT, _CELL), limits[c]) for c in shown]
        gap = np.full((GAP, _CELL, 3), 255, dtype=np.uint8)
        pictures.append(np.concatenate([part for each in strips for part in (each, gap)][:-1]))
    return np.stack(pictures)


def strip(
    series: Tensor,
    weights: Tensor,
    size: tuple[int, int],
    limits: tuple[float, float],
    ahead: tuple[Tensor, Tensor] | None = None,
    step: int | None = None,
) -> Picture:
    """The curve of one channel ``(T,)`` over the colors of its weights ``(t,)`` in [-1, 1], as a picture ``(h, w, 3)``.

    Args:
        series: The channel.
        weights: Its weights.
        size: Height and width of the picture.
        limits: The values at its lower and upper edge.
        ahead: What the series should become, and its forecast, each ``(H,)``; drawn at the right of the history.
        step: The step of the forecast that has a dot, because it is the one that is explained.
    """
    steps, none = len(series), series.new_empty(0)
    true, predicted = ahead or (none, none)
    past = round(size[1] * steps / (steps + len(predicted)))
    drawn = np.full((*size, 3), _AHEAD, dtype=np.float64)
    drawn[:, :past] = columns(weights, past)
    if ahead is not None:
        drawn[:, past : past + 2] = GRAY
    # From the last value of the history on.
    before, after = series.new_full((steps - 1,), torch.nan), series.new_full((len(predicted),), torch.nan)
    curves = [
        (torch.cat([before, series[-1:], part]), color) for part, color in ((true, _TRUE), (predicted, _FORECAST))
    ]
    for values, color in (*(curves if ahead else ()), (torch.cat([series, after]), BLACK)):
        opacity = _curve(values, size, limits)[..., None]
        drawn += (np.array(color) - drawn) * opacity
    if step is not None and len(predicted) > step and predicted[step].isfinite():
        _dot(drawn, ((steps + step + 0.5) / (steps + len(predicted)), _height(float(predicted[step]), limits)))
    found: Picture = drawn.round().astype(np.uint8)
    return found


def _dot(canvas: NDArray[np.float64], place: tuple[float, float]) -> None:
    """A dot with a white edge in the color of forecasts, at a place in parts of width and height."""
    down, across = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    far = np.hypot(across + 0.5 - place[0] * canvas.shape[1], down + 0.5 - place[1] * canvas.shape[0])
    for radius, color in ((_DOT + 1.5, (255, 255, 255)), (_DOT, _FORECAST)):
        canvas += (np.array(color) - canvas) * np.clip(radius + 0.5 - far, 0, 1)[..., None]


def _height(values: Any, limits: tuple[float, float]) -> Any:
    """Where values are between the upper edge, 0, and the lower one, 1."""
    return 0.94 - 0.88 * (values - limits[0]) / ((limits[1] - limits[0]) or 1.0)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What the pages show: a panel, its tracks, and these in [-1, 1]."""

    panel: SeriesPanel
    tracks: Sequence[Track]
    weights: Sequence[Tensor]
    notes: Notes

    @property
    def channels(self) -> int:
        return self.panel.series.shape[1]

    @property
    def columns(self) -> int:
        """How many samples are side by side: one on narrow pages."""
        return _COLUMNS if self.notes.width == WIDTH else 1

    @cached_property
    def axis(self) -> int:
        """The width of the numbers at the left of each strip, and of the marks beside them."""
        heights = range(2 * PITCH, HEIGHT, PITCH // 2)
        found = {
            exact(value) for limits in _limits(self.panel) for height in heights for value in ticks(limits, height)
        }
        return max((text.width(words, LETTERS) for words in found), default=0) + _MARK + 2

    @property
    def lines(self) -> int:
        """How many samples are above each other."""
        return 2 if self.channels == 1 and len(self.tracks) == 1 else 1

    def page(self, samples: range) -> Picture:
        """The page of these samples."""
        several, height = len(self.tracks) > 1, (HEIGHT - TOP) // self.lines
        width = (self.notes.width - _LABELS) // self.columns
        shown = _strongest([self.weights[-1][samples[0] : samples[-1] + 1]], self.channels, _CHANNELS)
        some = len(shown) < self.channels and not several
        canvas = replace(
            self.notes, when=f"{len(shown)} of {self.channels} channels" if some else self.notes.when
        ).canvas()
        for i, sample in enumerate(samples):
            x, y = _LABELS + i % self.columns * width, TOP + i // self.columns * height
            best = _strongest([each[sample : sample + 1] for each in self.weights], self.channels, 1)
            places = [(best[0], each[sample]) for each in self.weights]
            if not several:
                places = [(channel, self.weights[0][sample]) for channel in shown]
            maps = [track.values[sample] for track in self.tracks]
            name = self.panel.channels[best[0]] if several and self.channels > 1 else ""
            self.notes.title_in_two_lines(canvas, sample, maps, (x, y), width - GAP, name)
            top = y + (2 * PITCH if self.notes.captions or name else 0)
            pitch = (y + height - top - PITCH) // len(places)
            size = (pitch - GAP, width - 2 * GAP - self.axis)
            for k, (channel, weights) in enumerate(places):
                self._strip(canvas, sample, channel, weights, (x + self.axis, top + k * pitch), size)
                if i % self.columns == 0:
                    self._label(canvas, channel, k, top + k * pitch, size[0])
            time_axis(canvas, self.panel, (x + self.axis, top + pitch * len(places) - GAP), size[1])
        return canvas

    def _strip(
        self, canvas: Picture, sample: int, channel: int, weights: Tensor, place: tuple[int, int], size: tuple[int, int]
    ) -> None:
        x, y = place
        panel, limits = self.panel, _limits(self.panel)[channel]
        canvas[y - 1 : y + size[0] + 1, x - 1 : x + size[1] + 1] = LINE
        value_axis(canvas, limits, (x, y), size[0])
        ahead = None
        if panel.predicted is not None and panel.future is not None:
            ahead = panel.future[sample, channel], panel.predicted[sample, channel]
        series, step = panel.series[sample, channel], None if panel.explained is None else int(panel.explained[sample])
        canvas[y : y + size[0], x : x + size[1]] = strip(
            series, _of_channel(weights, channel), size, limits, ahead, step
        )

    def _label(self, canvas: Picture, channel: int, k: int, y: int, height: int) -> None:
        """The track, or the channel and what its curves are."""
        if len(self.tracks) > 1:
            for i, words in enumerate(self.tracks[k].label):
                write(canvas, words, MARGIN, y + i * PITCH, GRAY if i else BLACK, _LABELS - GAP - MARGIN)
            return
        name = self.panel.channels[channel] if self.panel.channels else str(channel)
        write(canvas, name, MARGIN, y, BLACK, _LABELS - GAP - MARGIN)
        lines = list[tuple[str, text.Color]]()
        if self.panel.predicted is not None and self.panel.predicted[:, channel].isfinite().any():
            lines = [("forecast", _FORECAST), ("true", _TRUE)]
        for i, (words, color) in enumerate(lines[: height // PITCH - 1], start=1):
            write(canvas, words, MARGIN, y + i * PITCH, color, _LABELS - GAP - MARGIN)


def _strongest(maps: Sequence[Tensor], channels: int, most: int) -> list[int]:
    """The channels with the largest attributions in maps ``(N, C, t)``, in their order; the first ones if no map tells channels apart."""
    strengths = [each.nan_to_num(0.0).abs().amax(2).mean(0) for each in maps if each.shape[1] == channels]
    if not strengths:
        return list(range(min(channels, most)))
    found: list[int] = sum(strengths).argsort(descending=True, stable=True)[:most].sort().values.tolist()  # type: ignore[union-attr]
    return found


def _of_channel(weights: Tensor, channel: int) -> Tensor:
    """The weights ``(T,)`` of one channel; of all of them, if the map ``(1, T)`` does not tell them apart."""
    return weights[channel if len(weights) > 1 else 0]


def _limits(panel: SeriesPanel) -> list[tuple[float, float]]:
    """The smallest and the largest value of each channel, with what is ahead."""
    parts = [part for part in (panel.series, panel.predicted, panel.future) if part is not None]
    known = torch.cat(parts, 2).double().nan_to_num(torch.nan, torch.nan, torch.nan)
    low, high = known.nan_to_num(torch.inf).amin((0, 2)), known.nan_to_num(-torch.inf).amax((0, 2))
    return [(a, b) if a <= b else (0.0, 0.0) for a, b in zip(low.tolist(), high.tolist(), strict=True)]


def columns(weights: Tensor, width: int) -> Picture:
    """The colors of the columns of a strip ``(w, 3)``; where several times share one, the strongest counts."""
    bins, times = max(1, width // _BIN), len(weights)
    known = weights.nan_to_num(0.0).float()
    if times > bins:
        high, low = _extremes(known, bins)
        known = torch.where(high >= -low, high, low)
    return colors(known)[np.arange(width) * len(known) // width]


def _extremes(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The largest and the smallest of the values ``(T,)`` in each of so many parts, at most T."""
    at, none = torch.arange(len(values)) * bins // len(values), torch.zeros(bins, dtype=values.dtype)
    high, low = (none.scatter_reduce(0, at, values, how, include_self=False) for how in ("amax", "amin"))
    return high, low


def _curve(series: Tensor, size: tuple[int, int], limits: tuple[float, float]) -> NDArray[np.float64]:
    """The opacity ``(h, w)`` of a curve; where many times share a pixel, it goes from the smallest to the largest of them."""
    values = series.double()
    if len(values) > 4 * size[1]:
        values = torch.stack(_extremes(values, size[1]), 1).flatten()
    return _painted(values.numpy().tobytes(), size, limits) / (255 * _FINE**2)


@lru_cache(maxsize=256)
def _painted(series: bytes, size: tuple[int, int], limits: tuple[float, float]) -> NDArray[np.uint16]:
    """The opacities of the curve of float64 numbers, as whole numbers; each method and each epoch shows the same curves."""
    height, width = (length * _FINE for length in size)
    values = np.frombuffer(series)
    x = (np.arange(len(values)) + 0.5) / len(values) * width
    y = height * _height(values, limits)
    canvas = Image.new("L", (width, height))
    draw = ImageDraw.Draw(canvas)
    # One call for all lines between neighbors of which both are finite.
    known = np.flatnonzero(np.isfinite(y))
    for part in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        draw.line(np.stack([x[part], y[part]], 1).ravel().tolist(), fill=255, width=round(1.7 * _FINE))
    # Several times as fast as the mean over parts of an array.
    fine, parts = np.asarray(canvas, dtype=np.uint16), [slice(i, None, _FINE) for i in range(_FINE)]
    whole: NDArray[np.uint16] = np.add.reduce(
        [fine[down, across] for down in parts for across in parts], dtype=np.uint16
    )
    return whole


def ticks(limits: tuple[float, float], height: int) -> list[float]:
    """Up to three round numbers between limits, as far apart as their letters need in so many pixels; the lower limit if there are none."""
    span = limits[1] - limits[0]
    if not span > 0 or not math.isfinite(span):
        return [limits[0]]
    exponent, few = math.floor(math.log10(span)), [limits[0]]
    for step in (
        m * 10.0**e for group in ((1, 2, 5), (4,)) for e in (exponent - 1, exponent, exponent + 1) for m in group
    ):
        first, last = math.ceil(limits[0] / step - 1e-9), math.floor(limits[1] / step + 1e-9)
        apart = height * (_height(limits[0], limits) - _height(limits[0] + step, limits))
        found = [i * step for i in range(first, last + 1)] if last - first < 3 else []
        if len(found) > 1 and apart >= LETTERS - 4:
            return found
        few = found if len(found) == 1 else few
    return few


def exact(value: float) -> str:
    """A number of an axis: brief, unless that rounds it."""
    words = brief(value)
    return words if math.isclose(float(words), value, rel_tol=1e-6) else f"{value:.4g}"


def value_axis(canvas: Picture, limits: tuple[float, float], place: tuple[int, int], height: int) -> None:
    """Marks at round values at the left of a strip, and these numbers."""
    (x, y), line = place, text.line_height(LETTERS)
    for value in ticks(limits, height):
        at = y + min(max(round(height * _height(value, limits)), 0), height - 1)
        canvas[at, x - 1 - _MARK : x - 1] = GRAY
        words = exact(value)
        top = min(max(at - line // 2, y - GAP), y + height - line + GAP)
        write(canvas, words, x - 3 - _MARK - text.width(words, LETTERS), top)


def time_axis(canvas: Picture, panel: SeriesPanel, place: tuple[int, int], width: int, before: bool = False) -> None:
    """Times in round numbers below a strip: in seconds, or in steps if the rate is not known; ``before``: counted back from its end."""
    (x, y), end = place, place[0] + width
    steps = panel.series.shape[2] + (0 if panel.predicted is None else panel.predicted.shape[2])
    total = steps / panel.rate if panel.rate else float(steps)
    unit = " s" if panel.rate else " steps"
    exponent = math.floor(math.log10(total / 2))
    round_one = max(m * 10.0**e for e in (exponent - 1, exponent) for m in (1, 2, 5) if m * 10.0**e <= total / 2)
    count = int(total / round_one + 1e-9)
    free = end
    for i in range(count, -1, -1):
        far = min(round(i * round_one / total * width), width - 1)
        at = end - 1 - far if before else x + far
        canvas[y : y + 5, at] = GRAY
        number = f"{'-' * (before and i > 0)}{i * round_one:.6g}"
        words = number + (unit if i == count and not before else "")
        start = at if i == 0 else at - text.width(number, LETTERS) // 2
        start = max(min(start, end - text.width(words, LETTERS)), x)
        # The unit, which is beside the last number, may take the space of the one before.
        if before or i == count or start + text.width(words, LETTERS) + GAP <= free:
            write(canvas, words, start, y + 3)
            free = start
