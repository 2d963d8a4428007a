"""Whatever the callback does for Lightning is inside the agreed survival: every hook, and what is computed about a report."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_explain import ExplanationMonitor, Probe, load_reports
from lightning_explain import metrics as q
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.monitor import drawing, lightning, metric_watchers, monitor_base, publisher
from lightning_explain.monitor.alert_watcher import Alerts
from lightning_explain.monitor.first_forward import FirstForward
from lightning_explain.monitor.monitor_base import MonitorBase
from lightning_explain.monitor.probe_state import FixedSamples
from lightning_explain.monitor.publisher import Publisher
from lightning_explain.monitor.schedule import Schedule
from lightning_explain.monitor.state import Memory
from lightning_explain.store import thinning
from training import QUIET, DigitModule, loader, trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")]

HOOKS = [name for name, value in vars(pl.Callback).items() if inspect.isfunction(value)]


def test_every_hook_of_lightnings_goes_through_the_guard() -> None:
    own = {name: getattr(ExplanationMonitor, name) for name in HOOKS}
    own = {name: value for name, value in own.items() if value is not getattr(pl.Callback, name)}
    assert {"setup", "on_train_start", "on_train_batch_end", "load_state_dict"} <= own.keys()
    # It returns something, and guards each part of it.
    assert [name for name, value in own.items() if not hasattr(value, "__wrapped__")] == ["state_dict"]


# What fails where: everything that a hook calls outside of the explanation itself.
INSIDE: dict[str, tuple[Any, str]] = {
    "ranks": (lightning, "everyone"),
    "the strategy": (lightning, "check_strategy"),
    "watchers": (metric_watchers, "watchers_of"),
    "hints about watchers": (metric_watchers, "warn_of_times"),
    "units": (metric_watchers, "note_units"),
    "the end of the training": (metric_watchers, "announce_end"),
    "NaN for watchers": (metric_watchers, "missing"),
    "the run's directory": (lightning, "run_directory"),
    "the choice of sinks": (publisher, "sinks_for"),
    "where pictures go": (Publisher, "destination"),
    "cost lines": (MonitorBase, "_cost"),
    "the layout": (MonitorBase, "_layout"),
    "what is true of the run": (MonitorBase, "_run_info"),
    "the progress bar": (lightning, "progress_bar"),
    "the history": (Memory, "keep"),
    "samples without history": (Memory, "lacks_history"),
    "the clock": (Memory, "start"),
    "notes of time": (Memory, "note_time"),
    "overhead": (Schedule, "measured"),
    "what is due": (Schedule, "due"),
    "the end of the clock": (Schedule, "stop"),
    "the upload": (Publisher, "upload"),
    "alerts": (Alerts, "watch"),
    "the state of alerts": (Alerts, "state"),
    "the state of samples": (FixedSamples, "state"),
    "the hint": (MonitorBase, "_hint"),
    "remarks": (Publisher, "_remarks"),
    "undefined scores": (Publisher, "_undefined"),
    "charts and captions": (publisher, "publication"),
    "pictures": (drawing, "figures_of"),
    "reports": (thinning, "save_report"),
    "samples of reports": (thinning, "save_probe"),
    "the first forward": (FirstForward, "watch"),
    "the comparison": (FirstForward, "_compare"),
    "its end": (FirstForward, "leave"),
    "a lazy model": (monitor_base, "is_lazy"),
    "the check": (Explainer, "check"),
    "reading the batch": (FixedSamples, "read"),
    "counting": (MonitorBase, "_count"),
    "catching up": (ExplanationMonitor, "_catch_up"),
    "counts of failures": (monitor_base, "numberless"),
}


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """The weights of a training that nobody watches."""
    return weights(Path())


def weights(root: Path, *callbacks: pl.Callback, **arguments: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = DigitModule(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    run = trainer(root, *callbacks, max_epochs=1, **arguments)
    run.fit(module, loader(0, 16), loader(100, 8))
    assert run.current_epoch == 1
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("what", INSIDE)
def test_whatever_fails_around_an_explanation_the_training_goes_on_and_is_saved(
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: dict[str, torch.Tensor],
    recwarn: pytest.WarningsRecorder,
) -> None:
    place, name = INSIDE[what]
    failed = []

    def fails(*arguments: Any, **named: Any) -> Any:
        failed.append(name)
        raise ArithmeticError("nothing works")

    old = vars(place)[name]
    monkeypatch.setattr(place, name, property(fails) if isinstance(old, property) else fails)
    drift = {"metric": "drift_cosine_first/input_x_gradient", "above": 9}
    # Batches of the training are compared only with samples from its loader; to read them takes as long as the rest.
    probe = [0, 1] if place in (FirstForward, FixedSamples) else Probe(*loader(100, 2).dataset.tensors)
    named = {"methods": ["InputXGradient"], "metrics": [q.Drift()], "alerts": [drift], "probe": probe}
    # What the user names is refused if it cannot be prepared.
    watch = ExplanationMonitor(at_start=True, **({} if what in ("a lazy model", "the check") else named))
    saved = ModelCheckpoint(tmp_path, filename="it")
    found = weights(tmp_path, watch, saved)
    assert failed
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert any("nothing works" in str(w.message) for w in recwarn) or what in (
        "the comparison",
        "reading the batch",
        "its end",
    )
    assert "state_dict" in torch.load(tmp_path / "it.ckpt", weights_only=True)


CLOCKS: dict[str, Callable[[int], float]] = {
    "NaN": lambda reading: math.nan,
    "infinite": lambda reading: math.inf,
    "going back": lambda reading: -float(reading),
    "standing still": lambda reading: 5.0,
    "sometimes NaN": lambda reading: float(reading) if reading % 3 else math.nan,
}


@pytest.mark.parametrize("max_overhead", [None, 0.5, 5e-324], ids=str)
@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_a_clock_that_gives_no_time_ends_no_training_and_is_in_no_report(
    clock: Callable[[int], float], max_overhead: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, readings = Probe(*loader(100, 2).dataset.tensors), count(1)
    watch = ExplanationMonitor(methods=["InputXGradient"], metrics=[], probe=probe, max_overhead=max_overhead)
    run = trainer(tmp_path, watch, ModelCheckpoint(tmp_path, filename="it"), max_epochs=2)
    monkeypatch.setattr(time, "perf_counter", lambda: clock(next(readings)))
    run.fit(DigitModule(), loader(0, 8), loader(100, 8))
    assert run.current_epoch == 2
    assert load_reports(tmp_path / "explain")[0].seconds >= 0
    state = watch.state_dict()["schedule"]
    assert all(0 <= state[key] < math.inf for key in ("explain_seconds", "train_seconds", "not_before"))
    assert watch._failure_log._reported == set()
