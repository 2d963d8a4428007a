"""Texts and their attributions in; pages with the words on colored boxes, and HTML of the same, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.panels import Panel, WordsPanel
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.layout import BLACK, GRAY
from lightning_explain.render.notes import GAP, MARGIN, PITCH, TOP, Notes, Page, Track, colors, scaled, write
from lightning_explain.render.page import HEIGHT, LETTERS

_LABELS = 130
_PAD, _SPACE = 3, 3
_ELLIPSIS = "…"
_CELL, _CELL_LETTERS, _CELL_LINES = 480, 18, 12


def pages(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """Up to four texts on a page, each with a title and a block of lines for each track.

    Texts that are too long are shortened around the words that are strongest in any of the tracks. The last line has the panel's hint.
    """
    assert isinstance(panel, WordsPanel)
    texts = [_Text(words, panel.values[i], LETTERS) for i, words in enumerate(panel.words)]
    space, body = notes.width - 2 * MARGIN - _left(tracks), HEIGHT - TOP - (PITCH if panel.hint else 0)
    long = any(each.placed(each.all, space, 2) is None for each in texts)
    most = min(3 if long else 4, body // (PITCH + _line(LETTERS) * len(tracks)))
    lines = max(1, (body // most - PITCH) // (_line(LETTERS) * len(tracks)))
    weights = [notes.scaled(track.values) for track in tracks]
    groups = [range(i, min(i + most, len(texts))) for i in range(0, len(texts), most)]
    plain = [partial(_page, texts, tracks, weights, notes, group, (body // most, lines)) for group in groups]
    return [partial(_with_hint, page, panel.hint) for page in plain] if panel.hint else [*plain]


def _with_hint(page: Page, hint: str) -> Picture:
    canvas = page()
    write(canvas, hint, MARGIN, HEIGHT - PITCH, space=canvas.shape[1] - 2 * MARGIN)
    return canvas


def _page(
    texts: Sequence[_Text],
    tracks: Sequence[Track],
    weights: Sequence[Tensor],
    notes: Notes,
    samples: range,
    size: tuple[int, int],
) -> Picture:
    canvas, (height, lines), left = notes.canvas(), size, _left(tracks)
    for i, sample in enumerate(samples):
        y = TOP + i * height
        notes.title(canvas, sample, [track.values[sample] for track in tracks], MARGIN, y, notes.width - 2 * MARGIN)
        strengths = torch.stack([each[sample].nan_to_num(0.0).abs() for each in weights]).amax(0)
        boxes = texts[sample].shortened(strengths, notes.width - 2 * MARGIN - left, lines)
        used = 1 + max((line for _, _, line in boxes), default=0)
        for t, (track, values) in enumerate(zip(tracks, weights, strict=True)):
            at = y + PITCH + t * _line(LETTERS) * used
            if left:
                write(canvas, track.label[-1], MARGIN, at, space=left - GAP)
            texts[sample].draw(canvas, boxes, values[sample], MARGIN + left, at)
    return canvas


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each text alone, ``(N, h, w, 3)``."""
    assert isinstance(panel, WordsPanel)
    weights, found = scaled(panel.values, "sample"), []
    texts = [_Text(words, panel.values[i], _CELL_LETTERS) for i, words in enumerate(panel.words)]
    placed = [each.shortened(weights[i].nan_to_num(0.0).abs(), _CELL, _CELL_LINES) for i, each in enumerate(texts)]
    lines = 1 + max((line for boxes in placed for _, _, line in boxes), default=0)
    for i, (each, boxes) in enumerate(zip(texts, placed, strict=True)):
        canvas = np.full((lines * _line(_CELL_LETTERS), _CELL, 3), 255, dtype=np.uint8)
        each.draw(canvas, boxes, weights[i], 0, 0)
        found.append(canvas)
    return np.stack(found)


def words_html(panel: WordsPanel) -> list[str]:
    """The words of each text on the color of their attribution, as HTML: a ``<span>`` for each word, escaped.

    Args:
        panel: The words of N texts.

    Returns:
        N lines of HTML. Hovering over a word shows its attribution.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import WordsPanel
        >>> from lightning_explain.render.words import words_html
        >>> words_html(WordsPanel("", torch.tensor([[torch.nan, 1.0]]), words=[["<s>", "good"]]))[0][:45]
        '<span style="color:#696969">&lt;s&gt;</span> '
    """
    weights = scaled(panel.values, "sample")
    return [" ".join(_spans(words, panel.values[i], weights[i])) for i, words in enumerate(panel.words)]


def _spans(words: Sequence[str], values: Tensor, weights: Tensor) -> list[str]:
    found = []
    for word, value, color in zip(words, values.tolist(), colors(weights).tolist(), strict=True):
        style = "color:#696969" if value != value else "color:#141414;background:#{:02x}{:02x}{:02x}".format(*color)
        title = "" if value != value else f' title="{value:.3g}"'
        if word:
            found.append(f'<span style="{style}"{title}>{escape(word)}</span>')
    return found


Boxes = list[tuple[int | None, int, int]]
"""The index of a word, or ``None`` for an ellipsis; the x at which it begins; and its line."""


@dataclass(frozen=True, eq=False)
class _Text:
    """A text that is drawn: its words, and their attributions ``(T,)``, NaN for what is no unit."""

    words: Sequence[str]
    values: Tensor
    letters: int

    @property
    def all(self) -> list[int]:
        """The indices of the words that are shown if there is space."""
        return [i for i, word in enumerate(self.words) if word]

    def size(self, index: int | None) -> int:
        """The size of the letters of a word: smaller for special tokens."""
        return self.letters * 2 // 3 if index is not None and bool(self.values[index].isnan()) else self.letters

    def word(self, index: int | None, space: int) -> str:
        """A word, shortened to a line."""
        found = _ELLIPSIS if index is None else self.words[index]
        return text.shorten(found, self.size(index), space - 2 * _PAD)

    def placed(self, indices: Sequence[int], space: int, lines: int) -> Boxes | None:
        """Where these words go, with an ellipsis wherever some are left out; ``None`` if there is too little space."""
        shown: list[int | None] = []
        for before, index in zip([-1, *indices], indices, strict=False):
            shown += [None, index] if any(self.words[before + 1 : index]) else [index]
        if not indices or any(self.words[indices[-1] + 1 :]):
            shown.append(None)
        boxes, x, line = Boxes(), 0, 0
        for each in shown:
            width = text.width(self.word(each, space), self.size(each)) + 2 * _PAD
            if x and x + width > space:
                x, line = 0, line + 1
            if line >= lines:
                return None
            boxes.append((each, x, line))
            x += width + _SPACE
        return boxes

    def shortened(self, strengths: Tensor, space: int, lines: int) -> Boxes:
        """Where the words go; if there are too many, the strongest with as many of the words around them as fit."""
        everything = self.placed(self.all, space, lines)
        if everything is not None:
            return everything
        order = strengths.argsort(descending=True, stable=True).tolist()
        peaks = [i for i in order if self.words[i]][: 3 * lines]
        around = [i + side for reach in range(1 + 12 * lines) for i in peaks for side in (reach, -reach)]
        kept, best = set[int](), Boxes()
        for index in dict.fromkeys(i for i in around if 0 <= i < len(self.words) and self.words[i]):
            found = self.placed(sorted({*kept, index}), space, lines)
            if found is not None:
                kept, best = {*kept, index}, found
        return best

    def draw(self, canvas: Picture, boxes: Boxes, weights: Tensor, x: int, y: int) -> None:
        """Draws the words at (x, y), each on the color of its weight in [-1, 1]."""
        space, shades = canvas.shape[1] - x, colors(weights)
        for index, left, line in boxes:
            word, size = self.word(index, space), self.size(index)
            top, start = y + line * _line(self.letters), x + left
            width = text.width(word, size)
            unit = index is not None and size == self.letters
            if unit:
                canvas[top : top + _line(self.letters) - 3, start : start + width + 2 * _PAD] = shades[index]
            text.write(canvas, word, start + _PAD, top + self.letters - size, size, BLACK if unit else GRAY)


def _line(letters: int) -> int:
    return text.line_height(letters) + 1


def _left(tracks: Sequence[Track]) -> int:
    return _LABELS if len(tracks) > 1 else 0
