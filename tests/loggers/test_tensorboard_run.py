"""A training of ten epochs in TensorBoard: what its files hold, and what a browser shows of it without a click."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from browser import IMAGES, TEXT, Page, browser, chromium
from lightning_explain import ExplanationMonitor, Sink
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.render.page import LETTERS
from serving import serving, sessions
from training import QUIET, DigitModule, fit, loaders, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET
EPOCHS, KEY = 10, "explain/infidelity_relative/ig"
CAPITAL = 0.75
"""The height of a capital letter as a share of the size of letters; tests/render/test_figure.py measures it."""


class Noted(Sink):
    """Keeps what it is told of the run."""

    def __init__(self) -> None:
        self.run = RunInfo("")

    def begin(self, run: RunInfo) -> None:
        self.run = run

    def write(self, publication: Publication) -> None:
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A training with two monitors and a checkpoint that monitors a score; ``logged`` is what reads its events."""
    root, noted, other = tmp_path_factory.mktemp("run"), Noted(), Noted()
    logger = TensorBoardLogger(root, name="", version="run")
    given = callbacks(root, noted, other)
    fit(root, *given, module=model(), logger=logger, max_epochs=EPOCHS, limit_train_batches=1)
    logged = EventAccumulator(str(root / "run"), size_guidance={"images": 0, "tensors": 0, "scalars": 0}).Reload()
    return SimpleNamespace(root=root, logged=logged, noted=noted.run, other=other.run, steps=[*range(1, 11)])


def callbacks(root: Path, noted: Sink, other: Sink) -> list[pl.Callback]:
    """Two monitors and a checkpoint. The second one leaves out Grad-CAM: no layer of the model has a map on the input."""
    methods = {"saliency": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=2)}
    watch = monitor(methods=methods, metrics=[q.Infidelity(n_perturb_samples=16)], probe=[*range(7)], sinks=[noted])
    default = ExplanationMonitor(name="other", probe=[0, 1], every_n_epochs=5, sinks=[other])
    return [watch, default, ModelCheckpoint(root, monitor=KEY)]


def model() -> DigitModule:
    return DigitModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))


def test_ten_epochs_of_pictures_stand_under_one_tag_with_one_size(run: SimpleNamespace) -> None:
    tags = {tag for tag in run.logged.Tags()["images"] if tag.startswith("explain")}
    assert {"explain_maps/overview", "explain_maps/ig", "explain_maps/history/ig"} <= tags
    assert min(tags, key=lambda tag: tag.replace("_", "/")) == "explain/at_a_glance", "as TensorBoard sorts"
    assert [picture.encoded_image_string for picture in run.logged.Images("explain/at_a_glance")] == [
        picture.encoded_image_string for picture in run.logged.Images("explain_maps/overview")
    ]
    for tag in tags:
        found = run.logged.Images(tag)
        # The second explanation is the first one with a history.
        assert [event.step for event in found] == run.steps[tag.startswith("explain_maps/history/") :]
        sizes = {(event.width, event.height) for event in found}
        assert sizes == {Image.open(io.BytesIO(event.encoded_image_string)).size for event in found}
        assert len(sizes) == 1


def test_the_run_says_what_the_doctor_found_what_is_left_out_and_how_to_read_each_curve(run: SimpleNamespace) -> None:
    assert run.other.left_out["cam"].startswith("it names no layer")
    assert list(run.other.methods) == ["saliency", "ig"]
    assert run.noted.left_out == {}
    assert run.noted.methods["ig"] == "IntegratedGradients(n_steps=2)"
    assert run.noted.changed == ("probe", "sinks")
    assert run.noted.objectives == (KEY,)
    assert run.noted.how_to_read["infidelity"].startswith("Error of a map's prediction of output changes")
    assert (
        "`infidelity_relative` in 0..1, without unit. Lower is better. Chance: " in run.noted.how_to_read["infidelity"]
    )
    (text,) = run.logged.Tensors("other_about/text_summary")
    assert run.other.left_out["cam"] in text.tensor_proto.string_val[0].decode()


@pytest.fixture(scope="module")
def server(run: SimpleNamespace) -> Iterator[str]:
    """The address of a TensorBoard that has read the run, a validation, and a training that is resumed in the same folder."""
    # TensorBoard shows the columns of one of the runs, so all runs have the same ones.
    logger, given = TensorBoardLogger(run.root, name="", version="validated"), callbacks(run.root, Noted(), Noted())
    trainer(run.root, *given, logger=logger).validate(model(), loaders()["val_dataloaders"], verbose=False)
    (checkpoint,) = run.root.glob("*.ckpt")
    logger = TensorBoardLogger(run.root, name="", version="run")
    again = callbacks(run.root, Noted(), Noted())
    resumed = trainer(run.root, *again, logger=logger, max_epochs=11, limit_train_batches=1)
    resumed.fit(model(), ckpt_path=checkpoint, **loaders())
    with serving(run.root, "run", "other_about/text_summary") as url:
        yield url


def test_every_run_is_one_session_of_hyperparameters_with_its_last_scores(run: SimpleNamespace, server: str) -> None:
    found = sessions(server)
    assert found.keys() == {"run", "validated"}
    assert found["validated"]["hparams"] == found["run"]["hparams"]
    assert found["run"]["hparams"] | {"other/methods": "saliency, ig"} == found["run"]["hparams"]
    values = {value["name"]["tag"]: value for value in found["run"]["metricValues"]}
    assert next(iter(values)) == KEY
    assert {"explain/infidelity_relative/saliency", "other/sensitivity_max/ig"} < values.keys()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if chromium() is None and not os.environ.get("CI"):
        pytest.skip(
            "no Chromium: what TensorBoard shows is not looked at; install it (Debian: apt-get install chromium)"
        )
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.mark.browser
@pytest.mark.parametrize("tab", ["?tagFilter=at_a_glance#timeseries", "#images"])
def test_letters_of_the_first_pictures_are_nine_pixels_high(tab: str, server: str, page: Page, tmp_path: Path) -> None:
    shown = page.seen(f"{server}/{tab}", IMAGES, f"{IMAGES}.length > 0", tmp_path / "page.png")
    first = min(shown, key=lambda image: (image["top"], image["left"]))
    assert first["top"] + first["height"] < 900, "seen without a click"
    assert LETTERS * CAPITAL * first["width"] / first["natural"] >= 9
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size[0] == 1600


@pytest.mark.browser
@pytest.mark.parametrize(
    ("tab", "words"),
    [
        ("hparams", ["explain/methods", "explain/infidelity_relative/ig"]),
        ("custom_scalars", ["explain, standard errors", "infidelity_relative"]),
        ("text", ["How to read the curves", "Lower is better", "--samples_per_plugin images=1000"]),
    ],
)
def test_what_is_not_a_picture_is_seen_on_its_page(tab: str, words: list[str], server: str, page: Page) -> None:
    found = page.seen(f"{server}/#{tab}", TEXT, " && ".join(f"{TEXT}.includes('{word}')" for word in words))
    assert all(word in found for word in words)
