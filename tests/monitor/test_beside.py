"""Explanations by a process beside the training: the same numbers, a training that does not wait, and nothing left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_explain import ExplanationMonitor, Report, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import DigitNet
from states import Recorder, assert_equal
from training import QUIET, DigitModule, loaders, monitor_of_digits, points, trainer

pytestmark = QUIET


class Annealed(DigitModule):
    """Its output depends on a plain attribute that training changes, and on a hidden random number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.scale = DigitNet(), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.scale *= 0.9
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@dataclass
class Trained:
    """A finished training."""

    watch: ExplanationMonitor | None
    finished: pl.Trainer
    states: list[dict[str, Any]]
    root: Path

    @property
    def reports(self) -> list[Report]:
        return load_reports(self.root / "run" / "explain")


def trained(root: Path, watch: ExplanationMonitor | None, **arguments: Any) -> Trained:
    """Two epochs of four steps each, with the state of the training after each of them."""
    torch.manual_seed(0)
    recorder = Recorder()
    logger = pl.loggers.TensorBoardLogger(root, name="", version="run")
    callbacks = [recorder] if watch is None else [watch, recorder]
    finished = trainer(root, *callbacks, max_epochs=2, logger=logger, **arguments)
    finished.fit(Annealed(), **loaders())
    return Trained(watch, finished, recorder.states, root)


def watching(**arguments: Any) -> ExplanationMonitor:
    methods = {
        "ig": m.IntegratedGradients(n_steps=3),
        "shap": m.GradientShap(n_samples=2),
        "cam": m.LayerGradCam(layer="net.block"),
    }
    metrics = [q.Infidelity(n_perturb_samples=16), q.Drift()]
    settings: dict[str, Any] = {"every_n_train_steps": 2, "at_start": True, "max_examples_per_pass": 8}
    return monitor_of_digits(**{"methods": methods, "metrics": metrics, **settings, **arguments})


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """The same training without a monitor, with one that it waits for, and with one beside it."""
    root = tmp_path_factory.mktemp("beside")
    beside = watching(beside=True, when_busy="wait", alerts=["infidelity_relative/ig > -1 for 5"])
    return {
        "plain": trained(root / "plain", None),
        "inline": trained(root / "inline", watching()),
        "beside": trained(root / "beside", beside),
    }


def test_the_training_is_the_same_after_every_step(trainings: dict[str, Trained]) -> None:
    assert_equal(trainings["beside"].states, trainings["plain"].states)


def test_maps_scores_and_what_was_logged_are_those_of_an_explanation_that_training_waits_for(
    trainings: dict[str, Trained],
) -> None:
    ours, theirs = trainings["beside"].reports, trainings["inline"].reports
    assert [report.step for report in ours] == [report.step for report in theirs] == [0, 2, 4, 6, 8]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.epoch, a.stage, a.logged, a.fingerprint) == (b.epoch, b.stage, b.logged, b.fingerprint)
        for part in ("attributions", "maps", "outputs", "values", "targets", "standard_errors"):
            assert_equal(getattr(a, part), getattr(b, part), part)
        for score, by_method in b.scores.items():
            for method, values in by_method.items():
                assert torch.equal(a.scores[score][method].nan_to_num(7), values.nan_to_num(7)), (score, method)
        assert a.run is not None
        assert b.run is not None
        assert (a.run.pass_size, a.run.threads, a.run.memory_format) == (
            b.run.pass_size,
            b.run.threads,
            b.run.memory_format,
        )


def test_curves_have_the_steps_of_the_explanations(trainings: dict[str, Trained]) -> None:
    ours, theirs = (points(trainings[name].root) for name in ("beside", "inline"))
    assert {tag: steps for tag, steps in ours.items() if "overhead" not in tag} == {
        tag: steps for tag, steps in theirs.items() if "overhead" not in tag
    }
    assert ours["explain/infidelity_relative/ig"] == [0, 2, 4, 6, 8]


def test_the_trainer_has_the_last_scores_at_the_end(trainings: dict[str, Trained]) -> None:
    ours, theirs = (trainings[name].finished.callback_metrics for name in ("beside", "inline"))
    assert ours.keys() == theirs.keys()
    assert ours["explain/drift_cosine_first/ig"] == theirs["explain/drift_cosine_first/ig"]


def test_the_state_for_checkpoints_is_the_same(trainings: dict[str, Trained]) -> None:
    ours, theirs = (trainings[name].watch.state_dict() for name in ("beside", "inline"))  # type: ignore[union-attr]
    assert ours.keys() == theirs.keys()
    assert_equal(ours["history"], theirs["history"])
    assert_equal(ours["pictures"], theirs["pictures"])
    assert ours["schedule"]["last"] == theirs["schedule"]["last"] == 8
