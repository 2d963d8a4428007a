"""Checkpoints, early stopping and schedulers watch scores that are logged; a checkpoint never ends a training for lack of one."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_explain import ExplanationMonitor, ProbeSelection, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from training import QUIET, Blind, DigitModule, fit, loader, steps_in, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET

KEY = "explain/infidelity/saliency"
RARE = {"check_val_every_n_epoch": 2}


def logged(root: Path) -> list[float]:
    """The score of every explanation, from the stored reports."""
    return [report.scalars()["infidelity/saliency"] for report in load_reports(root / "explain")]


def checkpoint(root: Path, **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(root / "checkpoints", monitor=KEY, **arguments)


class Other(EarlyStopping):
    """Early stopping that never stops."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"monitor": KEY, "patience": 100, **arguments})


# -- those that work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"hook": "validation_epoch_end"}, {"at_start": True}, {"every_n_train_steps": 4, "at_start": True}],
)
@pytest.mark.filterwarnings("ignore:.*runs more often")
def test_the_best_checkpoint_is_of_the_best_score_logged(mode: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    best = checkpoint(tmp_path, mode=mode)
    fit(tmp_path, monitor(**arguments), best, max_epochs=3)
    scores = logged(tmp_path)[-3:]
    assert float(best.best_model_score or 0) == pytest.approx({"min": min, "max": max}[mode](scores))
    assert f"step={4 * (scores.index({'min': min, 'max': max}[mode](scores)) + 1)}" in best.best_model_path


def test_a_checkpoint_every_few_steps_sees_the_score_of_its_step(tmp_path: Path) -> None:
    best = checkpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, monitor(every_n_train_steps=3), best, max_epochs=2, limit_val_batches=0)
    assert sorted(map(float, best.best_k_models.values())) == pytest.approx(sorted(logged(tmp_path)))
    assert steps_in(tmp_path) == [3, 6]


@pytest.mark.parametrize("where", ["train_epoch_end", "validation_epoch_end"])
def test_early_stopping_stops_by_a_score(where: str, tmp_path: Path) -> None:
    stop = EarlyStopping(monitor=KEY, patience=1, min_delta=1e9)
    finished = fit(tmp_path, monitor(hook=where), stop, max_epochs=9)
    assert finished.current_epoch == 2
    assert float(stop.best_score) == pytest.approx(logged(tmp_path)[0])


def test_early_stopping_sees_the_score_from_before_the_first_step(tmp_path: Path) -> None:
    stop = EarlyStopping(monitor=KEY, patience=0, divergence_threshold=-1e9)
    with pytest.warns(UserWarning, match="runs more often than ExplanationMonitor explains"):
        fit(tmp_path, monitor(at_start=True, every_n_epochs=9), stop, max_epochs=5)
    assert stop.stopped_epoch == 0
    assert steps_in(tmp_path) == [0]


@pytest.mark.parametrize("key", ["explain/seconds", "explain/nonfinite/saliency", "explain/overhead"])
def test_what_else_is_logged_can_be_watched(key: str, tmp_path: Path) -> None:
    stop = Other(monitor=key)
    fit(tmp_path, monitor(), stop)
    assert stop.best_score.isfinite()


def test_what_watches_a_score_with_a_unit_is_told_which_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {
        "metrics": [q.Infidelity(n_perturb_samples=16)],
        "alerts": [{"metric": "infidelity/saliency", "above": 1e9}],
    }
    for key, told in ((KEY, 2), ("explain/infidelity_relative/saliency", 1)):
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(tmp_path, monitor(**whole), ModelCheckpoint(tmp_path / "best", monitor=key))
        texts = [record.message for record in caplog.records if "in units of the output" in record.message]
        assert len(texts) == told
        assert all("a score without a unit, such as infidelity_relative, can" in text for text in texts)


# -- those that run at other times ---------------------------------------------------------------------------------

Timing = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
TOLD: dict[str, Timing] = {
    "every other epoch": ({"every_n_epochs": 2}, {}, {}),
    "every other epoch, with a first value": ({"every_n_epochs": 2, "at_start": True}, {}, {}),
    "by steps, looked at by epochs": ({"every_n_train_steps": 2}, {}, {}),
    "by epochs, looked at by steps": ({}, {"every_n_train_steps": 2}, {}),
    "fewer steps": ({"every_n_train_steps": 4}, {"every_n_train_steps": 2}, {}),
    "steps that do not divide": ({"every_n_train_steps": 2}, {"every_n_train_steps": 3}, {}),
    "epochs that do not divide": ({"every_n_epochs": 2}, {"every_n_epochs": 3}, {}),
    "by the clock": ({}, {"train_time_interval": timedelta(seconds=1)}, {}),
    "put off": ({"max_overhead": 1e6}, {}, {}),
}


@pytest.mark.parametrize(("explains", "watches", "run"), TOLD.values(), ids=TOLD.keys())
def test_a_score_that_may_be_missing_or_of_other_weights_is_told_and_training_goes_on(
    explains: dict[str, Any], watches: dict[str, Any], run: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.warns(
        UserWarning, match=rf"ModelCheckpoint\(monitor='{KEY}'\) runs more often than .* earlier weights"
    ):
        finished = fit(tmp_path, monitor(**explains), checkpoint(tmp_path, **watches), max_epochs=2, **run)
    assert finished.current_epoch == 2


@pytest.mark.filterwarnings("error:an error", "error:.*runs more often than", "error:.*this training ends after")
def test_hints_do_not_end_a_training_where_warnings_are_errors(tmp_path: Path) -> None:
    # As in all tests here, a warning is an error, unless the test expects it.
    with pytest.raises(UserWarning):
        warnings.warn("an error", stacklevel=1)
    late = monitor(every_n_epochs=9)
    with warnings.catch_warnings(record=True) as seen:
        finished = fit(tmp_path, late, checkpoint(tmp_path), max_epochs=2)
    assert finished.current_epoch == 2
    text = "\n".join(str(w.message) for w in seen)
    assert "runs more often than ExplanationMonitor explains" in text
    assert "this training ends after 2: nothing will be explained" in text


EARLY: dict[str, Timing] = {
    "after validation": ({}, {"save_on_train_epoch_end": False}, {}),
    "rare validation": ({"hook": "validation_epoch_end"}, {"save_on_train_epoch_end": True}, RARE),
}


@pytest.mark.parametrize(("explains", "watches", "run"), EARLY.values(), ids=EARLY.keys())
def test_a_checkpoint_before_the_first_explanation_sees_the_worst_value(
    explains: dict[str, Any], watches: dict[str, Any], run: dict[str, Any], tmp_path: Path
) -> None:
    best = checkpoint(tmp_path, **watches)
    finished = fit(tmp_path, monitor(**explains), best, max_epochs=3, **run)
    assert finished.current_epoch == 3
    assert best.best_model_score is not None
    assert best.best_model_score.isfinite()


# -- those that are refused ----------------------------------------------------------------------------------------

WRONG = {
    "score": ("explain/infidelty/saliency", f"did you mean '{KEY}'"),
    "method": ("explain/infidelity/salience", f"did you mean '{KEY}'"),
    "too short": ("explain/infidelity", "use one of|did you mean"),
}


@pytest.mark.parametrize(("key", "message"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
def test_a_score_that_is_not_logged_is_refused_with_the_nearest_names(
    kind: type[Callback], key: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(monitor='{key}'\) monitors a score.*({message})"):
        fit(tmp_path, monitor(), kind(monitor=key))


@pytest.mark.filterwarnings("ignore:'cam' .LayerGradCam. is left out")
def test_a_score_of_a_method_that_was_left_out_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    watch = ExplanationMonitor(metrics=[q.Infidelity(n_perturb_samples=2)], probe=ProbeSelection(count=4))
    flat = DigitModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(ValueError, match="monitors a score that is not logged"):
        fit(tmp_path, watch, Other(monitor="explain/infidelity/cam"), module=flat)


class Plateau(DigitModule):
    """Lowers its learning rate when a score stops improving."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [{"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": self.key}]


def test_a_scheduler_follows_a_score(tmp_path: Path) -> None:
    finished = fit(tmp_path, monitor(), module=Plateau(KEY), max_epochs=2)
    (config,) = finished.lr_scheduler_configs
    assert config.scheduler.best == pytest.approx(min(logged(tmp_path)))


def test_a_scheduler_of_a_score_that_is_not_logged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"ReduceLROnPlateau\(monitor='explain/it'\) monitors a score that is not logged"
    ):
        fit(tmp_path, monitor(), module=Plateau("explain/it"))


def test_a_checkpoint_before_the_monitor_is_put_last_by_lightning(tmp_path: Path) -> None:
    best = checkpoint(tmp_path)
    fit(tmp_path, best, monitor())
    assert float(best.best_model_score or 0) == pytest.approx(logged(tmp_path)[0])


def test_early_stopping_before_a_monitor_that_explains_after_validation_is_fine(tmp_path: Path) -> None:
    stop = Other()
    fit(tmp_path, stop, monitor(hook="validation_epoch_end"))
    assert float(stop.best_score) == pytest.approx(logged(tmp_path)[0])


# -- those that always find a new value ----------------------------------------------------------------------------

FRESH: dict[str, Timing] = {
    "equal epochs": ({"every_n_epochs": 2}, {"every_n_epochs": 2}, {}),
    "a multiple": ({"every_n_epochs": 2}, {"every_n_epochs": 4}, {}),
    "steps": ({"every_n_train_steps": 2}, {"every_n_train_steps": 4}, {}),
    "validation": ({"hook": "validation_epoch_end"}, {"save_on_train_epoch_end": False}, {}),
    "rare validation": ({"hook": "validation_epoch_end", "every_n_epochs": 2}, {"every_n_epochs": 2}, RARE),
    "another score": ({"every_n_epochs": 2}, {"monitor": "val_loss"}, {}),
}


@pytest.mark.parametrize(("explains", "watches", "run"), FRESH.values(), ids=FRESH.keys())
def test_a_fresh_score_is_not_warned_of(
    explains: dict[str, Any],
    watches: dict[str, Any],
    run: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints", **{"monitor": KEY, **watches})
    fit(tmp_path, monitor(**explains), best, max_epochs=4, **run)
    assert best.best_model_score is not None
    assert "runs more often" not in caplog.text


def test_a_disabled_monitor_checks_nothing(tmp_path: Path) -> None:
    fit(tmp_path, monitor(enabled=False), Other(monitor="explain/no/such", strict=False))


def test_a_key_belongs_to_the_monitor_with_the_longest_name(tmp_path: Path) -> None:
    inner = monitor(name="explain/late")
    stop = Other(monitor="explain/late/infidelity/saliency")
    fit(tmp_path, monitor(), inner, stop)
    assert stop.best_score.isfinite()


@pytest.mark.filterwarnings("ignore:There is no val loader")
def test_without_validation_a_checkpoint_looks_at_the_end_of_training_epochs(tmp_path: Path) -> None:
    best = checkpoint(tmp_path)
    run: pl.Trainer = trainer(tmp_path, monitor(methods=[m.Saliency(abs=False)]), best, val_check_interval=0.5)
    run.fit(Blind(), loader())
    assert float(best.best_model_score or 0) == pytest.approx(logged(tmp_path)[0])
