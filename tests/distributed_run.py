"""Trainings on two ranks, launched by ``test_distributed.py``: ``python distributed_run.py FOLDER``.

Lightning runs this file again for rank 1. Each rank writes what it saw to ``FOLDER/<rank>.pt``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lightning_explain import ExplanationMonitor
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.types import Attribution, Case, Rows, Subject
from networks import DigitNet
from training import Counted, DigitModule, NoTarget, loader, monitor

KEY = "explain/infidelity/saliency"


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class FailsOnOne(Counted):
    """Fails on rank 1."""

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        found = super().attribute(subject, rows)
        if rank() == 1:
            raise ArithmeticError("no map on rank 1")
        return found


class FailsToScore(q.Infidelity):
    """Fails on rank 1."""

    def score(self, case: Case) -> Any:
        if rank() == 1:
            raise ArithmeticError("no score on rank 1")
        return super().score(case)


class SlowOnZero(Counted):
    """Takes its time on rank 0 only, so that the clocks of the ranks disagree."""

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        time.sleep(0.1 if rank() == 0 else 0.0)
        return super().attribute(subject, rows)


def no_rows(batch: Any) -> Any:
    if rank() == 1:
        raise ArithmeticError("no rows on rank 1")
    return tuple(batch)


def plain() -> DigitModule:
    """Without batch statistics, which each rank has its own of between steps."""
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    return DigitModule(nn.Sequential(conv, nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 36, 10)))


def run(
    root: Path, watch: ExplanationMonitor, module: DigitModule, *others: pl.Callback, epochs: int = 1
) -> pl.Trainer:
    """One training on two ranks."""
    trainer = pl.Trainer(
        strategy="ddp",
        accelerator="cpu",
        devices=2,
        max_epochs=epochs,
        callbacks=[watch, *others],
        default_root_dir=root,
        logger=TensorBoardLogger(root),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in others),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, loader(0, 32, shuffle=True), loader(100, 24, shuffle=True))
    return trainer


def seen(watch: ExplanationMonitor, trainer: pl.Trainer) -> dict[str, Any]:
    """What one rank has afterwards."""
    report = watch.last_report
    return {
        "metrics": {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("explain/")},
        "steps": trainer.global_step,
        "attributions": {} if report is None else dict(report.attributions),
        "scores": {} if report is None else {k: dict(v) for k, v in report.scores.items()},
        "schedule": {k: v for k, v in watch.state_dict()["schedule"].items() if k != "origin"},
    }


def fine(root: Path) -> dict[str, Any]:
    watch, module = monitor(methods={"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}), plain()
    best = ModelCheckpoint(root / "checkpoints", monitor=KEY, save_top_k=-1)
    found = seen(watch, run(root, watch, module, best, epochs=2))
    assert watch.probe is not None
    rows = {"inputs": watch.probe.inputs, "targets": watch.probe.targets, "ids": watch.probe.row_ids}
    return {**found, **rows, "weights": module.net.state_dict()}


def batch_statistics(root: Path) -> dict[str, Any]:
    # Right after a training step, before the next forward spreads the statistics of rank zero.
    watch = monitor(every_n_train_steps=1, at_start=True)
    stop = EarlyStopping(monitor=KEY, patience=50)
    return seen(watch, run(root, watch, DigitModule(DigitNet()), stop, epochs=2))


def failing_method(root: Path) -> dict[str, Any]:
    methods = {"bad": FailsOnOne(), "saliency": m.Saliency(abs=False)}
    metrics = {"infidelity": q.Infidelity(n_perturb_samples=2), "worse": FailsToScore(n_perturb_samples=2)}
    watch = monitor(methods=methods, metrics=metrics)
    return seen(watch, run(root, watch, plain(), epochs=2))


def failing_explanation(root: Path) -> dict[str, Any]:
    target = NoTarget(ArithmeticError("no target on rank 1"), ranks=[1])
    watch = monitor(target=target)
    return seen(watch, run(root, watch, plain(), target, epochs=2))


def limited(root: Path) -> dict[str, Any]:
    counted = SlowOnZero()
    watch = monitor(methods={"it": counted}, metrics=[], max_overhead=0.3, every_n_train_steps=1)
    return {**seen(watch, run(root, watch, plain(), epochs=4)), "calls": counted.calls}


def drifting(root: Path) -> dict[str, Any]:
    # Batch statistics are each rank's own, and so are its maps; the score falls below on rank zero's word for both.
    alerts = [{"metric": "drift_cosine_first/saliency", "below": 2, "patience": 3, "action": "stop"}]
    watch = monitor(metrics=[q.Drift()], every_n_train_steps=1, alerts=alerts)
    found = seen(watch, run(root, watch, DigitModule(DigitNet()), epochs=9))
    state = watch.state_dict()
    return {**found, "history": state["history"], "alerts": state["alerts"]}


def raised(arguments: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    def scenario(root: Path) -> dict[str, Any]:
        try:
            run(root, monitor(**arguments), plain())
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return {"error": "none"}

    return scenario


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "fine": fine,
    "batch_statistics": batch_statistics,
    "failing_method": failing_method,
    "failing_explanation": failing_explanation,
    "limited": limited,
    "drifting": drifting,
    "raising": raised({"methods": {"bad": FailsOnOne()}, "on_error": "raise"}),
    "no_rows": raised({"batch_fn": no_rows}),
}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for name, scenario in SCENARIOS.items():
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found[name] = scenario(root / name)
        found[name]["told"] = [str(w.message) for w in told if w.category is RuntimeWarning]
    torch.save(found, root / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
