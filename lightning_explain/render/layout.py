"""The page of a method's picture: a name, titles of rows, headers of columns, and where everything stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_explain.core.report import Image, Report
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
    """Where everything stands, in pixels.

    Args:
        rows: How many rows there are.
        titles: A caption for each row, or none at all.
        headers: The lines above each column.
        size: ``(h, w)`` of a panel.
        note: A line below the name.
        right: Room that is kept free on the right of the columns.
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

    @property
    def left(self) -> int:
        """Where the first column begins."""
        widest = max((text.width(line, BODY) for c in self.titles for line in (*c.lines, _NOT_FINITE)), default=0)
        return MARGIN + (GAP + widest + 2 * GAP if self.titles else 0)

    def column(self, i: int) -> int:
        """Where column i begins; what is kept free follows the last column."""
        return self.left + i * (self.cell + GAP)

    def row(self, i: int) -> int:
        """Where row i begins."""
        return self.top + i * self.pitch

    @property
    def header_top(self) -> int:
        """Where the headers begin."""
        return MARGIN + text.line_height(HEADING) + (text.line_height(SMALL) if self.note else 0) + GAP // 2

    @property
    def top(self) -> int:
        """Where the first row begins."""
        return self.header_top + max(map(len, self.headers)) * text.line_height(BODY) + GAP // 2

    @property
    def pitch(self) -> int:
        """From one row to the next; titles have room for "not finite"."""
        lines = 1 + max(map(len, (c.lines for c in self.titles)), default=0) if self.titles else 0
        return max(self.size[0], lines * text.line_height(BODY)) + GAP

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the whole picture."""
        width = self.column(len(self.headers)) + self.right - GAP + MARGIN
        return self.top + self.rows * self.pitch - GAP + MARGIN, width, 3

    def page(self, name: str, finite: Sequence[bool]) -> Image:
        """A white page with everything on it but the panels.

        Args:
            name: The method's.
            finite: For each row whether its map is finite; the others are marked.
        """
        canvas = np.full(self.shape, 255, dtype=np.uint8)
        self._write_header(canvas, name)
        self._write_titles(canvas, finite)
        return canvas

    def paste(self, canvas: Image, pixels: NDArray[np.uint8], column: int) -> None:
        """Puts the panels ``(rows, h, w, 3)`` of a column on a page, each in a frame."""
        height, width = self.size
        x = self.column(column) + (self.cell - width) // 2
        for i, panel in enumerate(pixels):
            y = self.row(i)
            # So that a white panel ends somewhere.
            frame = canvas[y - 1 : y + height + 1, x - 1 : x + width + 1]
            frame[[0, -1]], frame[:, [0, -1]] = LINE, LINE
            canvas[y : y + height, x : x + width] = panel

    def _write_header(self, canvas: Image, name: str) -> None:
        space = canvas.shape[1] - 2 * MARGIN
        text.write(canvas, text.shorten(name, HEADING, space), MARGIN, MARGIN - 2, HEADING, BLACK)
        below = MARGIN + text.line_height(HEADING) - 2
        text.write(canvas, text.shorten(self.note, SMALL, space), MARGIN, below, SMALL, GRAY)
        most = max(map(len, self.headers))
        for i, lines in enumerate(self.headers):
            for j, line in enumerate(lines, start=most - len(lines)):
                x = self.column(i) + (self.cell - text.width(line, BODY)) // 2
                text.write(canvas, line, x, self.header_top + j * text.line_height(BODY), BODY, BLACK)

    def _write_titles(self, canvas: Image, finite: Sequence[bool]) -> None:
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
    """Captions in lines that are short enough."""
    return tuple(
        Caption(tuple(part for line in c.lines for part in text.wrap(line, BODY, _WIDEST_TITLE, 3)), c.wrong)
        for c in found
    )


def header(words: str, width: int) -> tuple[str, ...]:
    """The lines above a column of panels of that width."""
    return text.wrap(words, BODY, max(width, _NARROWEST), 3)


def note(report: Report, rows: int, available: int) -> str:
    """When the report was made, and how many of its rows are drawn."""
    known = [("epoch", report.epoch), ("step", report.step)]
    parts = [f"{name} {value}" for name, value in known if value is not None]
    return ", ".join([*parts, f"first {rows} of {available} rows"] if rows < available else parts)
