"""The last line of a page: what the colors and scores mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.color import sign_table
from lightning_explain.render.legend import Legend
from lightning_explain.render.page import FOOT, HEIGHT, LETTERS, NARROW, WIDTH, Row

SIDES, ONE = ("against", "for", "the label"), torch.ones(1)


def row(sign: str, scored: bool = False, largest: Tensor | None = ONE) -> Row:
    scores = torch.zeros(1) if scored else None
    return Row(("ig",), scores=scores, largest=largest, colors=sign_table(sign), sign=sign)


def written(
    monkeypatch: pytest.MonkeyPatch, legend: Legend, *rows: Row, width: int = WIDTH
) -> tuple[list[str], Picture]:
    """The words on the last line of a page, and the page."""
    words, write = list[str](), text.write

    def noted(canvas: Picture, line: str, x: int, y: int, size: int, color: text.Color) -> None:
        words.append(line)
        assert x >= 0
        assert x + text.width(line, LETTERS) <= width
        write(canvas, line, x, y, size, color)

    monkeypatch.setattr(text, "write", noted)
    page = np.full((HEIGHT, width, 3), 255, dtype=np.uint8)
    legend.write(page, rows)
    assert (page[: HEIGHT - FOOT] == 255).all(), "it writes nowhere else"
    return words, page


@pytest.mark.parametrize(
    ("sign", "ends"),
    [
        ("all", ["against -max", "+max for label"]),
        ("positive", ["0", "max for label"]),
        ("negative", ["0", "max against label"]),
        ("absolute_value", ["0", "max against or for label"]),
    ],
)
def test_both_ends_of_a_color_bar_are_named_with_their_limits(
    monkeypatch: pytest.MonkeyPatch, sign: str, ends: list[str]
) -> None:
    words, page = written(monkeypatch, Legend(SIDES), row(sign))
    assert words == ends
    bar = (page != page[..., :1]).any(2).any(0)
    assert 40 <= bar.sum() <= 62, "the colors are there, once"


def test_charts_have_no_limits_of_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    words, _ = written(monkeypatch, Legend(SIDES), row("all", largest=None))
    assert words == ["against", "for label"]


def test_each_color_map_has_one_bar_and_scores_say_which_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    legend = Legend(SIDES, "infidelity_relative", False)
    words, _ = written(monkeypatch, legend, row("all", scored=True), row("all"))
    assert words[:2] == ["against -max", "+max for label"]
    assert words[2].endswith("lower is better")
    assert len(words) == 3
    assert written(monkeypatch, Legend(SIDES, "mine", None), row("all", scored=True))[0][2:] in ([], [""])


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Legend((*SIDES[:2], "a class with a very long name " * 3), "relevance_mass_over_chance", True)
    words, _ = written(monkeypatch, long, row("all", scored=True), row("positive"), width=NARROW)
    assert words[0] == "against", "the limits before the colors"
    assert "…" in words[1] or len(words[1]) < 60
