"""Pages of words, features and series: their size, what is seen on them, and that numbers kept are enough to draw them again."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_explain import modalities as d
from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.core.panels import (
    FeaturesPanel,
    FramesPanel,
    HorizonPanel,
    Panel,
    SeriesPanel,
    SpectrogramPanel,
    VolumePanel,
    WordsPanel,
)
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.render import features, letters, series, slices, texts, words
from lightning_explain.render.captions import Caption, Short
from lightning_explain.render.figure import draw_sample, figure_of
from lightning_explain.render.history import PictureHistory
from lightning_explain.render.kinds import KINDS, recalled, remembered
from lightning_explain.render.notes import Notes, Track
from lightning_explain.render.options import Options
from lightning_explain.render.page import HEIGHT, NARROW, WIDTH

BLUE, ORANGE, RED, AMBER = ([0, 114, 178], [213, 94, 0], [190, 20, 40], [150, 85, 0])
WIDE_PAGES = 1367628193
RIGHT = Caption((), False, Short("good", "", "98%", True))
WRONG = Caption((), True, Short("bad", "good", "71%", True, "label"))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def notes(n: int, scale: str = "sample", wrong: bool = False, width: int = WIDTH) -> Notes:
    titles = [WRONG if wrong else RIGHT] * n
    return Notes("ig", "epoch 3", titles, torch.ones(n), ("against", "for", "the label"), scale, width)


def drawn(panel: Panel, scale: str = "sample", wrong: bool = False) -> list[Picture]:
    made = KINDS[panel.kind].pages(panel, [Track((), panel.values)], notes(len(panel.values), scale, wrong))
    return [page() for page in made]


def has(picture: Picture, color: list[int]) -> bool:
    return bool((picture == color).all(-1).any())


def area(picture: Picture, color: list[int]) -> int:
    return int((picture == color).all(-1).sum())


def text_of(*values: list[float]) -> WordsPanel:
    return WordsPanel("words", torch.tensor(values), words=[[f"word{i}" for i in range(len(values[0]))]] * len(values))


def table_of(values: Tensor) -> FeaturesPanel:
    names = [f"feature {i}" for i in range(values.shape[1])]
    return FeaturesPanel("", "features", values, names=names, texts=[["1.5"] * len(names)] * len(values), levels=values)


def series_of(values: Tensor, rate: float | None = None) -> SeriesPanel:
    names = [f"c{i}" for i in range(values.shape[1])]
    return SeriesPanel("", values=values, series=rand(*values.shape, seed=9), channels=names, rate=rate)


def panels_of_all_kinds() -> list[Panel]:
    panels: list[Panel] = [text_of([0.1, -1.0, 0.5], [0.1, 1.0, torch.nan])]
    panels += [
        replace(table_of(rand(2, 12) - 0.5), kind=kind) for kind in ("features", "waterfall", "beeswarm", "importance")
    ]
    panels += [series_of(rand(2, 1, 50) - 0.5), series_of(rand(2, 6, 3000) - 0.5, rate=250.0)]
    return [
        *panels,
        HorizonPanel("", rand(2, 6, 50) - 0.5, series=rand(2, 2, 50), channels=["a", "b"], steps=[0, 1, 2]),
        FramesPanel("", rand(2, 9, 7, 8) - 0.5, frames=rand(2, 9, 3, 7, 8), rate=25.0),
        SpectrogramPanel("", rand(2, 9, 12) - 0.5, image=rand(2, 9, 12), ticks=[(0.1, "2k"), (1.0, "0")], unit="Hz"),
        VolumePanel("", rand(2, 6, 7, 8) - 0.5, volume=rand(2, 6, 7, 8), orientation="SPL"),
    ]


@pytest.mark.parametrize("width", [WIDTH, NARROW])
def test_pages_of_every_kind_have_one_size_and_mark_wrong_predictions(width: int) -> None:
    panels = panels_of_all_kinds()
    assert {panel.kind for panel in panels} == set(KINDS)
    for panel in panels:
        for tracks in ([Track((), panel.values)], [Track(("a", f"epoch {i}"), panel.values * i) for i in range(4)]):
            for make in (KINDS[panel.kind].pages, KINDS[panel.kind].several):
                pages = [page() for page in make(panel, tracks, notes(2, width=width))]
                assert {(page.shape, page.dtype) for page in pages} == {((HEIGHT, width, 3), np.dtype(np.uint8))}
        marked = [has(page, RED) for page in drawn(panel, wrong=True)]
        assert all(marked) != KINDS[panel.kind].of_all, panel.kind
        assert not any(has(page, RED) for page in drawn(panel))


def test_wide_pages_change_on_purpose_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what was drawn and looked at last; letters are boxes here, because fonts differ between versions."""
    monkeypatch.setattr(letters, "width", lambda text, size: len(text) * size // 2)
    monkeypatch.setattr(letters, "write", box)
    shown = [Track(("ig", "now"), torch.empty(0))]
    checksum = 0
    for panel in panels_of_all_kinds()[:7]:
        for count, make in ((1, KINDS[panel.kind].pages), (3, KINDS[panel.kind].several)):
            tracks = [replace(shown[0], values=panel.values)] * count
            for page in make(panel, tracks, notes(2)):
                checksum = zlib.crc32(page().tobytes(), checksum)
    assert checksum == WIDE_PAGES


def box(canvas: Picture, text: str, x: int, y: int, size: int, color: tuple[int, int, int]) -> None:
    canvas[max(0, y) : y + size, max(0, x) : x + len(text) * size // 2] = color


def test_the_strongest_word_has_the_strongest_color_and_special_tokens_have_none() -> None:
    against = text_of([0.0, -2.0, 0.0, torch.nan])
    bar = area(drawn(text_of([0.0, 0.0, 0.0, torch.nan]))[0], BLUE)
    assert area(drawn(against)[0], BLUE) > bar + 500
    assert not area(drawn(against)[0], ORANGE) > bar
    special = text_of([0.0, torch.nan, 0.0, torch.nan])
    assert area(drawn(special)[0], BLUE) == bar


def test_a_long_text_is_shortened_around_its_strongest_words() -> None:
    values = torch.full((1, 500), 0.01)
    values[0, 37], values[0, 402] = 1.0, -0.9
    text = words._Text([f"word{i}" for i in range(500)], values[0], 24)
    boxes = text.shortened(values[0].abs(), 690, 3)
    shown = [index for index, _, _ in boxes]
    assert {37, 36, 38, 402, 401, 403, None} <= set(shown)
    assert {line for _, _, line in boxes} == {0, 1, 2}
    assert all(x + text_width <= 690 for x, text_width in [(x, 0) for _, x, _ in boxes])


def written_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is written on pictures from now on."""
    found, write = list[str](), letters.write

    def spied(canvas: Picture, words: str, *arguments: Any) -> None:
        found.append(words)
        write(canvas, words, *arguments)

    monkeypatch.setattr(letters, "write", spied)
    return found


@pytest.mark.parametrize("width", [NARROW, WIDTH])
def test_ids_of_which_no_words_are_known_say_once_on_each_page_how_to_give_them(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    hint, ids = "ids: give modalities=Text(tokenizer=...)", torch.arange(1, 49).reshape(6, 8)
    said = written_by(monkeypatch)
    for text, count in ((d.Text(pad_id=0), 2), (d.Text(vocabulary=[f"w{i}" for i in range(49)]), 0)):
        (panel,) = text.panels((torch.rand(6, 8),), (ids,), ())
        assert isinstance(panel, WordsPanel)
        pages = KINDS["words"].pages(panel, [Track((), panel.values)], notes(6, width=width))
        said.clear()
        pictures = [page() for page in pages]
        assert (len(pictures), said.count(hint)) == (2, count)
        assert all((picture[HEIGHT - 29 :] != 255).any() == (count > 0) for picture in pictures), (
            "alone in the last line"
        )
        written = texts.as_html(panel, [RIGHT] * 6, "ig"), texts.as_markdown(panel, [RIGHT] * 6, "ig")
        assert [page.count("Text(tokenizer") + page.count("Text\\(tokenizer") for page in written] == [count // 2] * 2


@pytest.mark.parametrize("kind", ["words", "features", "waterfall", "slices", "frames", "spectrogram"])
def test_the_score_of_a_map_stands_in_its_title_unless_maps_of_several_methods_share_it(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    panel = next(panel for panel in panels_of_all_kinds() if panel.kind == kind)
    scores = torch.full((len(panel.values),), torch.nan)
    scores[0] = 0.123
    told = replace(notes(len(panel.values)), captions=[Caption((), False, Short("a"))] * len(panel.values))
    scored = replace(told, score="infidelity_relative", scores=scores)
    said = written_by(monkeypatch)
    track, named = Track((), panel.values), Track(("ig",), panel.values)
    for page in KINDS[kind].pages(panel, [track], scored):
        page()
    assert [words for words in said if "infidelity" in words] == [one for one in said if one.endswith("infidelity .12")]
    assert sum("infidelity .12" in words for words in said) == 1, "NaN, for what is undefined, is not written"
    said.clear()
    for page in (*KINDS[kind].pages(panel, [track], told), *KINDS[kind].several(panel, [named, named], scored)):
        page()
    assert said
    assert not [words for words in said if "infidelity" in words]


def test_a_score_takes_no_space_from_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    panel, said = text_of([0.5, -1.0]), written_by(monkeypatch)
    long = Caption((), False, Short("m" * 18, "", "98%", True))
    for title, expected in ((RIGHT, "f 1  Σ -.5  infidelity .12"), (long, "f 1  Σ -.5")):
        scored = replace(notes(1), captions=[title], score="infidelity_relative", scores=torch.tensor([0.123]))
        said.clear()
        (page,) = KINDS["words"].pages(panel, [Track((), panel.values)], scored)
        page()
        assert [words for words in said if words.startswith("f 1")] == [expected]


def test_pages_of_words_have_the_scores_of_the_report_and_those_of_classes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, inputs = torch.tensor([0, 1]), torch.tensor([[1, 2, 3], [1, 3, 2]])
    probe = Probe(
        inputs, labels, class_names=("bad", "good"), modalities=d.Text(vocabulary=["-", "a", "dull", "great"])
    )
    scores = {"infidelity_relative": {"ig": torch.tensor([0.25, 0.5])}}
    report = Report({"ig": rand(2, 3)}, scores, {}, torch.eye(2), labels, labels, torch.arange(2), values=torch.ones(2))
    said = written_by(monkeypatch)
    figure_of(report, probe).picture("ig")
    assert [words.split("  ")[-1] for words in said if words.startswith("f ")] == ["infidelity .25", "infidelity .5"]
    said.clear()
    figure_of(report, probe).picture("ig/2")
    assert any(words.startswith("strongest words") for words in said)
    assert not [words for words in said if "infidelity" in words]


def test_words_in_html_are_escaped() -> None:
    panel = WordsPanel("", torch.tensor([[torch.nan, 1.0, -1.0, torch.nan]]), words=[["<s>", "<b>&", '"x"', ""]])
    (line,) = words.words_html(panel)
    assert line.count("<span") == 3
    assert "&lt;b&gt;&amp;</span>" in line
    assert "&quot;x&quot;" in line
    assert 'background:#d55e00" title="1"' in line
    assert 'background:#0072b2" title="-1"' in line


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kind", ["slices", "frames", "spectrogram"])
def test_the_input_is_drawn_without_a_map_above_its_maps(kind: str, several: bool) -> None:
    """A map of the other sign changes what lies below the plain row, and nothing in it."""
    (panel,) = (panel for panel in panels_of_all_kinds() if panel.kind == kind)
    both = []
    for sign in (1, -1):
        values = panel.values * sign
        tracks = [Track(("ig",), values), Track(("cam",), values)][: 1 + several]
        (page, *_) = KINDS[kind].pages(replace(panel, values=values), tracks, notes(2))
        both.append(page())
    # Below the head and the two lines of a title.
    changed, shown = ((array.any(-1))[100:, 130:] for array in (both[0] != both[1], both[0] != 255))
    first = int(np.flatnonzero(changed.any(1))[0])
    assert first >= 70
    assert shown[:first].mean() > 0.2, "that is the input"


def test_slices_of_all_methods_go_through_one_voxel() -> None:
    (panel,) = (panel for panel in panels_of_all_kinds() if panel.kind == "slices")
    weak, strong = torch.zeros(2, 6, 7, 8), torch.zeros(2, 6, 7, 8)
    weak[:, 1, 1, 1], strong[:, 4, 5, 6] = 0.2, 1.0
    weak[:, 4, 5, 6] = 0.15
    drawn, of = list[tuple[int, int, int]](), slices.Shown.pictures

    def noted(self: slices.Shown, *args: object, **named: object) -> list[tuple[str, Picture]]:
        drawn.append(self.voxel)
        return of(self, *args, **named)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices.Shown, "pictures", noted)
        KINDS["slices"].several(panel, [Track(("a",), weak), Track(("b",), strong)], notes(2))[0]()
    assert drawn == [(4, 5, 6)] * 6, "plain, and of both, of two samples"


def test_a_waterfall_leads_from_f_minus_the_sum_to_f() -> None:
    values = torch.tensor([0.1, 5.0, -3.0, 0.2, 0.3, 0.4, 1.0])
    bars = features._bars(table_of(values[None]), 0, values, 4, base=-2.0)
    assert [bar.name for bar in bars] == ["feature 1", "feature 2", "feature 6", "4 others"]
    assert bars[-1].start == -2.0
    ends = [bar.start + bar.value for bar in bars]
    assert ends[0] == pytest.approx(-2.0 + values.sum().item(), abs=1e-5)
    assert [bar.start for bar in bars[:-1]] == pytest.approx(ends[1:])


def test_the_scale_is_that_of_the_sample_or_of_all() -> None:
    table, text = table_of(torch.tensor([[4.0, 0.0], [0.5, 0.0]])), text_of([4.0, 0.0], [0.5, 0.0])
    for panel in (table, text):
        own, common = (drawn(panel, scale)[0][HEIGHT // 2 if panel is table else 130 :] for scale in ("sample", "all"))
        assert area(common, ORANGE) < area(own, ORANGE) / 3
    with pytest.raises(ValueError, match="scale='each'"):
        Options(scale="each")


@pytest.mark.parametrize(
    ("limits", "height", "expected"),
    [
        ((-3.1, 2.9), 90, ["-2", "0", "2"]),
        ((-3.1, 2.9), 400, ["-2", "0", "2"]),
        ((0.0, 1.0), 90, ["0", ".5", "1"]),
        ((980.0, 1620.0), 90, ["1e3", "1500"]),
        ((-1.2e-4, 3e-5), 90, ["-1e-4", "-5e-5", "0"]),
        ((2.0, 2.0), 90, ["2"]),
        ((0.0, 0.0), 90, ["0"]),
    ],
)
def test_the_axis_of_values_has_up_to_three_round_numbers(
    limits: tuple[float, float], height: int, expected: list[str]
) -> None:
    assert [series.exact(value) for value in series.ticks(limits, height)] == expected


def test_each_strip_has_an_axis_where_its_curve_is() -> None:
    """A channel that is at zero and, for a while, at 400, with marks at both."""
    panel = replace(series_of(torch.zeros(1, 1, 50)), series=torch.zeros(1, 1, 50), channels=["II"])
    panel.series[0, 0, 20:30] = 400.0
    for count in (1, 2):
        page = series.pages(panel, [Track(("ig",), panel.values)] * count, notes(1))[0]()
        curve = (page[80:, 240:] < 40).all(-1)
        frame = (page[80:] == series.LINE).all(-1).sum(0)
        x = int(np.flatnonzero(frame > frame.max() / 2)[0])
        marks = np.flatnonzero((page[80:, x - 4] == series.GRAY).all(-1))
        runs = np.flatnonzero(curve.mean(1) > 0.05)
        for end in (runs[0], runs[-1]):
            assert np.abs(marks - end).min() <= 2, count


def test_a_short_peak_of_a_long_series_is_seen() -> None:
    values = torch.zeros(1, 8, 40_000)
    values[0, 6, 31_000] = 1.0
    page = drawn(series_of(values, rate=500.0))[0][60:]
    of_layer = [Track(("ig",), values), Track(("cam",), values[:, :1, ::100])]
    assert series.pages(series_of(values), of_layer, notes(1))[0]().shape == (HEIGHT, WIDTH, 3)
    columns = np.flatnonzero((page == ORANGE).all(-1).any(0))
    assert len(columns) >= 3
    assert np.ptp(columns) <= 4
    assert series._strongest([values, values.sum(1, keepdim=True)], 8, 1) == [6], "whatever a map of all channels says"


def test_maps_that_are_not_finite_are_said_to_be() -> None:
    for panel in (
        text_of([torch.nan] * 3),
        table_of(torch.full((1, 3), torch.nan)),
        series_of(torch.full((1, 1, 9), torch.inf)),
    ):
        (page,) = drawn(panel)
        assert has(page, AMBER)
        assert recalled(*remembered(panel), panel).isnan().all()


def modality_cases() -> list[tuple[Modality, Tensor, dict[str, Tensor]]]:
    ids = torch.arange(40).reshape(5, 8) % 7
    text = d.Text(vocabulary=["<pad>", "[CLS]", *"abcde"], pad_id=0, special_ids=(1,))
    table = d.Tabular(feature_names=[f"feature {i}" for i in range(9)])
    return [
        (text, ids, {"ig": rand(5, 8) - 0.5, "abl": rand(5, 8, seed=1) - 0.5}),
        (table, rand(5, 9), {"ig": rand(5, 9) - 0.5, "abl": rand(5, 9, seed=1) - 0.5}),
        (
            d.TimeSeries(layout="NTC"),
            rand(5, 600, 2),
            {"ig": rand(5, 600, 2) - 0.5, "abl": rand(5, 600, 2, seed=1) - 0.5},
        ),
    ]


@pytest.mark.parametrize("case", range(3))
def test_pages_over_epochs_are_counted_named_and_drawn_again_alone(case: int) -> None:
    modality, inputs, maps = modality_cases()[case]
    probe, history = Probe(inputs, targets=torch.arange(5) % 3, modalities=modality), PictureHistory()
    outputs, ids = torch.eye(3)[torch.arange(5) % 3], torch.arange(5)
    for epoch in range(4):
        scaled = {name: found * (epoch + 1) for name, found in maps.items()}
        report = Report(
            scaled, {}, {}, outputs, outputs.argmax(1), ids % 3, ids, epoch=epoch, step=epoch, fingerprint="f"
        )
        figure = figure_of(report, probe)
        pictures = figure.pictures(history)
        assert len(pictures) == figure.count(history)
        before, history = history, history.followed_by(figure.snapshot, "f")
        history = PictureHistory.of_state(history.state())
    firsts = [key for key in pictures if not key[-1].isdigit()]
    assert list(figure.pictures(before, further=False)) == firsts
    assert firsts == ["overview", "ig", "abl", "history/ig", "history/abl"]
    former = PictureHistory(history.kept[:-1], history.count - 1, "f")
    for key in (firsts[0], firsts[1], f"{firsts[1]}/2", firsts[3]):
        assert np.array_equal(figure.picture(key, former), figure.pictures(former)[key])
    sample = draw_sample(report, probe, Options(), "ig", 2)
    assert has(sample, ORANGE) or has(sample, BLUE)


def test_a_forecast_continues_its_channel_beside_what_came_true() -> None:
    panel = replace(series_of(rand(2, 2, 30) - 0.5), continued=1)
    found = panel.with_forecast(rand(2, 10), rand(2, 10, seed=1))
    (page,) = drawn(found)
    green = np.flatnonzero((page == [0, 125, 90]).all(-1).any(0))
    start, width = 124, (WIDTH - 124) // 2
    inside = [x for x in green if start <= x]
    assert min(inside) >= start + 0.7 * width, "a quarter of the strip is ahead"
    middle = page[HEIGHT // 2 :]
    assert has(middle, [0, 125, 90]), "the second channel"
    assert not has(page[70:200, start:], [0, 125, 90]), "not the first"
    every = panel.with_forecast(rand(2, 10, 2), rand(2, 10, 2, seed=1))
    assert every.predicted is not None
    assert every.predicted.shape == (2, 2, 10)
    assert has(drawn(every)[0][70:200, start:], [0, 125, 90])


def test_the_explained_step_has_a_dot_on_the_forecast() -> None:
    panel, ahead = replace(series_of(rand(2, 1, 30) - 0.5), continued=0), (rand(2, 10), rand(2, 10, seed=1))
    (plain,) = drawn(panel.with_forecast(*ahead))
    places = []
    for step in (2, 7):
        (page,) = drawn(panel.with_forecast(*ahead, torch.tensor([step, step])))
        changed = (page != plain).any(-1)[:, : (WIDTH + 124) // 2]
        assert 30 < changed.sum() < 110, "a dot of ten pixels, in the first column"
        places.append(np.flatnonzero(changed.any(0)).mean())
    drawn_panel = panel.with_forecast(*ahead)
    axis = series._Drawn(drawn_panel, [Track((), panel.values)], [panel.values], notes(2)).axis
    assert places[1] - places[0] == pytest.approx(5 / 40 * ((WIDTH - 124) / 2 - axis), abs=3)


@pytest.mark.parametrize("labels", [None, torch.ones(2), torch.ones(2, 5, dtype=torch.long), torch.eye(2, 5)])
def test_outputs_of_classes_are_no_forecast(labels: Tensor | None) -> None:
    panel = replace(series_of(rand(2, 1, 30)), continued=0)
    assert panel.with_forecast(rand(2, 5), labels) is panel
    assert replace(panel, continued=None).with_forecast(rand(2, 5), rand(2, 5)).predicted is None


def test_a_forecast_is_that_of_the_only_channel_or_of_the_one_that_is_named() -> None:
    x, y = rand(2, 3, 30), rand(2, 5)
    report = Report({"ig": x}, {}, {}, y, torch.zeros(2), torch.zeros(2), torch.arange(2))
    names = ["load", "heat", "wind"]
    for channel, place in (("heat", 1), (2, 2), (None, None)):
        modality = d.TimeSeries(channel_names=names, layout="NCT", forecast=channel)
        (panel,) = figure_of(report, Probe(x, y, modalities=modality)).own["ig"]
        assert isinstance(panel, SeriesPanel)
        found = None if panel.predicted is None else panel.predicted[0, :, 0].isfinite().tolist()
        assert found == (None if place is None else [i == place for i in range(3)])
    with pytest.raises(ValueError, match=r"TimeSeries\(forecast='heta'\): did you mean 'heat'"):
        d.TimeSeries(channel_names=names, layout="NCT", forecast="heta").bound(x, InputFacts())


def test_kinds_of_panels_are_chosen_for_each_method_in_their_order() -> None:
    table, maps = rand(16, 9), {"ig": rand(16, 9) - 0.5, "abl": rand(16, 9) - 0.5}
    outputs, ids = torch.eye(2)[torch.arange(16) % 2], torch.arange(16)
    report = Report(maps, {}, {}, outputs, outputs.argmax(1), ids % 2, ids)
    probe = Probe(table, modalities=d.Tabular())
    options = Options(panels={"ig": ["waterfall", ["beeswarm", "all"]], "default": ["importance"]})
    figure = figure_of(report, probe, options)
    assert {name: [panel.kind for panel in own] for name, own in figure.own.items()} == {
        "ig": ["waterfall", "beeswarm"],
        "abl": ["importance"],
    }
    assert len(figure.pictures()) == figure.count() == 1 + 9 + 1
    assert len(figure_of(report, probe).pictures()) == 1 + 2 * 18


def test_several_tables_are_ranked_together_under_their_own_names() -> None:
    """The exact map of f = 3 age + 2 dose + age(2) over two tables."""
    numbers, codes = rand(4, 2), rand(4, 1, seed=1)
    maps = numbers * torch.tensor([3.0, 2.0]), codes
    values = torch.cat(maps, 1).sum(1)
    report = Report({"ig": maps}, {}, {}, values[:, None], values, torch.zeros(4), torch.arange(4))
    tables = d.Tabular(["age", "dose"]), d.Tabular(["age"])
    probe = Probe((numbers, codes), modalities=tables)
    (swarm, _, bars, stacked) = figure_of(report, probe).own["ig"]
    assert isinstance(bars, FeaturesPanel)
    assert list(bars.names) == ["age", "dose", "age (2)"]
    assert torch.equal(bars.values, torch.cat(maps, 1).double())
    assert (swarm.kind, bars.kind, stacked.kind) == ("beeswarm", "features", "waterfall")
    assert isinstance(stacked, FeaturesPanel)
    found = features._bars(stacked, 0, stacked.values[0], 4, base=0.0)
    assert found[0].start + found[0].value == pytest.approx(float(values[0]), abs=1e-6)
    assert [bar.text for bar in found] == [
        f"{float(torch.cat([numbers, codes], 1)[0, i]):.4g}" for i in stacked.values[0].abs().argsort(descending=True)
    ]
    assert (
        draw_sample(report, probe, Options(), "ig", 0).shape
        == draw_sample(*joint_of(report, probe), Options(), "ig", 0).shape
    )


def test_maps_of_several_embeddings_are_drawn_on_their_table_beside_those_of_the_inputs() -> None:
    numbers, codes = rand(4, 2), torch.zeros(4, 2, dtype=torch.long)
    maps = numbers + 1, codes + 1.0
    # What the two columns of codes look up, and the numbers.
    by_layer = rand(4, 3), rand(4, 3), maps[0]
    values = torch.zeros(4)
    report = Report(
        {"ig": by_layer, "ablation": maps}, {}, {}, values[:, None], values, values, torch.arange(4), maps={"ig": maps}
    )
    probe = Probe((numbers, codes), modalities=(d.Tabular(["age", "dose"]), d.Tabular(["sex", "ward"])))
    figure = figure_of(report, probe)
    for panels in figure.own.values():
        assert list(panels[0].names) == ["age", "dose", "sex", "ward"]  # type: ignore[attr-defined]
        assert torch.equal(panels[0].values, torch.cat(maps, 1).double())
    # A method that lies on one of the tables only cannot be compared with one that lies on both.
    partly = replace(
        report, attributions={"ig": by_layer, "other": by_layer}, maps={"ig": maps, "other": (maps[0], 0 * maps[1])}
    )
    assert len(figure_of(partly, probe).own["other"][0].values[0]) == 2
    assert len(figure_of(partly, probe).pictures()) == figure_of(partly, probe).count()


def joint_of(report: Report, probe: Probe) -> tuple[Report, Probe]:
    """The same with one table."""
    (maps,) = report.attributions.values()
    whole = torch.cat(probe.inputs, 1)
    return replace(report, attributions={"ig": torch.cat(maps, 1)}), Probe(
        whole, modalities=d.Tabular(["age", "dose", "age 2"])
    )


def test_a_kind_of_panel_that_no_input_has_is_refused_and_one_that_another_input_has_is_not() -> None:
    table, image = rand(2, 3), rand(2, 1, 8, 8)
    report = Report({"ig": table}, {}, {}, torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.arange(2))
    for kind in ("series", ("heat_map", "all")):
        match = (
            "names '(series|heat_map)', which none of the inputs has: Tabular has 'beeswarm', 'importance', 'features'"
        )
        with pytest.raises(ValueError, match=match):
            figure_of(report, Probe(table), Options(panels=[kind]))  # type: ignore[arg-type]
    both = replace(report, attributions={"ig": (image, table)})
    found = figure_of(both, Probe((image, table)), Options(panels=["beeswarm"]))  # type: ignore[arg-type]
    assert [panel.kind for panel, _ in found.panels["ig"]] == ["original_image", "heat_map", "blended_heat_map"]
    assert [panel.kind for panel in found.own["ig"]] == ["beeswarm"]


def bars_of(panel: FeaturesPanel, sample: int, base: float | None = None) -> list[features._Bar]:
    return features._bars(panel, sample, panel.values[sample], 5, base)


def test_the_strongest_words_of_each_class_are_counted_drawn_and_escaped() -> None:
    values = [[2.0, 1.0, torch.nan], [4.0, -1.0, 0.5], [1.0, 3.0, float("inf")]]
    said = [["great", "<b>|", "[SEP]"], ["great", "dull", "<b>|"], ["dull", "great", "odd"]]
    panel = WordsPanel("", torch.tensor(values), words=said)
    titles = [Caption((f"label {name}",), short=Short(name)) for name in ("good", "good", "*bad*")]
    classes = texts.strongest(panel, list(map(texts.class_of, titles)))
    assert classes["good"] == [("great", 3.0, 2), ("<b>|", 0.75, 2)], (
        "means over the class, and only words that speak for it"
    )
    assert classes["*bad*"] == [("great", 3.0, 1), ("dull", 1.0, 1)]
    features, heads = texts.of_classes(panel, titles)  # type: ignore[misc]
    assert [head.lines[0] for head in heads] == ["strongest words of good, 2 texts", "strongest words of *bad*, 1 text"]
    assert features.values.nan_to_num(0.0).tolist() == [[3.0, 0.75, 0.0], [3.0, 0.0, 1.0]]
    assert features.texts == [["2 times", "2 times", ""], ["once", "", "once"]]
    assert [bar.name for bar in bars_of(features, 1)] == ["great", "dull"], (
        "no line for words that the class does not have"
    )
    page = texts.as_html(panel, titles, "<ig>")
    assert "<h3>&lt;ig&gt;</h3>" in page
    assert "<th>good</th><td>great (+3, 2 times), &lt;b&gt;| (+0.75, 2 times)</td>" in page
    assert "<b>|" not in page
    plain = texts.as_markdown(panel, titles, "ig")
    assert r"| \*bad\* | great (+3, once), dull (+1, once) |" in plain
    assert r"**great** (+2) **&lt;b&gt;\|** (+1) \[SEP\]" in plain
    assert texts.of_classes(panel, []) is None


def test_a_curve_is_drawn_in_one_call_as_line_by_line_and_the_same_again_when_it_is_remembered() -> None:
    values = rand(60, seed=3).double()
    values[[7, 20, 21]] = torch.tensor([torch.nan, torch.inf, torch.nan], dtype=torch.double)
    size, limits = (40, 90), (0.0, 1.0)
    fine = Image.new("L", (270, 120))
    x, y = (np.arange(60) + 0.5) / 60 * 270, 120 * (0.94 - 0.88 * values.numpy())
    for i in range(59):
        if np.isfinite(y[[i, i + 1]]).all():
            ImageDraw.Draw(fine).line([x[i], y[i], x[i + 1], y[i + 1]], fill=255, width=5)
    slow = np.asarray(fine, dtype=np.float64).reshape(40, 3, 90, 3).mean((1, 3)) / 255
    for _ in range(2):
        assert np.allclose(series._curve(values, size, limits), slow, atol=1e-12)
