"""Rows of panels in; pages of one fixed size, legible at the size at which dashboards show them first, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.captions import Caption
from lightning_explain.render.layout import AMBER, BLACK, GRAY, LINE, RED

WIDTH, HEIGHT = 700, 430
"""Twice the size at which TensorBoard shows a picture before anybody clicks, in pixels."""
NARROW = 500
"""The width of pages with at most two columns, legible at half of it: as MLflow shows them."""
LETTERS = 24
"""The size of letters; capital ones are 18 pixels high, 9 at half the size."""
COLUMNS, CHARTS, ROWS = 4, 3, 4
"""The most samples on a page of images, and of bar charts, which need space for names; and the most rows."""
MARGIN, _GAP, _LINE = 4, 6, 27
FOOT = _LINE + MARGIN
"""The height of the last line, which says what colors and scores mean, with the margin below it."""
_LEFT = 130  # for the names of rows
_NOTE = 58  # for the numbers beside a map
_LABEL_LINES = 3
LOW, HIGH = "-max", "+max"
"""The ends of the color bars of maps: the largest absolute value of each."""


@dataclass(frozen=True, eq=False)
class Row:
    """A panel for each sample.

    Args:
        label: Up to three lines of text to the left.
        score: What the scores are, if there is a line left for it.
        pixels: ``(N, h, w, 3)``, no larger than :meth:`Layout.box`; ``None`` for an empty row.
        largest: ``(N,)`` the largest absolute value of each map, which is the end of its color bar; NaN where the map is not finite.
        scores: ``(N,)`` a score of each map.
        colors: The 256 colors of the maps, for a color bar.
        sign: Which part of the maps they show.
        inks: The colors of the lines of ``label``; black for those that are left out.
        beside: Of each sample, the lines beside a panel that is no map; empty: none.
    """

    label: tuple[str, ...]
    score: str = ""
    pixels: NDArray[np.uint8] | None = None
    largest: Tensor | None = None
    scores: Tensor | None = None
    colors: Tensor | None = None
    sign: str = "all"
    inks: tuple[text.Color, ...] = ()
    beside: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Layout:
    """Where everything is on the pages of a report; nothing in it depends on what is written. In pixels.

    Args:
        samples: How many samples there are on all pages.
        charts: Whether the rows are bar charts.
        titles: Whether each column has its label and prediction.
        notes: Whether each map has numbers beside it, and each page space for a last line.
        width: Of a page: ``WIDTH``, or ``NARROW`` for at most two columns.
        beside: How many images each sample has side by side.
    """

    samples: int
    charts: bool = False
    titles: bool = True
    notes: bool = True
    width: int = WIDTH
    beside: int = 1

    @property
    def columns(self) -> int:
        """How many samples a page shows."""
        most = math.ceil((2 if self.width < WIDTH else CHARTS if self.charts else COLUMNS) / self.beside)
        return math.ceil(self.samples / math.ceil(self.samples / most))

    @property
    def top(self) -> int:
        """The y of the first row."""
        return MARGIN + (2 * _LINE + _GAP if self.titles else 0)

    @property
    def height(self) -> int:
        """The height of all rows together."""
        return HEIGHT - self.top - MARGIN - (FOOT if self.notes else 0)

    @property
    def pitch(self) -> int:
        """The distance from one column to the next."""
        return (self.width - _LEFT - MARGIN) // self.columns

    def box(self, rows: int = ROWS) -> tuple[int, int]:
        """Height and width of the largest panel that fits a page of so many rows."""
        beside = _NOTE if self.notes and not self.charts else 0
        return self.height // rows - _GAP, self.pitch - _GAP - beside

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """The largest size in the box that has the proportions of ``size``."""
        scale = min(most / length for most, length in zip(self.box(), size, strict=True))
        height, width = (max(1, int(length * scale)) for length in size)
        return height, width

    def pages(
        self, head: Sequence[str], captions: Sequence[Caption], rows: Sequence[Row], which: slice = slice(None)
    ) -> list[Picture]:
        """The pages of a picture; none without rows.

        Args:
            head: Up to two lines for the top left corner.
            captions: Of all samples.
            rows: Those that do not fit on a page are continued on further ones.
            which: Of all pages, those that are drawn.
        """
        parts = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        places = [(part, first) for part in parts for first in range(0, self.samples, self.columns)]
        return [self._page(head, captions, part, first) for part, first in places[which]]

    def count(self, rows: int) -> int:
        """How many pages so many rows take."""
        return math.ceil(rows / ROWS) * math.ceil(self.samples / self.columns)

    def _page(self, head: Sequence[str], captions: Sequence[Caption], rows: Sequence[Row], first: int) -> Picture:
        canvas = np.full((HEIGHT, self.width, 3), 255, dtype=np.uint8)
        if self.titles:
            for line, (words, color) in enumerate(zip(head, (BLACK, GRAY), strict=False)):
                _write(canvas, words, MARGIN, MARGIN + line * _LINE, _LEFT - _GAP, color)
        height = self.height // len(rows)
        shown = range(first, min(first + self.columns, self.samples))
        for i, row in enumerate(rows):
            self._write_label(canvas, row, self.top + i * height)
            for sample in shown if row.pixels is not None else ():
                self._paste(canvas, row, sample, self._column(sample - first), self.top + i * height)
        for sample in shown if self.titles else ():
            self._write_caption(canvas, captions[sample], self._column(sample - first))
        return canvas

    def _column(self, i: int) -> int:
        return _LEFT + i * self.pitch

    def _write_label(self, canvas: Picture, row: Row, y: int) -> None:
        for i, (words, ink) in enumerate(zip(row.label, (*row.inks, *[BLACK] * len(row.label)), strict=False)):
            _write(canvas, words, MARGIN, y + i * _LINE, _LEFT - _GAP, ink)
        if self.notes and row.largest is not None and len(row.label) < _LABEL_LINES:
            score = named(row.score, _LEFT - _GAP)
            _write(canvas, score, MARGIN, y + len(row.label) * _LINE, _LEFT - _GAP, GRAY)

    def _paste(self, canvas: Picture, row: Row, sample: int, x: int, y: int) -> None:
        assert row.pixels is not None
        panel = row.pixels[sample]
        height, width = panel.shape[:2]
        frame = canvas[y - 1 : y + height + 1, x - 1 : x + width + 1]
        frame[[0, -1]], frame[:, [0, -1]] = LINE, LINE
        canvas[y : y + height, x : x + width] = panel
        if (row.largest is None and not row.beside) or not self.notes:
            return
        lines = [(words, GRAY) for words in row.beside[sample]] if row.beside else _numbers(row, sample)
        x += width + _GAP
        for line, (words, color) in enumerate(lines):
            _write(canvas, words, x, y + line * _LINE, self.pitch - width - _GAP, color)

    def _write_caption(self, canvas: Picture, caption: Caption, x: int) -> None:
        short, space, color, below = caption.short, self.pitch - 2, RED if caption.wrong else BLACK, MARGIN + _LINE
        sign = ("✗" if caption.wrong else "✓") if short.judged else ""
        label = _beside(canvas, short.label, sign, x, MARGIN, space, color)
        # A name is cut rather than how probable it is.
        whole = text.width(f"{short.predicted} {short.share}", LETTERS) <= space
        share = short.share if whole or not short.predicted else short.share.lstrip(">")
        predicted = _beside(canvas, short.predicted, share, x, below, space, color)
        if short.explained:
            y, end = (below, label) if short.explained == "label" else (below + _LINE, predicted)
            canvas[y - 2 : y, x:end] = color


def _write(canvas: Picture, words: str, x: int, y: int, space: int, color: text.Color) -> None:
    text.write(canvas, text.shorten(words, LETTERS, space), x, y, LETTERS, color)


def _beside(canvas: Picture, name: str, after: str, x: int, y: int, space: int, color: text.Color) -> int:
    """Writes a name, shortened so that there is space for what stands after it; returns the x at which it ends."""
    gap = text.width(" ", LETTERS) if name and after else 0
    shown = text.shorten(name, LETTERS, space - gap - text.width(after, LETTERS)) if name else ""
    end = x + text.width(shown, LETTERS)
    text.write(canvas, shown, x, y, LETTERS, color)
    text.write(canvas, after, end + gap, y, LETTERS, color)
    return end


def _numbers(row: Row, sample: int) -> list[tuple[str, text.Color]]:
    assert row.largest is not None
    largest = float(row.largest[sample])
    if not math.isfinite(largest):
        return [("NaN", AMBER), ("/ inf", AMBER)]
    lines = [("max", BLACK), (brief(largest), BLACK)]
    if row.scores is not None and not math.isnan(score := float(row.scores[sample])):
        lines.append((brief(score), GRAY))
    return lines


def brief(value: float) -> str:
    """A number in at most four characters and a sign, as far as it can be: ``.031``, ``3.1``, ``310``, ``3e-5``.

    Example:
        >>> from lightning_explain.render.page import brief
        >>> [brief(value) for value in (0.0312, -0.5, 0, 31.2, 3120, 0.000031)]
        ['.031', '-.5', '0', '31', '3e3', '3e-5']
    """
    rounded = float(f"{value:.2g}")
    if value == 0 or 0.01 <= abs(rounded) < 1000:
        return f"{rounded:g}".replace("0.", ".", 1) if abs(rounded) < 1 else f"{rounded:g}"
    return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")


def fits_beside(words: str) -> bool:
    """Whether words are not cut at the left of a row."""
    return text.width(words, LETTERS) <= _LEFT - _GAP


def named(score: str, space: int) -> str:
    """As many of a score's words, from the first one, as fit in so many pixels: ``infidelity`` of ``infidelity_relative``."""
    words = score.split("_")
    shorter = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    return next((name for name in shorter if text.width(name, LETTERS) <= space), words[0])


def lines_of(name: str) -> tuple[str, ...]:
    """A name in up to two lines, broken before its target, or else at an underscore, where it is too long for one."""
    if text.width(name, LETTERS) <= _LEFT - _GAP or not ("_" in name or "@" in name):
        return (name,)
    if "@" in name:
        method, _, target = name.rpartition("@")
        return method, f"@{target}"
    breaks = [i for i, letter in enumerate(name) if letter == "_"]
    best = min(breaks, key=lambda i: abs(2 * i - len(name)))
    return name[:best], name[best + 1 :]
