"""Everything a training run consists of, copied to be compared bit by bit."""

from __future__ import annotations

import copy
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torchmetrics
from torch import Tensor, nn


def assert_equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal to the last bit, tensors and arrays included, so that NaN equals NaN; says where it is not."""
    assert type(ours) is type(theirs), f"{where}: another type"
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs), f"{where}: another length"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), f"{where}: other keys"
        for key, value in theirs.items():
            assert_equal(ours[key], value, f"{where}[{key!r}]")
    elif isinstance(theirs, (Tensor, np.ndarray)):
        same = _same_bits if isinstance(theirs, Tensor) else _same_values
        assert same(ours, theirs), f"{where}: other values"
    else:
        both_nan = isinstance(theirs, float) and ours != ours and theirs != theirs
        assert both_nan or ours == theirs, f"{where}: {ours!r} is not {theirs!r}"


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape or ours.device != theirs.device:
        return False
    a, b = (x.detach().contiguous().view(-1).view(torch.uint8) for x in (ours, theirs))
    return torch.equal(a, b)


def _same_values(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> bool:
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=theirs.dtype.kind in "fc")


def generator_states() -> tuple[int, Any, Tensor]:
    """Of Python (a hash), NumPy and torch."""
    return hash(random.getstate()), np.random.get_state(), torch.get_rng_state()


def hook_ids(model: nn.Module) -> list[int]:
    """How many hooks of each kind each module has."""
    found = [value for module in model.modules() for name, value in vars(module).items() if "_hooks" in name]
    return [len(value) for value in found]


class Recorder(pl.Callback):
    """Copies the state of the run at every hook; to be placed behind the monitor.

    Args:
        monitor: Whose reports are collected, if any.
    """

    def __init__(self, monitor: Any = None) -> None:
        self.monitor = monitor
        self.reports: list[Any] = []
        self.states: list[dict[str, Any]] = []

    def _note(self, where: str, trainer: pl.Trainer, module: pl.LightningModule, batch: Any = None) -> None:
        report = getattr(self.monitor, "last_report", None)
        if report is not None and (not self.reports or report is not self.reports[-1]):
            self.reports.append(report)
        metrics = [part for part in module.modules() if isinstance(part, torchmetrics.Metric)]
        state = {
            "hook": where,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "state_dict": dict(module.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "grad": {name: p.grad for name, p in module.named_parameters()},
            "requires_grad": [p.requires_grad for p in module.parameters()],
            "modes": [part.training for part in module.modules()],
            "hooks": hook_ids(module),
            "metrics": [
                ({key: getattr(metric, key) for key in metric._defaults}, metric._update_count) for metric in metrics
            ],
            "logged": {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("explain/")},
            "generators": generator_states(),
            "batch": batch,
        }
        self.states.append(copy.deepcopy(state))

    def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        self._note("zero grad", trainer, module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        self._note("optimizer step", trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        self._note("batch end", trainer, module, batch)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, i: int, loader: int = 0
    ) -> None:
        self._note("validation batch end", trainer, module, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note("validation epoch end", trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note("epoch end", trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._note("end", trainer, module)
