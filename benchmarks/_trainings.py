"""One training on one core, with a monitor or without one, and what it took: shared by ``beside.py`` and ``overhead.py``."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from _workload import ResNet, images
from lightning_explain import ExplanationMonitor

BATCH, IMAGES = 16, 4096


class Gratings(pl.LightningModule):
    """A ResNet on gratings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = ResNet((16, 32, 64), blocks=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.001)


class InFront(pl.Callback):
    """Reads the clock in front of the monitor."""

    now = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.now = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.now = time.perf_counter()


class Clock(pl.Callback):
    """From the first batch to the last, in seconds of the wall and of the cores that this process used; stands behind the monitor.

    Args:
        in_front: Stands in front of it.
        seconds: After how many seconds the training ends; ``None``: after its steps.
    """

    def __init__(self, in_front: InFront, seconds: float | None) -> None:
        self.fitted, self.in_front, self.seconds = time.perf_counter(), in_front, seconds
        self.blocked = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        if trainer.global_step:
            self.blocked += now - self.in_front.now
        else:
            self.started, self.cpu_started = now, time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
        self.blocked += self.ended - self.in_front.now
        if self.seconds is not None and self.ended - self.started >= self.seconds:
            trainer.should_stop = True


@dataclass
class Run:
    """What one training took.

    Args:
        wall: Seconds from the first batch to the last.
        cpu: Seconds of all cores that the training process used meanwhile.
        before: Seconds before the first batch.
        after: Seconds after the last.
        blocked: Seconds in the monitor's hooks from the first batch to the last.
        explanations: How many there are.
        steps: How many steps it had.
        weights: At the end.
    """

    wall: float
    cpu: float
    before: float
    after: float
    blocked: float
    explanations: int
    steps: int
    weights: dict[str, Tensor] = field(default_factory=dict)


def run(watch: ExplanationMonitor | None, steps: int = -1, seconds: float | None = None) -> Run:
    """Trains, with TensorBoard, for so many steps or seconds."""
    module = Gratings()
    data = DataLoader(TensorDataset(*images(IMAGES, seed=1)), batch_size=BATCH)
    with tempfile.TemporaryDirectory() as root:
        clock = Clock(InFront(), seconds)
        trainer = pl.Trainer(
            max_epochs=-1,
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            callbacks=[clock.in_front, *([] if watch is None else [watch]), clock],
            logger=TensorBoardLogger(root, name="", version="run"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        after = time.perf_counter() - clock.ended
        made = len(list(Path(root, "run", "explain").glob("step=*.safetensors")))
    return Run(
        clock.ended - clock.started,
        clock.cpu_ended - clock.cpu_started,
        clock.started - clock.fitted,
        after,
        clock.blocked,
        made,
        trainer.global_step,
        module.state_dict(),
    )


def check_equal(first: Run, *others: Run) -> None:
    """Asserts that the trainings ended with the same weights, bit for bit."""
    for other in others:
        assert all(torch.equal(other.weights[name], value) for name, value in first.weights.items())


def quiet() -> None:
    """One thread of torch; Lightning says nothing."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
