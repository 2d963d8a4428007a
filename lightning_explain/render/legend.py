"""What the colors and the scores of a picture mean, in; the last line of its pages, which says so, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.image import to_bytes
from lightning_explain.render.layout import BLACK, GRAY, LINE
from lightning_explain.render.page import FOOT, HEIGHT, HIGH, LETTERS, LOW, MARGIN, Row, named

_BAR, _THICK, _GAP = 60, 14, 6
_MOST = 150
"""The most pixels for what is explained; a class may have a long name."""
_BETTER = {True: "higher is better", False: "lower is better", None: ""}


@dataclass(frozen=True)
class Legend:
    """What the colors and scores mean.

    Args:
        sides: What negative and positive places of the maps do, and to what: ``("against", "for", "the label")``.
        score: The name of the scores.
        higher_is_better: Which of them are better; ``None``: neither, or unknown.
    """

    sides: tuple[str, str, str]
    score: str = ""
    higher_is_better: bool | None = None

    def write(self, page: Picture, rows: Sequence[Row]) -> None:
        """Writes the last line of a page with these rows: their color bars, and then their scores; what does not fit is left out."""
        y, x, right = HEIGHT - FOOT, MARGIN, page.shape[1] - MARGIN
        bars = {(row.sign, row.colors.numpy().tobytes()): row.colors for row in rows if row.colors is not None}
        limits = any(row.largest is not None for row in rows)
        for (sign, _), colors in bars.items():
            ends = [self._ends(sign, each) for each in ((True, False) if limits else (False,))]
            sizes = [sum(text.width(words, LETTERS) for words in each) + _BAR + 2 * _GAP for each in ends]
            found = next((each for each, size in zip(ends, sizes, strict=True) if x + size <= right), None)
            if found is None:
                break
            low, high = found
            start = x + text.width(low, LETTERS) + _GAP
            after = start + _BAR + _GAP
            end = after + text.width(high, LETTERS)
            text.write(page, low, x, y, LETTERS, BLACK)
            text.write(page, high, after, y, LETTERS, BLACK)
            top = y + (FOOT - MARGIN - _THICK) // 2
            page[top - 1 : top + _THICK + 1, start - 1 : start + _BAR + 1] = LINE
            page[top : top + _THICK, start : start + _BAR] = to_bytes(colors)[np.linspace(0, 255, _BAR).astype(int)]
            x = end + 2 * _GAP
        if any(row.scores is not None for row in rows):
            words = self._of_scores(right - x)
            text.write(page, words, right - text.width(words, LETTERS), y, LETTERS, GRAY)

    def _ends(self, sign: str, limits: bool) -> tuple[str, str]:
        """The words at both ends of a color bar: what they speak for and, with ``limits``, which values of a map they are."""
        down, up, what = self.sides
        side = {"all": up, "positive": up, "negative": down, "absolute_value": f"{down} or {up}"}[sign]
        side = f"{side} {text.shorten(what.removeprefix('the '), LETTERS, _MOST)}"
        low, high = (LOW, HIGH) if limits else ("", "")
        if sign != "all":
            return "0", f"{high.lstrip('+')} {side}".strip()
        return f"{down} {low}".strip(), f"{high} {side}".strip()

    def _of_scores(self, space: int) -> str:
        """Which scores are better, with as much of their name as there is space for."""
        better = _BETTER[self.higher_is_better]
        name = named(self.score, space - text.width(f": {better}", LETTERS))
        return next(
            (words for words in (f"{name}: {better}", better) if better and text.width(words, LETTERS) <= space), ""
        )
