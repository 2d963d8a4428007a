"""The training into which faults are injected, and the ways to injure it from outside."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_explain import ExplanationMonitor, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import DigitNet
from training import DigitModule, loader

EPOCHS = 4
Fire = Callable[[Tensor], Tensor]


@dataclass
class Trap:
    """Does something to the model's output at a call that is none of the training's.

    Args:
        fire: What it does to the output.
        first: At which call, counted anew in each epoch.
        last: Up to which call.
        before: Whether the calls before the first training batch are meant, or those after it.
    """

    fire: Fire
    first: int = 1
    last: float = 1
    before: bool = False
    begun: bool = False
    ours: bool = False
    # Where the isolation does not find them: it puts back what a forward counts.
    _calls: ContextVar[int] = field(default_factory=lambda: ContextVar("calls", default=0))
    _fired: ContextVar[int] = field(default_factory=lambda: ContextVar("fired", default=0))

    @property
    def fired(self) -> int:
        """How often it has struck."""
        return self._fired.get()

    def begin_again(self) -> None:
        """Counts calls anew."""
        self._calls.set(0)

    def __call__(self, output: Tensor) -> Tensor:
        if self.ours or self.before == self.begun:
            return output
        self._calls.set(self._calls.get() + 1)
        if not self.first <= self._calls.get() <= self.last:
            return output
        self._fired.set(self._fired.get() + 1)
        return self.fire(output)


class Injured(DigitModule):
    """Reads digits through a trap; its randomness depends on the step alone, so that a training can be repeated."""

    def __init__(self, trap: Trap | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(DigitNet())
        self.trap = trap

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if self.trap is None else self.trap(found)

    def on_train_epoch_start(self) -> None:
        if self.trap is not None:
            self.trap.begin_again()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.global_step)
        if self.trap is not None:
            self.trap.begun = True

    def _loss(self, batch: Any) -> Tensor:
        if self.trap is None:
            return super()._loss(batch)
        self.trap.ours = True
        found = super()._loss(batch)
        self.trap.ours = False
        return found

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._loss(batch)


class Around(pl.Callback):
    """Does something right before the monitor's turn, or right after it."""

    def __init__(self, work: Callable[[pl.Trainer], None]) -> None:
        self.work = work

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.work(trainer)


@dataclass
class Scene:
    """One training, before it begins. A fault changes what it likes.

    Args:
        root: Its folder.
        rank: Of this process.
        injured: Whether this rank is one of those that the fault strikes.
        arguments: Of the monitor.
        fired: Calls itself as often as the fault has struck.
    """

    root: Path
    rank: int
    injured: bool
    arguments: dict[str, Any] = field(default_factory=dict)
    loggers: Any = False
    trap: Trap | None = None
    before: list[pl.Callback] = field(default_factory=list)
    after: list[pl.Callback] = field(default_factory=list)
    validation: Any = None
    checkpoint: dict[str, Any] | None = None
    strikes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        methods = {"saliency": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=3), "lift": m.DeepLift()}
        usual = {"methods": methods, "metrics": [q.Infidelity(n_perturb_samples=2)], "probe": ProbeSelection(count=4)}
        self.arguments = {**usual, "max_examples_per_pass": 8, **self.arguments}
        self.validation = loader(100, 8)

    def strike(self) -> None:
        """Notes that the fault has struck, also in the process that reads samples."""
        self.strikes.append("")
        self._struck.parent.mkdir(parents=True, exist_ok=True)
        self._struck.touch()

    @property
    def _struck(self) -> Path:
        # Not in the folder, which rank zero may delete before this rank looks.
        return self.root.with_name(f"{self.root.name}-struck-{self.rank}")

    @property
    def fired(self) -> int:
        """How often the fault has struck on this rank."""
        return max(len(self.strikes), self._struck.exists()) + (0 if self.trap is None else self.trap.fired)

    def run(self, world: int, watched: bool = True) -> dict[str, Tensor]:
        """Trains to the end, and gives the weights."""
        watch = [ExplanationMonitor(**self.arguments)] if watched else []
        saving = [ModelCheckpoint(self.root / "checkpoints", filename="{epoch}", save_top_k=-1)]
        trainer = pl.Trainer(
            strategy="ddp" if world > 1 else "auto",
            accelerator="cpu",
            devices=world,
            max_epochs=EPOCHS,
            callbacks=[*self.before, *watch, *self.after, *saving],
            logger=self.loggers,
            default_root_dir=self.root,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        module = Injured(self.trap)
        trainer.fit(module, loader(0, 16), self.validation, ckpt_path=self._saved(trainer))
        if trainer.current_epoch != EPOCHS:
            raise AssertionError(f"stopped in epoch {trainer.current_epoch}")
        return {name: value.clone() for name, value in module.state_dict().items()}

    def _saved(self, trainer: pl.Trainer) -> Path | None:
        if self.checkpoint is None:
            return None
        path = self.root / f"given-{self.rank}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.checkpoint, path)
        return path
