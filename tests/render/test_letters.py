"""Words as pixels."""

import numpy as np
import pytest

from lightning_explain.render import letters as text


def blank() -> np.ndarray:
    return np.full((40, 120, 3), 255, dtype=np.uint8)


def test_a_line_leaves_ink_of_its_color_inside_its_box_only() -> None:
    canvas = blank()
    text.write(canvas, "seven", 10, 8, 13, (200, 0, 0))
    inked = (canvas != 255).any(-1)
    assert inked.any()
    inked[8 : 8 + text.line_height(13), 10 : 10 + text.width("seven", 13)] = False
    assert not inked.any()
    darkest = canvas.reshape(-1, 3)[canvas.sum(-1).argmin()]
    assert darkest[0] > 190
    assert darkest[1:].max() < 60


@pytest.mark.parametrize(("x", "y"), [(-20, 5), (110, 5), (5, -8), (5, 35), (500, 500), (-500, -500)])
def test_what_does_not_fit_is_cut_off(x: int, y: int) -> None:
    canvas = blank()
    text.write(canvas, "seventeen", x, y, 13, (0, 0, 0))
    assert canvas.shape == (40, 120, 3)


def test_a_cut_line_shows_the_part_that_is_inside() -> None:
    whole, cut = np.full((40, 200, 3), 255, np.uint8), blank()
    text.write(whole, "seventeen", 50, 10, 13, (0, 0, 0))
    text.write(cut, "seventeen", -10, 4, 13, (0, 0, 0))
    assert np.array_equal(cut[:30, :60], whole[6:36, 60:120])


def test_nothing_can_be_written() -> None:
    canvas = blank()
    text.write(canvas, "", 3, 3, 13, (0, 0, 0))
    assert (canvas == 255).all()


def test_wrapped_lines_keep_all_words_and_fit() -> None:
    words = "label 285 (Egyptian Mau, short-haired)"
    lines = text.wrap(words, 13, 120, 5)
    assert len(lines) > 1
    assert " ".join(lines) == words
    assert all(text.width(line, 13) <= 120 for line in lines)


def test_what_is_too_long_ends_in_an_ellipsis_and_fits() -> None:
    lines = text.wrap("many words " * 20, 13, 100, 2)
    assert len(lines) == 2
    assert lines[-1].endswith("...")
    assert all(text.width(line, 13) <= 100 for line in lines)


def test_a_word_wider_than_the_line_is_cut() -> None:
    (line,) = text.wrap("supercalifragilisticexpialidociousness", 13, 90, 3)
    assert line.startswith("super")
    assert line.endswith("...")
    assert text.width(line, 13) <= 90


def test_a_line_that_fits_is_not_shortened() -> None:
    assert text.shorten("ig", 18, 100) == "ig"


@pytest.mark.parametrize("name", ["Möwe", "Ωμέγα", "кошка", "naïve ≥ ½", "قطة"])
def test_letters_beyond_ascii_are_drawn_each_in_its_own_shape(name: str) -> None:
    assert text._drawable(name) == name
    shapes = set()
    for letter in dict.fromkeys(name.replace(" ", "")):
        canvas = blank()
        text.write(canvas, letter, 5, 5, 24, (0, 0, 0))
        shapes.add(canvas.tobytes())
    assert len(shapes) == len(set(name.replace(" ", ""))), "two letters look alike, as boxes do"


def test_a_letter_that_the_font_does_not_have_is_named_by_its_code() -> None:
    coded, plain = blank(), blank()
    text.write(coded, "猫", 2, 5, 13, (0, 0, 0))
    text.write(plain, r"\u732b", 2, 5, 13, (0, 0, 0))
    assert np.array_equal(coded, plain)
    assert text.width("猫", 13) == text.width(r"\u732b", 13)
    assert text.shorten("猫" * 9, 13, 60).endswith("...")
