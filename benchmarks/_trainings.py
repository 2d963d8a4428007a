"""One training on one core, with a monitor or without one, and what it took: shared by ``beside.py`` and ``overhead.py``."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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


class Hooks:
    """What the hooks of a monitor take that are called for each batch, but for the first, which awaits what was begun before.

    Args:
        watch: The monitor, whose hooks are replaced by timed ones.
    """

    def __init__(self, watch: ExplanationMonitor) -> None:
        self.watch, self.explaining, self.looking = watch, 0.0, 0.0
        self.started = False
        for name in ("on_train_batch_start", "on_train_batch_end"):
            setattr(watch, name, partial(self._timed, getattr(watch, name)))

    @property
    def _state(self) -> tuple[object, object]:
        """Another one when an explanation has been made, handed over or taken."""
        return self.watch.last_report, None if self.watch._beside is None else self.watch._beside.pending

    def _timed(self, hook: Callable[..., None], *arguments: Any) -> None:
        before, started = self._state, time.perf_counter()
        hook(*arguments)
        seconds = time.perf_counter() - started
        if not self.started:
            self.started = True
        elif all(a is b for a, b in zip(before, self._state, strict=True)):
            self.looking += seconds
        else:
            self.explaining += seconds


class Clock(pl.Callback):
    """From the first batch to the last, in seconds of the wall and of the cores that this process used; stands behind the monitor.

    Args:
        seconds: After how many seconds the training ends; ``None``: after its steps.
    """

    def __init__(self, seconds: float | None) -> None:
        self.fitted, self.seconds = time.perf_counter(), seconds

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.global_step:
            self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
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
        explaining: Seconds, from the first batch to the last, in those calls of the monitor's hooks in which an explanation was made,
            handed over to the worker, or taken from it.
        looking: Seconds in all other calls of them: two for each batch.
        explanations: How many there are.
        steps: How many steps it had.
        weights: At the end.
    """

    wall: float
    cpu: float
    before: float
    after: float
    explaining: float
    looking: float
    explanations: int
    steps: int
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def blocked(self) -> float:
        """Seconds in the monitor's hooks from the first batch to the last."""
        return self.explaining + self.looking


def run(watch: ExplanationMonitor | None, steps: int = -1, seconds: float | None = None) -> Run:
    """Trains, with TensorBoard, for so many steps or seconds."""
    module = Gratings()
    data = DataLoader(TensorDataset(*images(IMAGES, seed=1)), batch_size=BATCH)
    with tempfile.TemporaryDirectory() as root:
        clock, hooks = Clock(seconds), None if watch is None else Hooks(watch)
        trainer = pl.Trainer(
            max_epochs=-1,
            max_steps=steps,
            accelerator="cpu",
            devices=1,
            callbacks=[*([] if watch is None else [watch]), clock],
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
        0.0 if hooks is None else hooks.explaining,
        0.0 if hooks is None else hooks.looking,
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
