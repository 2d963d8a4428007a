"""A training of a model with several outputs: curves, pictures and files of each, watched, resumed and configured by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from faces import Faces, Module
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from comparing import assert_same_numbers
from lightning_explain import ExplanationMonitor, draw, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from training import QUIET, SAFE, trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:.*ProbeSelection.count=16.*:UserWarning")]


SMALL: dict[str, Any] = {
    "methods": {"ig": m.IntegratedGradients(n_steps=2)},
    "metrics": {"infidelity": q.Infidelity(n_perturb_samples=16), "drift": q.Drift()},
}


def fit(folder: Path, monitor: ExplanationMonitor, *callbacks: Any, epochs: int = 2, **more: Any) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    loaders = [DataLoader(Faces(), 4), DataLoader(Faces(), 4)]
    found = trainer(folder, monitor, *callbacks, max_epochs=epochs)
    found.fit(Module(), *loaders, **more)
    return found


def test_the_default_explains_each_output(tmp_path: Path) -> None:
    monitor = ExplanationMonitor()
    found = fit(tmp_path, monitor, ModelCheckpoint(tmp_path / "best", monitor="explain/infidelity_relative/ig@age"))
    report = monitor.last_report
    assert report is not None
    assert set(report.attributions) == {
        f"{method}@{of}" for method in ("saliency", "ig", "cam") for of in ("age", "sex")
    }
    assert not any(report.nonfinite().values())
    assert {f"explain/infidelity_relative/ig@{of}" for of in ("age", "sex")} <= found.callback_metrics.keys()
    assert found.checkpoint_callback.best_model_score is not None
    reports = load_reports(next(tmp_path.rglob("probe.safetensors")).parent)
    assert [one.epoch for one in reports] == [0, 1]
    picture = draw(reports[-1], "history/ig@sex", reports)
    assert picture.shape == draw(reports[-1], "overview@age").shape


@pytest.mark.parametrize("target", ["label", {"age": "label", "young": 0}])
def test_a_resumed_training_continues_the_curves(tmp_path: Path, target: Any) -> None:
    def monitor() -> ExplanationMonitor:
        given = {"age": "label", "sex": 1} if isinstance(target, dict) else target
        return ExplanationMonitor(**SMALL, target=given)

    whole, first, second = monitor(), monitor(), monitor()
    fit(tmp_path / "whole", whole, epochs=3)
    half = fit(tmp_path / "first", first, epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    fit(tmp_path / "second", second, epochs=3, ckpt_path=tmp_path / "half.ckpt", **SAFE)
    assert whole.last_report is not None
    assert second.last_report is not None
    assert second.last_report.scalars() == whole.last_report.scalars()
    for name, value in whole.last_report.attributions.items():
        assert torch.equal(value, second.last_report.attributions[name])
    assert any(name.startswith("drift") and "ig@age" in scores for name, scores in second.last_report.scores.items())


def test_the_training_is_the_one_without_it(tmp_path: Path) -> None:
    alone = fit(tmp_path / "alone", ExplanationMonitor(enabled=False)).lightning_module.state_dict()
    with_it = fit(tmp_path / "with", ExplanationMonitor(**SMALL)).lightning_module.state_dict()
    assert all(torch.equal(alone[name], with_it[name]) for name in alone)


def test_a_configuration_names_targets_and_alerts_on_them() -> None:
    config = {"target": {"age": "label", "sex": {"name": "Position"}}, "alerts": ["infidelity_relative/ig@age > 2"]}
    monitor = ExplanationMonitor.from_config(config)
    assert monitor.charts["explain"]["infidelity_relative"][0] == "explain/infidelity_relative/saliency@age"
    ExplanationMonitor(alerts=["infidelity_relative/ig@whatever > 2"])
    with pytest.raises(ValueError, match="names a score that is not logged"):
        ExplanationMonitor(target={"age": 0}, alerts=["infidelity_relative/ig@sex > 2"])


def test_panels_of_a_method_hold_for_its_map_of_every_target(tmp_path: Path) -> None:
    monitor = ExplanationMonitor(**SMALL, panels={"ig": [("heat_map", "positive")]})
    assert monitor._publisher.options.of("ig@age").panels == (("heat_map", "positive"),)


def test_an_alert_on_an_output_that_is_not_there_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names a score that is not logged"):
        fit(tmp_path, ExplanationMonitor(**SMALL, alerts=["infidelity_relative/ig@size > 2"]))


def test_a_process_beside_the_training_finds_the_same_numbers(tmp_path: Path) -> None:
    ways: dict[str, dict[str, Any]] = {"inline": {}, "beside": {"beside": True, "when_busy": "wait"}}
    reports, scores = [], []
    for name, way in ways.items():
        monitor = ExplanationMonitor(**SMALL, **way, target={"age": "label", "sex": 1}, max_examples_per_pass=8)
        finished = fit(tmp_path / name, monitor)
        reports.append(load_reports(tmp_path / name / "explain"))
        scores.append({key: float(value) for key, value in finished.callback_metrics.items() if "@" in key})
    assert_same_numbers(*reports)
    assert list(reports[1][-1].by_target) == ["age", "sex"]
    assert scores[0] == scores[1]
    assert "explain/infidelity_relative/ig@sex" in scores[1]


class Fails:
    """The first output, until the second explanation."""

    def __init__(self) -> None:
        self.armed = False

    def __call__(self, outputs: Tensor) -> Tensor:
        if self.armed:
            raise ArithmeticError("no target")
        return outputs[:, 0]


class Arms(pl.Callback):
    """Lets the target fail after the first epoch."""

    def __init__(self, target: Fails) -> None:
        self.target = target

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.target.armed = True


@pytest.mark.filterwarnings("ignore:.*'ig@sex' .*:RuntimeWarning")
def test_a_target_that_fails_in_training_takes_no_other_with_it(tmp_path: Path) -> None:
    target = Fails()
    small = {**SMALL, "metrics": {"infidelity": q.Infidelity(n_perturb_samples=16)}}
    monitor = ExplanationMonitor(**small, target={"sex": target, "age": "label"})
    fit(tmp_path, monitor, Arms(target), epochs=5)
    reports = load_reports(tmp_path / "explain")
    assert [list(report.attributions) for report in reports] == [["ig@sex", "ig@age"]] + 4 * [["ig@age"]]
    assert [list(report.by_target) for report in reports][1:] == 4 * [["age"]]
    assert not any(report.nonfinite()["ig@age"] for report in reports)
    (off,) = (name for name in ("ig@sex", "ig@age") if monitor._failure_log.is_off(name))
    assert off == "ig@sex"
