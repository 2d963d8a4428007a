"""The page of finished runs in a browser with the network off: what its controls do, and what a reader of it gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from browser import Tab, browser, chromium, tab
from finished import CLASSES, HOSTILE, features, finished, images, info, series, texts
from lightning_explain import Probe, load_reports
from lightning_explain import modalities as d
from lightning_explain.core.probe import as_tuple
from lightning_explain.report.page import write_page

pytestmark = pytest.mark.browser
DRAWN = "document.querySelectorAll('.run canvas[aria-label*=strongest]').length"
WHEN = "document.getElementById('when').textContent"
# The colors of the first map, and those of its overlay with their opacity.
PIXELS = """[...document.querySelectorAll('.run canvas')].slice(0, 2)
  .map(c => [...c.getContext('2d').getImageData(0, 0, 12, 12).data].join())"""
OPACITY = "getComputedStyle(document.querySelector('.overlay canvas')).opacity"
LINES = "[...document.querySelectorAll('#runs .sorted tbody tr')].map(line => line.cells[0].textContent)"
# What screen readers are told: the name of each control.
NAMES = """[...document.querySelectorAll('input, select, button')].filter(e => e.offsetParent && !(e.labels?.length || e.textContent.trim()
  || e.getAttribute('aria-label'))).length"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    if chromium() is None and not os.environ.get("CI"):
        pytest.skip("needs Chromium")
    root = tmp_path_factory.mktemp("runs")
    lr = {"marked": 0.1, "clean": 0.02, "small": 0.003}
    runs = [
        finished(root / name, images(), seed=i, run=info(images(), hyperparameters={"lr": value}))
        for i, (name, value) in enumerate(lr.items())
    ]
    path = write_page(runs, root / "page.html")
    with browser(root / "chromium") as found, tab(found, path.as_uri()) as opened:
        opened.wait(f"{DRAWN} >= 12")
        yield opened


def test_the_slider_moves_by_keys_and_by_itself(page: Tab) -> None:
    assert page.value(WHEN) == "epoch 2, step 30"
    last = page.value(PIXELS)
    page.press("ArrowLeft")
    assert page.value(WHEN) == "epoch 1, step 20"
    page.value("document.getElementById('moment').focus()")
    page.press("Home")
    assert page.value(WHEN) == "epoch 0, step 10"
    assert page.value("document.getElementById('moment').getAttribute('aria-valuetext')") == "epoch 0, step 10"
    page.wait(f"{DRAWN} >= 12")
    assert page.value(PIXELS)[0] != last[0]
    page.value("document.getElementById('play').focus()")
    page.press("Enter")
    page.wait(f"{WHEN} === 'epoch 2, step 30'")
    page.wait("document.getElementById('play').getAttribute('aria-pressed') === 'false'")
    page.wait(f"{DRAWN} >= 12")
    assert page.value(PIXELS) == last


def test_method_overlay_and_columns_are_chosen(page: Tab) -> None:
    first = page.value(PIXELS)
    change = "(([id, value]) => {{ const e = document.getElementById(id); {} ; e.dispatchEvent(new Event('{}')) }})({})"
    page.value(change.format("e.value = value", "change", "['method', 'saliency']"))
    page.wait(f"{DRAWN} >= 12")
    assert page.value(PIXELS)[0] != first[0]
    assert "saliency" in page.value("document.querySelector('.run canvas').getAttribute('aria-label')")
    page.value(change.format("e.value = value", "input", "['opacity', '0.25']"))
    assert page.value(OPACITY) == "0.25"
    box = "document.getElementById('show-{}').click()"
    page.value(box.format("difference"))
    assert "difference" not in page.value("document.querySelector('.samples').textContent")
    page.value(box.format("history"))
    captions = page.value("[...document.querySelector('.run').querySelectorAll('figcaption')].map(e => e.textContent)")
    assert [caption.split(",")[0] for caption in captions] == ["first: epoch 0", "previous: epoch 1", "now: epoch 2"]
    for name in ("difference", "history"):
        page.value(box.format(name))
    page.value(change.format("e.value = value", "change", "['method', 'ig']"))


def test_the_table_is_sorted_by_numbers(page: Tab) -> None:
    assert page.value(LINES) == ["marked", "clean", "small"]
    lr = "[...document.querySelectorAll('#runs .sorted thead button')].find(e => e.textContent === 'lr')"
    page.value(f"{lr}.click()")
    assert page.value(LINES) == ["small", "clean", "marked"]
    assert page.value(f"{lr}.parentNode.getAttribute('aria-sort')") == "ascending"
    page.value(f"{lr}.click()")
    assert page.value(LINES) == ["marked", "clean", "small"]


def test_curves_are_drawn_with_errors_and_lead_to_their_epoch(page: Tab) -> None:
    page.value("document.getElementById('curves').scrollIntoView()")
    page.wait("document.querySelectorAll('.plot .scatter').length >= 9")
    titles = page.value("[...document.querySelectorAll('.chart')].map(e => e.querySelector('h3').textContent)")
    assert titles == ["infidelity_relative", "infidelity", "train_loss", "val_loss"]
    assert page.value("document.querySelector('.plot').querySelectorAll('.errorbar').length") == 9
    numbers = page.value("document.querySelector('.chart .numbers').textContent")
    assert numbers.count("±") == 9
    page.value("document.querySelector('.plot').emit('plotly_click', {points: [{curveNumber: 1, pointNumber: 0}]})")
    assert page.value(WHEN) == "epoch 0, step 10"


def test_it_is_readable_dark_narrow_and_by_screen_readers(page: Tab) -> None:
    dark = "getComputedStyle(document.body).backgroundColor"
    before = page.value(dark)
    page.prefer("dark")
    assert page.value(dark) != before
    page.value("document.getElementById('theme').click()")
    assert page.value(dark) == before
    page.prefer("light")
    page.resize(400, 800)
    page.wait("document.documentElement.scrollWidth === 400")
    page.resize(1600, 1000)
    assert page.value(NAMES) == 0
    assert page.value("[...document.querySelectorAll('img')].every(e => e.hasAttribute('alt'))")
    assert page.value("[...document.querySelectorAll('canvas')].every(e => e.getAttribute('aria-label'))")


def test_names_stay_text_and_nothing_is_asked_for(page: Tab) -> None:
    assert HOSTILE in page.value("document.querySelector('.samples').textContent")
    assert CLASSES[3] in page.value("document.querySelector('.samples').textContent")
    assert page.value("[...document.scripts].every(e => !e.textContent.startsWith('alert'))")
    assert {url.partition(":")[0] for url in page.requests} == {"file", "data"}
    assert [url for url in page.requests if url.startswith("file")] == [page.value("location.href")]
    assert page.errors == []


def test_slices_of_a_volume_are_chosen_and_stay_chosen(page: Tab, tmp_path: Path) -> None:
    probe = Probe(torch.rand(2, 1, 5, 8, 6), torch.tensor([0, 1]), torch.arange(2), modalities=d.Volume())
    frames = Probe(torch.rand(1, 8, 3, 8, 8), torch.tensor([0]), torch.arange(1), modalities=d.Video())
    run, video = finished(tmp_path / "run", probe, (10, 20)), finished(tmp_path / "video", frames, (10, 20))
    path = write_page([run, video], tmp_path / "page.html")
    page.call("Page.navigate", url=path.as_uri())
    said, slider = "document.querySelector('.stack div span')?.textContent", "document.querySelector('.stack input')"
    pixels = "[...document.querySelector('.stack canvas').getContext('2d').getImageData(0, 0, 6, 8).data].join()"
    page.wait(f"/slice . of 5/.test({said})")
    by_slice = as_tuple(load_reports(run)[-1].attributions["ig"])[0][0, 0].abs().sum((1, 2))
    assert page.value(said) == f"slice {int(by_slice.argmax()) + 1} of 5"
    wide = "document.querySelectorAll('figure.fluid img')].filter(e => e.offsetWidth > e.closest('figure').offsetWidth)"
    assert page.value(f"[...{wide}.length") == 0
    seen = set()
    for place in range(1, 6):
        page.value(f"{slider}.value = {place}; {slider}.dispatchEvent(new Event('input'))")
        assert page.value(said) == f"slice {place} of 5"
        seen.add(page.value(pixels))
    assert len(seen) == 5
    page.press("ArrowLeft")
    page.wait(f"{said} === 'slice 5 of 5' && !{sorted(seen)!r}.includes({pixels})")
    assert page.errors == []


def test_texts_tables_and_series_are_html(page: Tab, tmp_path: Path) -> None:
    probes = {"text": texts(), "table": features(), "series": series()}
    runs = [finished(tmp_path / name, probe, (10, 20)) for name, probe in probes.items()]
    other = finished(tmp_path / "bare", images(3), (10,), inputs=False, methods=("saliency",))
    path = write_page([*runs, other], tmp_path / "page.html")
    page.call("Page.navigate", url=path.as_uri())
    page.wait(
        "document.querySelectorAll('.track polyline').length === 6 && document.querySelectorAll('.bars').length === 3"
    )
    assert page.value("[...document.querySelectorAll('.words')][0].innerText.split(' ')") == [
        "[CLS]",
        "very",
        HOSTILE,
        "good",
    ]
    assert page.value("document.querySelectorAll('.words span.none').length") == 2
    assert HOSTILE in page.value("[...document.querySelectorAll('.bars th')].map(e => e.textContent)")
    assert "hold no samples" in page.value("document.querySelector('[data-group=\"3\"]').textContent")
    assert "no ig in this run" in page.value("document.querySelector('[data-group=\"3\"]').textContent")
    assert page.errors == []
