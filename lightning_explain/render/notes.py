"""Maps of words, features and series in; what their pages have in common (head, titles, color bar, numbers), drawn, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_explain.core.probe import flat
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.captions import Caption
from lightning_explain.render.color import sign_table
from lightning_explain.render.image import to_bytes
from lightning_explain.render.layout import AMBER, BLACK, GRAY, LINE, RED
from lightning_explain.render.page import HEIGHT, HIGH, LETTERS, LOW, WIDTH, brief, named

Page: TypeAlias = Callable[[], Picture]
"""Draws a page when it is called."""

MARGIN, GAP, PITCH = 4, 6, 29
"""The space around a page, that between its parts, and the distance from one line of text to the next, in pixels."""
TOP = MARGIN + PITCH + GAP
"""The y below the head of a page."""
_BAR = 48
_MOST = 190
"""The most pixels for what one end of a color bar speaks for."""


@dataclass(frozen=True, eq=False)
class Track:
    """One map of all samples: of a method, or of an epoch.

    Args:
        label: What it is, in up to two lines.
        values: ``(N, ...)`` as ``Panel.values``.
    """

    label: tuple[str, ...]
    values: Tensor


@dataclass(frozen=True, eq=False)
class Notes:
    """What pages say beside the maps.

    Args:
        name: The first words of a page.
        when: The epoch.
        captions: Of all samples; empty for pages without titles.
        outputs: ``(N,)`` f of each sample; empty if it is not known.
        sides: What negative and positive attributions do, and to what: ``("against", "for", "the label")``.
        scale: ``"sample"``: the strongest color is the largest absolute value of each sample; ``"all"``: of all samples.
        width: Of a page: ``WIDTH`` or ``NARROW``.
        score: The name of the scores.
        scores: ``(N,)`` the score of each sample's map, NaN where there is none; ``None``: of none.
    """

    name: str
    when: str
    captions: Sequence[Caption]
    outputs: Tensor
    sides: tuple[str, str, str]
    scale: str = "sample"
    width: int = WIDTH
    score: str = ""
    scores: Tensor | None = None

    def canvas(self, legend: Callable[[Picture], int] | None = None) -> Picture:
        """A white page with its head; ``legend`` draws at the right of it and returns where it begins."""
        canvas = np.full((HEIGHT, self.width, 3), 255, dtype=np.uint8)
        end = (legend or self.signs)(canvas) - 2 * GAP
        name = text.shorten(self.name, LETTERS, end - MARGIN)
        text.write(canvas, name, MARGIN, MARGIN, LETTERS, BLACK)
        start = MARGIN + text.width(name, LETTERS) + 2 * GAP
        if start + text.width(self.when, LETTERS) <= end:
            text.write(canvas, self.when, start, MARGIN, LETTERS, GRAY)
        return canvas

    def signs(self, canvas: Picture) -> int:
        """The color bar, from minus to plus the largest absolute value of each map, and which end speaks for what is explained.

        Its limits are left out where they would take the space of the epoch.
        """
        against, speaks_for = self.ends
        limits = (f"{against} {LOW}", f"{HIGH} {speaks_for}")
        words = sum(text.width(part, LETTERS) for part in (self.name, self.when, *limits))
        fits = words + _BAR + 6 * GAP + 2 * MARGIN <= self.width
        return color_bar(canvas, *(limits if fits else self.ends), sign_table("all"))

    @property
    def ends(self) -> tuple[str, str]:
        """The two ends of a color bar in words, which fit beside it."""
        against, speaks_for, what = self.sides
        return against, text.shorten(f"{speaks_for} {what.removeprefix('the ')}", LETTERS, _MOST)

    def title(self, canvas: Picture, sample: int, maps: Sequence[Tensor], x: int, y: int, space: int) -> None:
        """A line with label and prediction of a sample to the left; to the right f and, of a map ``(...)`` that is alone, sum and score."""
        if not self.captions:
            return
        numbers, color = self._numbers(sample, maps)
        end = x + space
        for words in numbers:
            # The prediction matters more than the numbers.
            if text.width(_line(self.captions[sample]), LETTERS) + text.width(words, LETTERS) + 2 * GAP <= space:
                write_right(canvas, words, end, y, color)
                space -= text.width(words, LETTERS) + 2 * GAP
                break
        _write_parts(canvas, self.captions[sample], _parts(self.captions[sample]), x, y, space)

    def title_in_two_lines(
        self, canvas: Picture, sample: int, maps: Sequence[Tensor], place: tuple[int, int], space: int, note: str = ""
    ) -> None:
        """The same for narrow columns: the prediction is in the second line where it does not fit in the first."""
        x, y = place
        if not self.captions:
            write(canvas, note, x, y, GRAY, space)
            return
        caption = self.captions[sample]
        if text.width(_line(caption), LETTERS) > space:
            parts = _parts(caption)
            _write_parts(canvas, caption, parts[:2], x, y, space)
            _write_parts(canvas, caption, parts[3:], x, y + PITCH, space)
            return
        _write_parts(canvas, caption, _parts(caption), x, y, space)
        numbers, color = self._numbers(sample, maps)
        lines = [f"{note}  {words}" if note else words for words in numbers]
        fitting = (words for words in lines if text.width(words, LETTERS) <= space)
        write(canvas, next(fitting, lines[-1]), x, y + PITCH, color, space)

    def _numbers(self, sample: int, maps: Sequence[Tensor]) -> tuple[list[str], text.Color]:
        """What a title says of the numbers of a sample, the longest first."""
        if not all(values.isfinite().any() for values in maps):
            return ["NaN / inf", "NaN"], AMBER
        known = [f"f {brief(float(self.outputs[sample]))}"] if len(self.outputs) else []
        total = [f"Σ {brief(float(maps[0].nansum()))}"] if len(maps) == 1 else []
        score = torch.nan if self.scores is None or len(maps) > 1 else float(self.scores[sample])
        scored = [] if math.isnan(score) else [f"{named(self.score, _MOST)} {brief(score)}"]
        lines = [[*known, *total, *scored], *([[*known, *total]] if scored else []), *([known] if known else [])]
        return ["  ".join(parts) for parts in lines], GRAY

    def scaled(self, values: Tensor) -> Tensor:
        """Values ``(N, ...)`` in [-1, 1] by the scale of these pages."""
        return scaled(values, self.scale)


def write_label(canvas: Picture, label: Sequence[str], y: int, height: int, space: int) -> None:
    """The lines of a row's label at the left of a page, the first one in black, as many as fit in ``height`` pixels."""
    for i, words in enumerate(label[: max(1, (height + GAP) // PITCH)]):
        write(canvas, words, MARGIN, y + i * PITCH, GRAY if i else BLACK, space)


def scaled(values: Tensor, scale: str) -> Tensor:
    """Values ``(N, ...)`` in [-1, 1], divided by the largest absolute one of the sample or of all; NaN where they are not finite."""
    known = values.nan_to_num(torch.nan, torch.nan, torch.nan)
    largest = flat(known.nan_to_num(0.0)).abs().amax(1)
    if scale == "all":
        largest = largest.amax().expand(len(largest))
    shown: Tensor = known / largest.clamp(min=torch.finfo(values.dtype).tiny).reshape(-1, *(1,) * (values.ndim - 1))
    return shown


def colors(values: Tensor) -> Picture:
    """Values in [-1, 1] of any shape as colors ``(..., 3)``: blue against, orange for, white where there is nothing."""
    table = to_bytes(sign_table("all")).numpy()
    found: Picture = table[((values.nan_to_num(0.0) + 1) * 127.5).round().clamp(0, 255).long().numpy()]
    return found


def color_bar(canvas: Picture, low: str, high: str, table: Tensor) -> int:
    """Draws 256 colors with the words at their ends in the top right corner; returns the x at which that begins."""
    end: int = canvas.shape[1] - MARGIN - text.width(high, LETTERS)
    write(canvas, high, end, MARGIN)
    x = end - GAP - _BAR
    canvas[MARGIN + 7 : MARGIN + 25, x - 1 : x + _BAR + 1] = LINE
    canvas[MARGIN + 8 : MARGIN + 24, x : x + _BAR] = to_bytes(table).numpy()[np.linspace(0, 255, _BAR).astype(int)]
    start = x - GAP - text.width(low, LETTERS)
    write(canvas, low, start, MARGIN)
    return start


def write(canvas: Picture, words: str, x: int, y: int, color: text.Color = GRAY, space: int = WIDTH) -> None:
    """A line of text, shortened to ``space`` pixels."""
    text.write(canvas, text.shorten(words, LETTERS, space), x, y, LETTERS, color)


def write_right(canvas: Picture, words: str, end: int, y: int, color: text.Color = GRAY) -> None:
    """A line of text that ends at x = ``end``."""
    text.write(canvas, words, end - text.width(words, LETTERS), y, LETTERS, color)


def _parts(caption: Caption) -> list[tuple[str, str]]:
    """The parts of a title, each with which of the classes it names."""
    short = caption.short
    sign = ("✗ " if caption.wrong else "✓ ") if short.judged else ""
    predicted = f"{'predicted ' if short.judged else ''}{short.predicted}" if short.predicted else ""
    parts = [
        (sign, ""),
        (short.label, "label"),
        (", " if short.label and predicted else "", ""),
        (predicted, "predicted"),
    ]
    return [*parts, (f" {short.share}" if short.share else "", "")]


def _line(caption: Caption) -> str:
    return "".join(words for words, _ in _parts(caption))


def _write_parts(
    canvas: Picture, caption: Caption, parts: Sequence[tuple[str, str]], x: int, y: int, space: int
) -> None:
    """Parts of a title, the class that is explained underlined."""
    color, end = RED if caption.wrong else BLACK, x + space
    for words, part in parts:
        shown = text.shorten(words, LETTERS, end - x) if words.strip() else words
        text.write(canvas, shown, x, y, LETTERS, color)
        width = text.width(shown, LETTERS)
        if part and part == caption.short.explained:
            canvas[y + PITCH - 2 : y + PITCH, x : x + width] = color
        x += width
        if shown != words:
            break
