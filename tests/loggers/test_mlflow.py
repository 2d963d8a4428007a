"""What a run of MLflow holds after a training: its store read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import MLFlowLogger
from PIL import Image

from browser import browser, chromium
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.mlflow import MlflowSink
from lightning_explain.render.page import HEIGHT, LETTERS, MARGIN, NARROW
from serving import mlflow_page
from training import QUIET, fit, start_line
from training import monitor_of_digits as monitor

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")]
# The first picture of a card, and what of the card is seen without scrolling.
CARD = """(() => {
  const image = [...document.querySelectorAll('img[src*=compressed]')].find(e => e.naturalWidth);
  if (!image) return null;
  let shown = image.parentElement;
  while (getComputedStyle(shown).overflowY === 'visible') shown = shown.parentElement;
  return [image.getBoundingClientRect().toJSON(), shown.getBoundingClientRect().toJSON()];
})()"""
CAPITAL = 0.75
"""The height of a capital letter as a share of the size of letters; tests/render/test_figure.py measures it."""
SETTINGS = {"methods": {"ig": {"class": "IntegratedGradients"}}, "class_names": ["x" * 2000], "alerts": [{"above": 1}]}
RUN = RunInfo("explain", settings=SETTINGS | {f"many_{i}": i for i in range(150)})


@pytest.fixture(scope="module")
def logger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLFlowLogger]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # without it, MLflow 3 wants a database
        uri = f"file:{tmp_path_factory.mktemp('mlflow')}"
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # which MLflow sets
        yield MLFlowLogger(tracking_uri=uri)


@pytest.fixture(scope="module")
def written(
    logger: MLFlowLogger, publish: Callable[..., Publication], tmp_path_factory: pytest.TempPathFactory
) -> list[Publication]:
    """Two explanations, and the files, in the run of a logger; settings a second time, as in a run that is resumed."""
    sink, folder = MlflowSink(logger), tmp_path_factory.mktemp("reports")
    publications = [publish(step=10 * (epoch + 1), epoch=epoch) for epoch in range(2)]
    sink.begin(RUN)
    for publication in publications:
        sink.write(publication)
    sink.begin(replace(RUN, settings={**SETTINGS, "methods": {"ig": {"class": "Saliency"}}, "new": "word"}))
    (folder / "step=00000010.safetensors").write_bytes(b"maps")
    sink.upload(folder)
    return publications


def artifacts(logger: MLFlowLogger) -> Path:
    return Path(logger.experiment.get_run(logger.run_id).info.artifact_uri.removeprefix("file://"))


def test_every_scalar_is_there_at_its_step(logger: MLFlowLogger, written: list[Publication]) -> None:
    keys = logger.experiment.get_run(logger.run_id).data.metrics.keys()
    assert keys == written[0].charted.keys()
    for key in keys:
        found = [(m.step, m.value) for m in logger.experiment.get_metric_history(logger.run_id, key)]
        assert found == [(p.step, p.charted[key]) for p in written]


def test_pictures_are_in_the_grid_of_the_page_and_keep_every_pixel(
    logger: MLFlowLogger, written: list[Publication]
) -> None:
    assert logger.experiment.get_run(logger.run_id).data.tags["mlflow.loggedImages"] == "True"
    for publication in written:
        for tag, picture in publication.pictures.items():
            pattern = f"{tag.replace('/', '?')}?step?{publication.epoch}?*.png"
            (path,) = (artifacts(logger) / "images").glob(pattern)
            shown, height = np.asarray(Image.open(path)), len(picture)
            assert np.array_equal(shown[:height], picture)
            assert (shown[height:] == 255).all(), "the cards of the page cut off what is below"


@pytest.mark.parametrize(
    ("settings", "step"),
    [({"at_start": False}, 3), ({"at_start": True}, 70), ({"every_n_train_steps": 5}, 70)],
    ids=str,
)
def test_the_slider_of_pictures_begins_at_a_picture(
    settings: dict[str, Any], step: int, publish: Callable[..., Publication]
) -> None:
    found: list[int] = []
    client = SimpleNamespace(
        log_batch=lambda *_, **__: None,
        log_dict=lambda *_: None,
        log_image=lambda *_, step, **__: found.append(step),
    )
    sink = MlflowSink(SimpleNamespace(experiment=client, run_id="1", log_metrics=lambda *_: None))  # type: ignore[arg-type]
    sink.begin(RunInfo("explain", settings=settings))
    sink.write(publish(step=70, epoch=3))
    assert found == [step] * 2


def test_settings_are_tags_no_longer_than_allowed_and_those_of_a_resumed_run_replace_them(
    logger: MLFlowLogger, written: list[Publication]
) -> None:
    data = logger.experiment.get_run(logger.run_id).data
    assert data.params == {}  # the page lists them above every picture
    assert data.tags["explain/methods/ig/class"] == "Saliency"
    assert data.tags["explain/alerts/0/above"] == "1"
    assert data.tags["explain/many_149"] == "149"
    assert data.tags["explain/new"] == "word"
    assert len(data.tags["explain/class_names"]) == 1000


def test_what_is_true_of_the_run_and_the_reports_are_artifacts(
    logger: MLFlowLogger, written: list[Publication]
) -> None:
    run: dict[str, Any] = json.loads((artifacts(logger) / "explain" / "run.json").read_text())
    assert run["settings"]["methods"]["ig"]["class"] == "Saliency"
    assert (artifacts(logger) / "explain" / "reports" / "step=00000010.safetensors").read_bytes() == b"maps"


@pytest.mark.filterwarnings("error")
def test_names_that_mlflow_refuses_lose_nothing(logger: MLFlowLogger, publish: Callable[..., Publication]) -> None:
    method = "a:b*?é"
    MlflowSink(logger).write(publish(methods=[method], scalars={f"explain/infidelity/{method}": 2.5}))
    assert logger.experiment.get_run(logger.run_id).data.metrics["explain/infidelity/a_b___"] == 2.5
    assert list((artifacts(logger) / "images").glob("explain?a_b___*.png"))


@pytest.mark.slow  # the server starts in ten seconds
@pytest.mark.browser
@pytest.mark.skipif(chromium() is None or find_spec("flask") is None, reason="no Chromium, or MLflow without its page")
def test_letters_of_pictures_on_the_cards_are_nine_pixels_high(logger: MLFlowLogger, tmp_path: Path) -> None:
    own = MLFlowLogger(tracking_uri=f"file:{logger.save_dir}")
    fit(tmp_path, monitor(), logger=own)
    with mlflow_page(Path(str(logger.save_dir)), tmp_path) as url, browser(tmp_path / "chromium") as page:
        address = f"{url}/#/experiments/{own.experiment_id}/runs/{own.run_id}/model-metrics"
        image, shown = page.seen(address, CARD, f"{CARD} !== null", tmp_path / "page.png")
    for path in (artifacts(own) / "images").glob("explain_maps*.png"):
        with Image.open(path) as picture:
            assert picture.size == (NARROW, NARROW)
    assert LETTERS * CAPITAL * image["width"] / NARROW >= 9
    last_line = (HEIGHT - MARGIN) / NARROW  # as a share of the square
    assert image["top"] >= shown["top"]
    assert image["top"] + image["height"] * last_line <= shown["bottom"]


def test_the_line_at_the_start_names_the_run(logger: MLFlowLogger, tmp_path: Path) -> None:
    line = start_line(tmp_path, logger=logger)
    assert line.startswith(f"scalars and pictures go to MLflow (run {logger.run_id}); reports to ")
    assert line.endswith(f"/{logger.experiment_id}/{logger.run_id}/explain")


def test_a_store_that_is_gone_ends_no_training(
    logger: MLFlowLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(logger.experiment, "log_image", gone)
    with pytest.warns(RuntimeWarning, match=r"MlflowSink failed; training continues(.|\n)*no route to host"):
        finished = fit(tmp_path, monitor(name="cut"), logger=logger)
    assert finished.global_step == 4
    assert "cut/infidelity/saliency" in logger.experiment.get_run(logger.run_id).data.metrics
