"""``explain/seconds`` and ``explain/overhead`` are what the monitor took from the training, with everything."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger

from clock import Clock
from lightning_explain import ExplanationMonitor, Sink
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.report import Publication
from lightning_explain.loggers.files import FilesSink
from lightning_explain.monitor import publisher
from lightning_explain.render.figure import Figure
from training import QUIET, fit, report_of

pytestmark = QUIET


class Watched(ExplanationMonitor):
    """Measures its hook from outside."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.took: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        started = time.perf_counter()
        super().on_train_epoch_end(trainer, pl_module)
        self.took.append(time.perf_counter() - started)


def scalars(root: Path) -> list[dict[str, float]]:
    return [json.loads(line)["scalars"] for line in (root / "explain" / "scalars.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("count", [1, 20, 50])
def test_the_seconds_are_those_of_the_hook(
    count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, computing=True)
    methods = {f"saliency {i}": m.Saliency(abs=False) for i in range(count)}
    watch = Watched(methods=methods, metrics=[q.Concentration()], probe=[*range(2)])
    with caplog.at_level(logging.INFO):
        fit(tmp_path, watch, max_epochs=3, limit_val_batches=0)
    lines = scalars(tmp_path)
    found, schedule = [line["explain/seconds"] for line in lines], watch._memory.schedule
    # A pause of the machine right after the clock was read is in the next value.
    close = [abs(given / took - 1) <= 0.1 for given, took in zip(found, watch.took, strict=True)]
    assert sum(close) >= 2, (found, watch.took)
    assert report_of(watch).seconds == found[-1]
    assert sum(found) + schedule.later_seconds == pytest.approx(schedule.explain_seconds)
    # The same pauses.
    assert schedule.explain_seconds == pytest.approx(sum(watch.took), rel=0.02, abs=0.02)
    assert lines[-1]["explain/overhead"] == pytest.approx(schedule.explain_seconds / schedule.train_seconds, rel=0.1)
    (said,) = re.findall(r"about ([\d.e-]+) seconds with drawing, as estimated", caplog.text)
    assert sum(found) / 12 < float(said) < sum(found), "for one explanation, within a factor of four"


class Slow(Sink):
    """Takes its time before it writes, and when it writes."""

    most_pictures = 0

    def prepare(self, publication: Publication) -> None:
        time.sleep(0.3)

    def write(self, publication: Publication) -> None:
        time.sleep(0.3)


@pytest.mark.parametrize("drawn", [True, False])
def test_a_slow_sink_counts_and_what_came_too_late_counts_in_the_next_value(
    drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, whole = list[int](), Figure.pictures

    def counted(figure: Figure, *arguments: Any, **named: Any) -> dict[str, Any]:
        found = whole(figure, *arguments, **named)
        made.append(len(found))
        return found

    Clock(monkeypatch)
    monkeypatch.setattr(Figure, "pictures", counted)
    monkeypatch.setattr(publisher, "_DRAWN", set())
    few: dict[str, Any] = {
        "limit_train_batches": 1,
        "limit_val_batches": 0,
        "logger": False if drawn else CSVLogger(tmp_path),
    }
    watch = Watched(methods=["Saliency", "InputXGradient"], metrics=[], probe=[0], sinks=[Slow()])
    if not drawn:
        monkeypatch.setattr(FilesSink, "most_pictures", 1)
    fit(tmp_path, watch, max_epochs=2, **few)
    (root,) = {path.parent.parent for path in tmp_path.rglob("scalars.jsonl")}
    first, second = [line["explain/seconds"] for line in scalars(root)]
    assert (first, second) == (pytest.approx(0.3), pytest.approx(0.6)), (
        "writing is not done when the first value is taken"
    )
    # Before the first training, one picture warms up what the pictures of one method then measure; later each method has a history.
    assert made == ([1, 2, 3, 5] if drawn else [1, 1, 1, 1])
