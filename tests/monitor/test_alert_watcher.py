"""Alerts: told once per firing, sent to W&B, or the end of the training, alike on all ranks and across a resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf
from torch import nn

from lightning_explain import Alert, ExplanationMonitor, Sink
from lightning_explain.core.contracts import Metric, MetricInputs, Score
from lightning_explain.core.report import Publication
from lightning_explain.monitor.alert_watcher import Alerts, Watch
from lightning_explain.monitor.failures import FailureLog
from training import QUIET, SAFE, DigitModule, fit, loaders, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET

KEY = "told/saliency"


@dataclass(frozen=True)
class Told(Metric):
    """Scores that are known beforehand, one for each explanation."""

    values: tuple[float, ...]
    calls: list[int] = field(default_factory=list)

    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)

    def score(self, case: MetricInputs) -> dict[str, dict[str, Score]]:
        self.calls.append(1)
        value = self.values[len(self.calls) - 1]
        return {"": {name: (torch.full_like(case.outputs, value), None) for name in case.maps}}


def reporting_failures(*values: float, alerts: Any, **arguments: Any) -> ExplanationMonitor:
    return monitor(metrics={"told": Told(values)}, alerts=alerts, **arguments)


def fired(root: Path, watch: ExplanationMonitor, epochs: int, **arguments: Any) -> list[str]:
    """What was told in a training."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(root, watch, max_epochs=epochs, **arguments)
    return [str(w.message) for w in caught if str(w.message).startswith("explain/told")]


def seen(alert: Alert, *values: float | None) -> list[int]:
    """At which values, counted from 0, an alert fires."""
    watch = Watch(alert)
    return [i for i, value in enumerate(values) if watch.sees(value)]


CASES: dict[str, tuple[dict[str, Any], tuple[float | None, ...], list[int]]] = {
    "above": ({"above": 0.3}, (0.2, 0.3, 0.4), [2]),
    "once for as long as it lasts": ({"above": 0.3}, (0.4, 0.5, 0.4), [0]),
    "again after it was fine": ({"above": 0.3}, (0.4, 0.1, 0.4), [0, 2]),
    "below": ({"below": 0.3}, (0.4, 0.3, 0.2), [2]),
    "at least": ({"at_least": 0.3}, (0.2, 0.3, 0.4), [1]),
    "at most": ({"at_most": 0.3}, (0.4, 0.3, 0.2), [1]),
    "patience": ({"above": 0.3, "patience": 2}, (0.4, 0.2, 0.4, 0.4, 0.4), [3]),
    "doubled": ({"times": 2.0}, (1.5, 2.9, 3.0), [2]),
    "halved": ({"times": 0.5}, (3.0, 1.6, 1.5), [2]),
    "relative to nothing": ({"times": 2.0}, (0.0, 1.0, 2.0), []),
    "relative to less than nothing": ({"times": 2.0}, (-1.0, 1.0, 2.0), []),
    "no value": ({"above": 0.3, "patience": 2}, (0.4, None, 0.4), [2]),
    "not a number": ({"times": 2.0}, (float("nan"), 1.0, float("inf"), 2.0), [3]),
    "a whole number": ({"above": 1}, (1, 2), [1]),
}


@pytest.mark.parametrize(("arguments", "values", "expected"), CASES.values(), ids=CASES.keys())
def test_an_alert_fires(arguments: dict[str, Any], values: tuple[float | None, ...], expected: list[int]) -> None:
    assert seen(Alert(KEY, **arguments), *values) == expected


class Noted(Sink):
    """Keeps what alerts say in each explanation."""

    def __init__(self) -> None:
        self.alerts: list[list[str]] = []

    def write(self, publication: Publication) -> None:
        self.alerts.append(list(publication.alerts))


def test_an_alert_is_told_once_per_firing_with_the_number_and_the_bound(tmp_path: Path) -> None:
    noted = Noted()
    watch = reporting_failures(0.1, 0.4, 0.5, 0.1, 0.6, alerts=[Alert(KEY, above=0.3)], sinks=[noted])
    told = fired(tmp_path, watch, 5)
    assert noted.alerts == [[], told[:1], [], [], told[1:]], "also where explanations are written"
    assert told == [
        "explain/told/saliency is 0.4, which is above 0.3 (epoch 1, step 8).",
        "explain/told/saliency is 0.6, which is above 0.3 (epoch 4, step 20).",
    ]


@pytest.mark.parametrize(
    ("alert", "value", "first", "words"),
    [
        (Alert(KEY, times=2), 1000.0, 1.0, "1000, which is 1000 times its first value 1 (bound: 2 times)"),
        (Alert(KEY, times=0.5), 0.25, 2.0, "0.25, which is 0.125 times its first value 2 (bound: 0.5 times)"),
        (Alert(KEY, times=3), 0.9, 0.3, "0.9, which is 3 times its first value 0.3 (bound: 3 times)"),
        (Alert(KEY, below=0.3), 0.1, 9.0, "0.1, which is below 0.3"),
    ],
)
def test_an_alert_says_how_far_the_value_is(alert: Alert, value: float, first: float, words: str) -> None:
    assert alert.out(value, first)
    assert alert.found(value, first) == words


@pytest.mark.parametrize(
    "options", [{}, {"every_n_train_steps": 4}, {"hook": "validation_epoch_end"}, {"at_start": True}]
)
def test_an_alert_stops_the_training(options: dict[str, Any], tmp_path: Path) -> None:
    alert = Alert(KEY, times=2, patience=2, action="stop")
    watch = reporting_failures(1.0, 2.0, 2.5, 3.0, 4.0, alerts=[alert], **options)
    with pytest.warns(
        UserWarning, match=r"is 2\.5, which is 2\.5 times its first value 1 \(bound: 2 times\) in 2 .* training stops"
    ):
        finished = fit(tmp_path, watch, max_epochs=9)
    assert finished.global_step == (8 if "at_start" in options else 12)


def test_an_alert_before_the_first_step_stops_the_training_at_once(tmp_path: Path) -> None:
    watch = reporting_failures(1.0, alerts=[Alert(KEY, above=0, action="stop")], at_start=True, every_n_epochs=9)
    with pytest.warns(UserWarning, match="training stops"):
        assert fit(tmp_path, watch, max_epochs=9).global_step <= 4


def resumed(root: Path, ckpt: Path, watch: ExplanationMonitor, epochs: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(root, watch, max_epochs=epochs)
        run.fit(DigitModule(), **loaders(), ckpt_path=ckpt, **SAFE)
    return [str(w.message) for w in caught if str(w.message).startswith("explain/told")]


def test_patience_and_first_values_survive_in_a_checkpoint(tmp_path: Path) -> None:
    alerts = [Alert(KEY, times=2, patience=3)]
    first = fit(tmp_path, reporting_failures(1.0, 2.0, 2.0, alerts=alerts), max_epochs=3)
    first.save_checkpoint(tmp_path / "last.ckpt")
    told = resumed(tmp_path, tmp_path / "last.ckpt", reporting_failures(2.1, 2.2, alerts=alerts), 5)
    assert told == [
        "explain/told/saliency is 2.1, which is 2.1 times its first value 1 (bound: 2 times) in 3 explanations in a row "
        "(epoch 3, step 16)."
    ]


@pytest.mark.parametrize("patience", [1, 2])
def test_a_training_that_was_stopped_and_is_resumed_stops_again_while_the_score_is_out(
    patience: int, tmp_path: Path
) -> None:
    alerts = [Alert(KEY, above=0.3, patience=patience, action="stop")]
    with pytest.warns(UserWarning, match="training stops"):
        first = fit(tmp_path, reporting_failures(0.4, 0.5, alerts=alerts), max_epochs=9)
    assert first.global_step == 4 * patience
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = reporting_failures(0.4, 0.4, 0.4, alerts=alerts)
    (told,) = resumed(tmp_path, tmp_path / "last.ckpt", again, 9)
    assert f"(epoch {patience}, step {4 * patience + 4}); training stops" in told
    fine = reporting_failures(0.1, 0.4, 0.4, alerts=alerts)
    (told,) = resumed(tmp_path, tmp_path / "last.ckpt", fine, 9)
    assert f"(epoch {2 * patience}, step" in told


def test_a_training_that_goes_on_in_the_same_trainer_stops_again(tmp_path: Path) -> None:
    watch, module = reporting_failures(0.4, 0.5, 0.6, alerts=[Alert(KEY, above=0.3, action="stop")]), DigitModule()
    run = trainer(tmp_path, watch, max_epochs=9)
    for steps in (4, 8):
        with pytest.warns(UserWarning, match="training stops"):
            run.fit(module, **loaders())
        assert run.global_step == steps
        # Lightning 2.5 does so only when a trainer is made.
        run.should_stop = False


@pytest.mark.parametrize("first", [0.0, -1.5])
def test_a_first_value_that_has_no_multiples_is_told_once(first: float, tmp_path: Path) -> None:
    watch = reporting_failures(first, 1.0, 3.0, alerts=[Alert(KEY, times=2)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, watch, max_epochs=3)
    told = [str(w.message) for w in caught if "told/saliency" in str(w.message)]
    assert len(told) == 1
    assert f"times=2) will never fire: the first value is {first:.6g}" in told[0]


def test_an_alert_that_was_not_in_the_checkpoint_begins_anew(tmp_path: Path) -> None:
    first = fit(tmp_path, reporting_failures(1.0, alerts=[Alert(KEY, times=2)]), max_epochs=1)
    first.save_checkpoint(tmp_path / "last.ckpt")
    watch = reporting_failures(4.0, 12.0, alerts=[Alert(KEY, times=3)])
    (told,) = resumed(tmp_path, tmp_path / "last.ckpt", watch, 3)
    assert "is 12, which is 3 times its first value 4" in told


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    watch = reporting_failures(1.0, 1.5, 3.0, 3.0, alerts=[Alert(KEY, times=2)])
    assert fired(tmp_path / "a", watch, 2) == []
    assert fired(tmp_path / "b", watch, 2) == []


def test_alerts_come_from_a_configuration(tmp_path: Path) -> None:
    config = OmegaConf.create(
        """
        methods: {saliency: {name: Saliency, abs: false}}
        metrics: {concentration: Concentration}
        probe: {count: 2}
        alerts:
          - {metric: concentration/saliency, above: -1, action: stop}
          - {metric: concentration_entropy/saliency, below: 2, patience: 2}
          - {metric: concentration/saliency >= 2, action: stop}
          - concentration/saliency > 3 for 2
        """
    )
    watch = ExplanationMonitor.from_config(config)
    with pytest.warns(UserWarning, match="concentration/saliency is .* above -1 .*training stops"):
        assert fit(tmp_path, watch, max_epochs=3).current_epoch == 1


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown score": ([Alert("tolt/saliency", above=1)], "not logged: did you mean 'told/saliency'"),
    "the monitor's name too": ([Alert("explain/told/saliency", above=1)], "not logged: did you mean 'told/saliency'"),
    "unknown argument": ([{"metric": KEY, "over": 1}], r"alerts\[0\]: Alert has no argument 'over'"),
    "no metric": ([{"above": 1}], r"alerts\[0\]: Alert needs 'metric'; write Alert\(metric=\.\.\.\)"),
    "two alike": ([Alert(KEY, above=1), Alert(KEY, above=1.0, action="stop")], "alerts has .* twice"),
    "one that is no list": (Alert(KEY, above=1), "alerts=Alert.* give a list of alerts"),
    "a mapping": ({"metric": KEY, "above": 1}, "alerts=.* give a list of alerts"),
    "a word": (["stop"], r"Alert\('stop'\) has no bound; give exactly one"),
    "a number": ([1], r"alerts\[0\] is a int; give an Alert, an expression, or a mapping"),
    "a broken expression": (["told/saliency > x"], "has no finite number after '>'"),
}


@pytest.mark.parametrize(("alerts", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_alerts_that_cannot_be_are_refused_at_once(alerts: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        reporting_failures(1.0, alerts=alerts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "has no bound; give exactly one of above, below, at_least, at_most, times, or an expression such as"),
        ({"above": 1, "below": 0}, "has above=1, below=0; give exactly one"),
        ({"above": "1"}, r"Alert\(above='1'\); give a finite number"),
        ({"above": True}, r"Alert\(above=True\); give a finite number"),
        ({"below": float("nan")}, r"Alert\(below=nan\); give a finite number"),
        ({"times": -2}, r"Alert\(times=-2\); give a number above 1"),
        ({"times": 1}, r"Alert\(times=1\); give a number above 1"),
        ({"above": 1, "patience": 0}, r"Alert\(patience=0\); give a whole number"),
        ({"above": 1, "patience": True}, r"Alert\(patience=True\); give a whole number"),
        ({"above": 1, "action": "mail"}, r"Alert\(action='mail'\); give one of 'log', 'wandb', 'stop'"),
    ],
)
def test_an_alert_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Alert(KEY, **arguments)


def test_an_alert_of_a_method_that_is_left_out_on_this_model_is_refused_before_training(tmp_path: Path) -> None:

    flat = DigitModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    watch = ExplanationMonitor(metrics=["Concentration"], alerts=[Alert("concentration/cam", above=1)])
    with (
        pytest.warns(UserWarning, match=r"'cam' \(LayerGradCam\) is left out"),
        pytest.raises(ValueError, match=r"'concentration/cam'.* not"),
    ):
        fit(tmp_path, watch, module=flat)


def test_an_alert_to_wandb_needs_its_logger(tmp_path: Path) -> None:
    watch = reporting_failures(1.0, alerts=[Alert(KEY, above=0, action="wandb")])
    with pytest.raises(ValueError, match="the Trainer has no WandbLogger; give it one, or use action="):
        fit(tmp_path, watch)


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbLogger]:
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    yield WandbLogger(project="test", save_dir=tmp_path, offline=True)
    wandb.finish()
    wandb.teardown()


def test_an_alert_goes_to_the_run_of_wandb(logger: WandbLogger, tmp_path: Path) -> None:
    watch = reporting_failures(1.0, 3.0, alerts=[Alert(KEY, times=3, action="wandb")])
    (told,) = fired(tmp_path, watch, 2, logger=logger)
    folder = Path(logger.experiment.dir).parent
    wandb.finish()
    wandb.teardown()
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    assert b"explain/told/saliency times 3" in content
    assert told.encode() in content


@pytest.mark.filterwarnings("ignore:explain/told")
def test_an_alert_that_cannot_be_sent_does_not_end_the_training(
    logger: WandbLogger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: Any, **named: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(logger.experiment, "alert", offline)
    watch = reporting_failures(1.0, 3.0, alerts=[Alert(KEY, above=0, action="wandb")])
    with pytest.warns(RuntimeWarning, match="(?s)could not be sent to W&B.*no network"):
        assert fit(tmp_path, watch, max_epochs=2, logger=logger).current_epoch == 2


def test_all_alerts_are_looked_at_and_say_which_fired() -> None:
    alerts = Alerts("explain", [Alert("a/x", above=1), Alert("b/x", below=1)], FailureLog("explain", raising=False))
    run = trainer(Path())
    with pytest.warns(UserWarning, match="explain/b/x is 0, which is below 1") as warned:
        alerts.watch(run, {"a/x": 0.5, "b/x": 0.0})
    assert len(warned) == 1
    assert alerts.state() == {
        "a/x above 1 for 1": {"count": 0, "first": 0.5},
        "b/x below 1 for 1": {"count": 1, "first": 0.0},
    }
    assert not run.should_stop
