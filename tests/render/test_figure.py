"""The pages that dashboards show: one size, legible before anybody clicks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_explain.core.probe import Attribution, Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.modalities import Image, Plain, TimeSeries
from lightning_explain.render import letters as text
from lightning_explain.render.figure import draw, figure_of
from lightning_explain.render.history import PictureHistory, Snapshot
from lightning_explain.render.options import Options
from lightning_explain.render.page import HEIGHT, LETTERS, NARROW, WIDTH, brief

SHOWN = 350
"""The width at which TensorBoard's Images tab shows a picture before anybody clicks; its Time Series tab shows it 215 high."""
RED, AMBER, BLUE, ORANGE = ([190, 20, 40], [150, 85, 0], [0, 114, 178], [213, 94, 0])
NAMES = ["cat", "dog", "bird"]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def report(maps: dict[str, Attribution], n: int, predicted: int = 0, **changes: Any) -> Report:
    outputs = torch.eye(3)[(torch.arange(n) + predicted) % 3] * 4
    fields = {"outputs": outputs, "predictions": outputs.argmax(1), "targets": outputs.argmax(1), "fingerprint": "f"}
    return Report(maps, {}, {}, ids=torch.arange(n), **{**fields, **changes})


def probe_of(n: int, *size: int) -> Probe:
    return Probe(rand(n, *(size or (3, 32, 32))), targets=torch.arange(n) % 3, class_names=NAMES)


def maps(n: int, seed: int = 1) -> dict[str, Attribution]:
    return {name: rand(n, 3, 32, 32, seed=seed + i) - 0.5 for i, name in enumerate(("ig", "cam", "smooth", "shap"))}


def has(picture: Picture, color: list[int]) -> bool:
    return bool((picture == color).all(-1).any())


def test_letters_are_nine_pixels_high_at_the_size_at_which_a_picture_is_first_seen() -> None:
    scale = min(SHOWN / WIDTH, 215 / HEIGHT)
    for letter in "HE0369%":
        canvas = np.full((40, 60, 3), 255, dtype=np.uint8)
        text.write(canvas, letter, 5, 5, LETTERS, (0, 0, 0))
        rows = np.flatnonzero((canvas < 128).any((1, 2)))
        assert (rows[-1] - rows[0] + 1) * scale >= 9, letter


def test_over_ten_epochs_every_picture_has_one_size() -> None:
    history, keys, probe = PictureHistory(), set[str](), probe_of(7)
    for epoch in range(10):
        found = maps(7, seed=epoch)
        if epoch == 4:
            del found["cam"]
        if epoch == 6:
            found["ig"] = found["ig"] * torch.nan  # type: ignore[operator]
        scores = {"infidelity_relative": dict.fromkeys(found, torch.rand(7) * 10**epoch)}
        made = replace(report(found, 7, predicted=epoch), scores=scores, epoch=10**epoch, step=epoch)
        names = [name * epoch for name in NAMES]
        figure = figure_of(made, probe, Options(class_names=names))
        drawn = figure.pictures(history)
        assert len(drawn) == figure.count(history)
        history = history.followed_by(figure.snapshot, made.fingerprint)
        assert {picture.shape for picture in drawn.values()} == {(HEIGHT, WIDTH, 3)}
        assert {picture.dtype for picture in drawn.values()} == {np.dtype(np.uint8)}
        keys |= drawn.keys()
    of_methods = [*maps(1), *(f"history/{name}" for name in maps(1))]
    assert keys == {key for name in ("overview", *of_methods) for key in (name, f"{name}/2")}
    assert list(drawn)[:4] == ["overview", "overview/2", "ig", "ig/2"], "the most important ones come first"
    assert list(figure.pictures(history, most=3)) == ["overview", "overview/2", "ig"]
    firsts = figure.pictures(history, further=False)
    assert list(firsts) == [key for key in drawn if not key.endswith("/2")]
    assert len(firsts) == figure.count(history, further=False)


@pytest.mark.parametrize("samples", [1, 4, 5, 16])
def test_samples_are_columns_at_most_four_on_a_page(samples: int) -> None:
    drawn = draw(report({"ig": torch.zeros(samples, 1, 8, 8)}, samples), Probe(torch.zeros(samples, 1, 8, 8)))
    count = -(-samples // 4)
    assert list(drawn) == [f"{key}/{i}" if i > 1 else key for key in ("overview", "ig") for i in range(1, count + 1)]
    columns = []
    for key in list(drawn)[:count]:
        black = (drawn[key][100] == 0).all(-1).astype(int)
        columns.append(int((np.diff(black) == 1).sum()))
    assert sum(columns) == samples
    assert max(columns) <= 4


def test_label_prediction_and_probability_stand_above_and_wrong_ones_are_red_and_have_a_sign() -> None:
    probe = probe_of(1)
    right, wrong, unlabeled = (
        draw(report({"ig": rand(1, 3, 32, 32)}, 1, predicted), given)["ig"]
        for predicted, given in ((0, probe), (1, probe), (1, replace(probe, targets=None)))
    )
    assert [has(picture, RED) for picture in (right, wrong, unlabeled)] == [False, True, False]
    line = text.line_height(LETTERS)

    def words(picture: Picture, start: int, *said: str) -> bool:
        parts = [np.full((line, text.width(word, LETTERS), 3), 255, dtype=np.uint8) for word in said]
        for part, word in zip(parts, said, strict=True):
            text.write(part, word, 0, 0, LETTERS, (20, 20, 20))
        gray = picture.mean(-1)
        top = gray[start : start + line]
        # Whatever the color, the letters are dark in the same places.
        return all(
            any(((top[:, x : x + part.shape[1]] < 200) == (part.mean(-1) < 200)).mean() > 0.97 for x in range(90, 330))
            for part in parts
        )

    assert words(right, 4, "cat", "✓")
    assert words(right, 31, "96%")
    assert words(wrong, 4, "cat", "✗")
    assert words(wrong, 31, "96%")
    assert words(unlabeled, 4, "dog")
    assert not words(unlabeled, 4, "✓")


def test_an_overlay_is_gray_where_the_map_is_zero_and_blue_or_orange_where_it_is_strong() -> None:
    found = torch.zeros(1, 1, 32, 32)
    found[0, 0, :16, :16], found[0, 0, 16:, 16:] = 1, -1
    options = Options(panels=(("blended_heat_map", "all"),), titles=False, colorbar=False, alpha_overlay=1.0)
    page = draw(report({"ig": found}, 1), Probe(rand(1, 3, 32, 32)), options)["ig"]
    assert has(page, ORANGE)
    assert has(page, BLUE)
    orange, blue = (np.argwhere((page == color).all(-1)) for color in (ORANGE, BLUE))
    assert orange.max(0)[0] < blue.min(0)[0]
    inside = page[orange.min(0)[0] : blue.min(0)[0] - 30, orange.max(0)[1] + 30 : blue.max(0)[1]].astype(int)
    assert inside.size
    assert (inside.max(-1) - inside.min(-1)).max() == 0, "gray beside the quarters, farther than they are smoothed"


def test_maps_say_how_large_they_are_and_what_they_score_and_which_are_not_finite() -> None:
    assert [brief(v) for v in (0.0312, 0.31, 3.12, 31.2, 312, 3120, 3.1e-5, 0, -0.5, 0.999, 1e-12)] == [
        ".031", ".31", "3.1", "31", "310", "3e3", "3e-5", "0", "-.5", "1", "1e-12",
    ]  # fmt: skip
    probe, found = probe_of(2), rand(2, 3, 32, 32)
    small, large = (draw(report({"ig": found * factor}, 2), probe)["ig"] for factor in (1, 1000))
    changed = np.argwhere((small != large).any(-1))
    assert len(changed), "the same colors, and another number"
    assert len(np.unique(changed[:, 0])) <= text.line_height(LETTERS)
    scored = replace(report({"ig": found}, 2), scores={"infidelity_relative": {"ig": torch.tensor([0.5, 0.1])}})
    assert not np.array_equal(draw(scored, probe)["ig"], small)
    broken = found.clone()
    broken[1, 0, 0, 0] = torch.inf
    page = draw(report({"ig": broken}, 2), probe)["ig"]
    assert has(page, AMBER)
    assert not has(small, AMBER)
    assert np.array_equal(page[:, : WIDTH // 2 - 60], small[:, : WIDTH // 2 - 60]), "the other sample stays as it is"


def test_every_page_says_what_the_ends_of_its_colors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every page, or on none of its rows: a scale that one row alone names is taken for that of the others, too."""
    said, write = list[str](), text.write
    monkeypatch.setattr(text, "write", lambda canvas, words, *rest: (said.append(words), write(canvas, words, *rest)))
    series = {"ig": rand(2, 1, 40) - 0.5, "abl": rand(2, 1, 40, seed=1) - 0.5}
    for found, probe in ((maps(2), probe_of(2)), (series, Probe(rand(2, 1, 40), modalities=TimeSeries(layout="NCT")))):
        figure = figure_of(report(found, 2), probe)
        for key in ("overview", "ig"):
            said.clear()
            figure.picture(key)
            assert [
                any(words.startswith(end) or words.endswith(end) for words in said) for end in ("-max", "+max")
            ] == [True] * 2
            assert not any("scale" in words for words in said)
    few = replace(figure, layout=replace(figure.layout, width=NARROW))
    said.clear()
    few.picture("overview")
    assert "overview" in said, "where the limits of the colors would take its space, they are left out"


def test_pictures_over_epochs_show_the_first_one_between_the_previous_and_this_one() -> None:
    history, probe = PictureHistory(), probe_of(2)
    for epoch in range(12):
        made = replace(report({"ig": rand(2, 3, 32, 32, seed=epoch) - 0.5}, 2), epoch=epoch)
        figure = figure_of(made, probe)
        drawn = figure.pictures(history)
        assert ("history/ig" in drawn) == (epoch > 0)
        history = history.followed_by(figure.snapshot, "f")
        kept = [past.epoch for past in history.kept]
        between = max((2**k for k in range(5) if 2**k < epoch), default=0)
        assert kept == sorted({0, between, epoch}), epoch
        again = PictureHistory.of_state(history.state())
        for one, other in zip(history.kept, again.kept, strict=True):
            assert one.when == other.when == f"epoch {one.epoch}"
            assert torch.equal(one.weights["ig"], other.weights["ig"])
    next_one = replace(made, epoch=12)
    assert np.array_equal(
        draw(next_one, probe, None, history)["history/ig"], draw(next_one, probe, None, again)["history/ig"]
    )
    assert "history/ig" not in draw(replace(next_one, fingerprint="other samples"), probe, None, history)
    size = sum(part.nbytes for past in history.kept for part in past.weights.values())
    assert size < 3 * 2 * 90 * 90, "a byte for each pixel that is shown"


def test_maps_that_do_not_belong_together_are_refused() -> None:
    lost = Snapshot(weights={"ig": torch.zeros(2, 4, 4)}, largest={"ig": torch.zeros(2)}, scores={"ig": torch.zeros(2)})
    with pytest.raises(ValueError, match="the maps of 'ig' do not belong together"):
        PictureHistory.of_state(PictureHistory((lost,), 1, "f").state())


def test_what_has_no_pixels_is_drawn_as_bars_at_most_three_samples_on_a_page() -> None:
    found = {"ig": rand(7, 30) - 0.5, "shap": rand(7, 30, seed=1) - 0.5}
    drawn = draw(report(found, 7), Probe(rand(7, 30), modalities=Plain()))
    assert list(drawn) == [f"{key}{n}" for key in ("overview", "ig", "shap") for n in ("", "/2", "/3")]
    assert all(has(picture, ORANGE) and has(picture, BLUE) for picture in drawn.values())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 3, 200), (3, 5, 200, 3), (2, 3, 33, 47), (2, 3, 300, 200)])
def test_any_shape_of_image_is_drawn(shape: tuple[int, ...]) -> None:
    drawn = draw(report({"ig": rand(*shape)}, shape[0]), Probe(rand(*shape)))
    assert all(picture.shape == (HEIGHT, WIDTH, 3) and picture.min() < 255 for picture in drawn.values())


def test_images_are_drawn_above_a_map_that_lies_on_none_of_them() -> None:
    """The last layer of an encoder that runs on both images of a pair."""
    both = rand(2, 3, 32, 32), rand(2, 3, 32, 32, seed=1)
    figure = figure_of(report({"cam": rand(2, 4, 8, 8) - 0.5}, 2), Probe(both))
    for key in ("overview", "cam"):
        image, cam = figure._rows_of_all(None)[key]()
        assert np.array_equal(image.pixels, figure.inputs[0].original)
        assert cam.pixels is not None
        assert cam.largest is not None
    assert len(figure.pictures()) == figure.count()


def test_panels_of_several_inputs_go_on_on_further_pages() -> None:
    inputs = (rand(2, 3, 32, 32), rand(2, 3, 16, 16), rand(2, 5), rand(2, 6))
    made = Probe(inputs, modalities=(Image(), Image(), Plain(), Plain()))
    drawn = draw(report({"ig": tuple(x - 0.5 for x in inputs)}, 2), made)
    assert list(drawn) == ["overview", "ig", "ig/2"], "three of both images, and two charts"


def test_options_change_the_pages_and_names_do_not_matter() -> None:
    probe, made = probe_of(2), report({"a_name_that_is_far_too_long_for_its_place": rand(2, 3, 32, 32) - 0.5}, 2)
    (name,) = made.attributions
    plain = draw(made, probe)[name]
    for option in (
        {"cmap": "viridis"}, {"outlier_perc": 30.0}, {"alpha_overlay": 0.2}, {"normalization": (0.5, 0.5)}, {"titles": False},
        {"colorbar": False}, {"panels": (("heat_map", "positive"),)}, {"class_names": ["قطة", "Собака", "x" * 99]},
    ):  # fmt: skip
        changed = draw(made, probe, Options(**option))[name]  # type: ignore[arg-type]
        assert changed.shape == plain.shape
        assert not np.array_equal(changed, plain), option
    assert "overview/2" in draw(report({"ig": rand(9, 1, 8, 8)}, 9), Probe(rand(9, 1, 8, 8)))
    assert "overview/2" not in draw(report({"ig": rand(9, 1, 8, 8)}, 9), Probe(rand(9, 1, 8, 8)), Options(max_rows=4))


def test_a_probe_of_other_samples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"report has 3 samples, but probe has 2; give the probe it came from"):
        draw(report({"ig": rand(3, 1, 8, 8)}, 3), Probe(rand(2, 1, 8, 8)))


OUTLINE = (255, 220, 0)


def test_masks_of_a_table_are_not_outlined_on_the_image_beside_it() -> None:
    image, table = torch.rand(2, 1, 8, 8), torch.rand(2, 8)
    report = Report({"ig": (image, table)}, {}, {}, torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.arange(2))
    masks = torch.ones(2, 8, dtype=torch.bool)
    plain, masked = (draw(report, Probe((image, table), masks=each)) for each in (None, masks))
    assert np.array_equal(plain["ig"], masked["ig"])
    assert not (masked["ig"] == OUTLINE).all(-1).any()
    other = replace(report, attributions={"ig": (table, image)})
    found = draw(other, Probe((table, image), masks=image[:, 0] > 0.5))
    assert (found["ig"] == OUTLINE).all(-1).any(), "masks of an image behind a table"
