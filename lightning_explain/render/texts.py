"""Texts and their attributions in; pages of HTML and Markdown, and the strongest words of each class, out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import torch

from lightning_explain.core.panels import FeaturesPanel, WordsPanel
from lightning_explain.render.captions import Caption, Short
from lightning_explain.render.words import words_html

MOST, MOST_CLASSES = 8, 6
"""How many words of a class are listed, and how many classes are drawn."""


class Strong(NamedTuple):
    """A word of the texts of a class.

    Args:
        word: The word.
        mean: The mean of its attributions.
        times: How often it occurs.
    """

    word: str
    mean: float
    times: int


def class_of(caption: Caption) -> str:
    """The class that a sample's map is of: its label, or what is predicted."""
    short = caption.short
    return short.predicted if short.explained == "predicted" and short.predicted else short.label


def strongest(panel: WordsPanel, classes: Sequence[str], most: int = MOST) -> dict[str, list[Strong]]:
    """The words with the largest mean attribution in the texts of each class, the strongest first; words against it are left out.

    Args:
        panel: The words of N texts.
        classes: The explained class of each.
        most: How many words of a class.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import WordsPanel
        >>> from lightning_explain.render.texts import strongest
        >>> panel = WordsPanel("", torch.tensor([[0.5, 2.0], [1.0, -1.0]]), words=[["a", "great"], ["a", "dull"]])
        >>> strongest(panel, ["good", "good"])["good"]
        [Strong(word='great', mean=2.0, times=1), Strong(word='a', mean=0.75, times=2)]
    """
    found: dict[str, dict[str, list[float]]] = {}
    for words, values, of in zip(panel.words, panel.values.tolist(), classes, strict=True):
        for word, value in zip(words, values, strict=True):
            if word and math.isfinite(value):
                found.setdefault(of, {}).setdefault(word, []).append(value)
    means = {of: [Strong(w, sum(v) / len(v), len(v)) for w, v in by_word.items()] for of, by_word in found.items()}
    return {
        of: sorted((one for one in means[of] if one.mean > 0), key=lambda one: (-one.mean, one.word))[:most]
        for of in sorted(means)
    }


def of_classes(panel: WordsPanel, captions: Sequence[Caption]) -> tuple[FeaturesPanel, list[Caption]] | None:
    """The strongest words of each class as bars, and the titles of the classes, those with most samples first; ``None`` without classes."""
    if not captions:
        return None
    counts = Counter(map(class_of, captions))
    found = {of: words for of, words in strongest(panel, list(map(class_of, captions))).items() if of and words}
    classes = sorted(found, key=lambda of: (-counts[of], of))[:MOST_CLASSES]
    if not classes:
        return None
    names = list(dict.fromkeys(one.word for of in classes for one in found[of]))
    values, said = torch.full((len(classes), len(names)), torch.nan), [[""] * len(names) for _ in classes]
    for i, of in enumerate(classes):
        for one in found[of]:
            place = names.index(one.word)
            values[i, place], said[i][place] = one.mean, _times(one.times)
    titles = [(f"strongest words of {of}, {counts[of]} {'text' if counts[of] == 1 else 'texts'}") for of in classes]
    return (
        FeaturesPanel("strongest words", "features", values, names=names, texts=said),
        [Caption((title,), short=Short(title)) for title in titles],
    )


def as_html(panel: WordsPanel, captions: Sequence[Caption], what: str) -> str:
    """A page: each text on the colors of its attributions under its title, and a table of the strongest words of each class.

    Args:
        panel: The words of N texts.
        captions: Their titles; may be empty.
        what: What the page is of: a method and a time.
    """
    titles = [" · ".join(map(escape, caption.lines)) for caption in captions] or [""] * len(panel.words)
    texts = [f"<p><b>{title}</b><br>{line}</p>" for title, line in zip(titles, words_html(panel), strict=True)]
    rows = (
        [
            f"<tr><th>{escape(of)}</th><td>{', '.join(f'{escape(w.word)} ({w.mean:+.3g}, {_times(w.times)})' for w in words)}</td></tr>"
            for of, words in strongest(panel, list(map(class_of, captions))).items()
        ]
        if captions
        else []
    )
    table = f"<h4>Strongest words of each class</h4><table>{''.join(rows)}</table>" if rows else ""
    style = 'style="font-family:sans-serif;color:#141414;background:#ffffff;line-height:1.6"'
    hint = f"<p>{escape(panel.hint)}</p>" if panel.hint else ""
    return f'<meta charset="utf-8"><body {style}><h3>{escape(what)}</h3>{hint}{"".join(texts)}{table}</body>'


def as_markdown(panel: WordsPanel, captions: Sequence[Caption], what: str) -> str:
    """The same for TensorBoard: words with at least half of the largest attribution of a text are bold, with their numbers."""
    parts = [f"### {_plain(what)}", *([_plain(panel.hint)] if panel.hint else [])]
    for i, (words, values) in enumerate(zip(panel.words, panel.values.tolist(), strict=True)):
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        title = " · ".join(captions[i].lines) if captions else ""
        line = " ".join(_marked(w, v, largest) for w, v in zip(words, values, strict=True) if w)
        parts.append(f"**{_plain(title)}**\n\n{line}" if title else line)
    classes = strongest(panel, list(map(class_of, captions))) if captions else {}
    rows = [
        f"| {_plain(of)} | {', '.join(f'{_plain(w.word)} ({w.mean:+.3g}, {_times(w.times)})' for w in words)} |"
        for of, words in classes.items()
    ]
    table = "\n".join(["| class | strongest words |", "| --- | --- |", *rows])
    return "\n\n".join([*parts, *([table] if rows else [])])


def _marked(word: str, value: float, largest: float) -> str:
    strong = math.isfinite(value) and largest > 0 and abs(value) >= largest / 2
    return f"**{_plain(word)}** ({value:+.3g})" if strong else _plain(word)


def _plain(words: str) -> str:
    """Words without a meaning in Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]()#+.!|~-])", r"\\\1", escape(words))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
