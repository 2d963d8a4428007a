"""Captions, headers and panel size in; the page of one method's picture, and the pixel positions on it, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_explain.core.report import Picture, Report
from lightning_explain.render import letters as text
from lightning_explain.render.captions import Caption

GAP = 8
MARGIN = 12
BODY, HEADING, SMALL = 13, 18, 11
BLACK, GRAY, RED, AMBER, LINE = (20, 20, 20), (105, 105, 105), (190, 20, 40), (150, 85, 0), (190, 190, 190)
_WIDEST_TITLE = 170
_NARROWEST = 84
_NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Sheet:
    """The layout of one picture: one row per sample, one column per panel; all positions and sizes are in pixels.

    Args:
        rows: Number of rows.
        titles: One caption per row; empty for a picture without titles.
        headers: The lines of text above each column.
        size: ``(h, w)`` of the largest panel.
        note: A line of text below the name.
        right: Width kept free to the right of the columns.
    """

    rows: int
    titles: tuple[Caption, ...]
    headers: tuple[tuple[str, ...], ...]
    size: tuple[int, int]
    note: str = ""
    right: int = 0

    @property
    def cell(self) -> int:
        """The width of a column."""
        return max(self.size[1], _NARROWEST)

    @cached_property
    def left(self) -> int:
        """The x at which the first column begins."""
        widest = max((text.width(line, BODY) for c in self.titles for line in (*c.lines, _NOT_FINITE)), default=0)
        return MARGIN + (GAP + widest + 2 * GAP if self.titles else 0)

    def column(self, i: int) -> int:
        """The x at which column i begins; for i = number of columns, where the space kept free begins."""
        return self.left + i * (self.cell + GAP)

    def row(self, i: int) -> int:
        """The y at which row i begins."""
        return self.top + i * self.pitch

    @property
    def header_top(self) -> int:
        """The y at which the headers begin."""
        return MARGIN + text.line_height(HEADING) + (text.line_height(SMALL) if self.note else 0) + GAP // 2

    @cached_property
    def top(self) -> int:
        """The y at which the first row begins."""
        return self.header_top + max(map(len, self.headers)) * text.line_height(BODY) + GAP // 2

    @cached_property
    def pitch(self) -> int:
        """The distance from one row to the next; titles have room for the line "not finite"."""
        lines = 1 + max(map(len, (c.lines for c in self.titles)), default=0) if self.titles else 0
        return max(self.size[0], lines * text.line_height(BODY)) + GAP

    def page(self, name: str, finite: Sequence[bool]) -> Picture:
        """A white page with name, note, headers and titles, but without the panels.

        Args:
            name: The method's name.
            finite: For each row whether its map is finite; other rows are marked.
        """
        width = self.column(len(self.headers)) + self.right - GAP + MARGIN
        canvas = np.full((self.top + self.rows * self.pitch - GAP + MARGIN, width, 3), 255, dtype=np.uint8)
        self._write_header(canvas, name)
        self._write_titles(canvas, finite)
        return canvas

    def paste(self, canvas: Picture, pixels: NDArray[np.uint8], column: int) -> None:
        """Draws the panels ``(rows, h, w, 3)`` of one column on a page, each in a frame."""
        height, width = pixels.shape[1:3]
        x = self.column(column) + (self.cell - width) // 2
        for i, panel in enumerate(pixels):
            y = self.row(i)
            # The frame shows where a white panel ends.
            frame = canvas[y - 1 : y + height + 1, x - 1 : x + width + 1]
            frame[[0, -1]], frame[:, [0, -1]] = LINE, LINE
            canvas[y : y + height, x : x + width] = panel

    def _write_header(self, canvas: Picture, name: str) -> None:
        space = canvas.shape[1] - 2 * MARGIN
        text.write(canvas, text.shorten(name, HEADING, space), MARGIN, MARGIN - 2, HEADING, BLACK)
        below = MARGIN + text.line_height(HEADING) - 2
        text.write(canvas, text.shorten(self.note, SMALL, space), MARGIN, below, SMALL, GRAY)
        most = max(map(len, self.headers))
        for i, lines in enumerate(self.headers):
            for j, line in enumerate(lines, start=most - len(lines)):
                x = self.column(i) + (self.cell - text.width(line, BODY)) // 2
                text.write(canvas, line, x, self.header_top + j * text.line_height(BODY), BODY, BLACK)

    def _write_titles(self, canvas: Picture, finite: Sequence[bool]) -> None:
        for i, caption in enumerate(self.titles):
            y = self.row(i)
            if caption.wrong:
                canvas[y : y + self.pitch - GAP, MARGIN : MARGIN + 3] = RED
            lines = [(line, RED if caption.wrong else BLACK) for line in caption.lines]
            if not finite[i]:
                lines.append((_NOT_FINITE, AMBER))
            for j, (line, color) in enumerate(lines):
                text.write(canvas, line, MARGIN + GAP, y + j * text.line_height(BODY), BODY, color)


def wrapped(found: Sequence[Caption]) -> tuple[Caption, ...]:
    """The captions with their lines broken to the width of the titles."""
    return tuple(
        Caption(tuple(part for line in c.lines for part in text.wrap(line, BODY, _WIDEST_TITLE, 3)), c.wrong)
        for c in found
    )


def header(words: str, width: int) -> tuple[str, ...]:
    """A header broken into lines, for a column of panels ``width`` pixels wide."""
    return text.wrap(words, BODY, max(width, _NARROWEST), 3)


def note(report: Report, rows: int, available: int) -> str:
    """The line below the name: epoch and step of the report, and how many of its samples are drawn if not all are."""
    known = [("epoch", report.epoch), ("step", report.step)]
    parts = [f"{name} {value}" for name, value in known if value is not None]
    return ", ".join([*parts, f"first {rows} of {available} samples"] if rows < available else parts)
