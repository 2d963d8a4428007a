"""``explain/seconds`` and ``explain/overhead`` are what the monitor took from the training, with everything."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_explain import ExplanationMonitor
from lightning_explain import methods as m
from lightning_explain import metrics as q
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


@pytest.mark.parametrize("count", [1, 20, 100])
def test_the_seconds_are_those_of_the_hook(count: int, tmp_path: Path) -> None:
    methods = {f"saliency {i}": m.Saliency(abs=False) for i in range(count)}
    watch = Watched(methods=methods, metrics=[q.Concentration()], probe=[*range(4)])
    fit(tmp_path, watch, max_epochs=3, limit_val_batches=0)
    found = [given["explain/seconds"] for given in scalars(tmp_path)]
    assert found == pytest.approx(watch.took, rel=0.1)
    assert report_of(watch).seconds == found[-1]
    schedule = watch._memory.schedule
    assert sum(found) + schedule.later_seconds == pytest.approx(schedule.explain_seconds)
    assert schedule.explain_seconds == pytest.approx(sum(watch.took), rel=0.02)
