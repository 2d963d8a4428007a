"""Short real training runs for the tests of the monitor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, ProbeSelection, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.core.report import Report
from networks import DigitNet, digits

# What Lightning and wandb have to say about small runs on a CPU.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ".*sampler has shuffling enabled",
        ".*`_dataloader` was passed",
        "Checkpoint directory .* exists and is not empty",
        "You are using `torch.load` with `weights_only=False`",
        "The dirpath has changed",
    )
]


# How ``fit`` reads a checkpoint safely; Lightning 2.5 has no such argument.
SAFE: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(pl.Trainer.fit).parameters else {}


class DigitModule(pl.LightningModule):
    """Reads digits with cross entropy."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = DigitNet() if net is None else net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x).float(), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self._loss(batch), batch_size=8)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class Blind(pl.LightningModule):
    """The same without validation."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) if net is None else net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(first: int = 0, count: int = 32, shuffle: bool = False) -> DataLoader[Any]:
    """Digits in batches of 8."""
    x, y = digits()
    return DataLoader(TensorDataset(x[first : first + count], y[first : first + count]), batch_size=8, shuffle=shuffle)


def loaders() -> dict[str, Any]:
    """Four training batches and three validation batches, as arguments of ``fit``."""
    return {"train_dataloaders": loader(0, 32, shuffle=True), "val_dataloaders": loader(100, 24)}


def monitor(**arguments: Any) -> ExplanationMonitor:
    """A monitor that costs a few milliseconds."""
    cheap: dict[str, Any] = {
        "methods": {"saliency": m.Saliency(abs=False)},
        "metrics": [q.Infidelity(n_perturb_samples=2)],
        "probe": ProbeSelection(count=4),
    }
    return ExplanationMonitor(**{**cheap, **arguments})


def monitor_of_digits(**arguments: Any) -> ExplanationMonitor:
    """The same on given digits, where it does not matter how they are chosen: to read them from a loader takes half of the time."""
    x, y = digits()
    return monitor(**{"probe": Probe(x[100:104], y[100:104]), **arguments})


def trainer(root: Path, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    """One epoch on the CPU, without a logger, a bar or a checkpoint, unless asked for."""
    quiet: dict[str, Any] = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **arguments})


def fit(root: Path, *callbacks: pl.Callback, module: pl.LightningModule | None = None, **arguments: Any) -> pl.Trainer:
    """A finished training."""
    finished = trainer(root, *callbacks, **arguments)
    finished.fit(DigitModule() if module is None else module, **loaders())
    return finished


def start_line(root: Path, sinks: Any = "auto", **arguments: Any) -> str:
    """Where a training says that scalars, pictures and reports go; arguments are those of the Trainer."""
    watch = monitor(sinks=sinks)
    watch._publisher.open(trainer(root, watch, **arguments))
    return watch._publisher.destination


def steps_in(root: Path, name: str = "explain") -> list[int | None]:
    """The optimizer steps that were explained, as the stored reports have them."""
    folder = root / name
    return [report.step for report in load_reports(folder)] if folder.exists() else []


class Failing(Method):
    """A method that cannot."""

    def __init__(self, error: type[BaseException] = ArithmeticError) -> None:
        self.error = error

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        raise self.error("no map today")


class Counted(Method):
    """A map of ones, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        self.calls += 1
        return torch.ones_like(samples.inputs[0])


def keys(finished: pl.Trainer, name: str = "explain") -> set[str]:
    """What checkpoints and early stopping can watch."""
    return {key for key in finished.callback_metrics if key.startswith(f"{name}/")}


def report_of(watch: ExplanationMonitor) -> Report:
    """The last report, which must be there."""
    assert watch.last_report is not None
    return watch.last_report


def points(root: Path) -> dict[str, list[int]]:
    """The steps of every scalar in the one TensorBoard run below a folder."""
    (folder,) = {events.parent for events in root.rglob("events.out.tfevents.*")}
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


class NoTarget(pl.Callback):
    """A target that is there until training begins, and fails from then on. It is a callback too, to know when that is.

    ``calls`` counts the explanations that it failed.
    """

    def __init__(self, error: Exception, ranks: Sequence[int] = (0,)) -> None:
        self.error = error
        self.ranks = ranks
        self.calls = 0
        self._begun = False

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._begun = trainer.global_rank in self.ranks

    def __call__(self, outputs: Tensor) -> Tensor:
        if self._begun:
            self.calls += 1
            raise self.error
        return outputs[:, 0]


def told_in(record: Iterable[Any]) -> list[str]:
    """What monitors told, among recorded warnings."""
    return [str(w.message) for w in record if w.category is RuntimeWarning]
