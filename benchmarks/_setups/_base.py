"""A set-up: a network, its data with a planted cause, and where in a sample that cause lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

Loss = Callable[[Tensor, Tensor], Tensor]
Cause = Callable[[tuple[Tensor, ...], Tensor | None], tuple[Tensor, ...]]


class Task(L.LightningModule):
    """Trains on batches of inputs and labels."""

    def __init__(self, loss: Loss = F.cross_entropy, lr: float = 5e-3) -> None:
        super().__init__()
        self.loss, self.lr = loss, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        *inputs, labels = batch
        return self.loss(self(*inputs), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class Net(Task):
    """Any network with one input."""

    def __init__(self, net: nn.Module, loss: Loss = F.cross_entropy, lr: float = 5e-3) -> None:
        super().__init__(loss, lr)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@dataclass(frozen=True)
class Setup:
    """One thing that people train.

    Args:
        make: Returns the untrained network.
        data: Returns this many samples, drawn with this generator.
        cause: Returns for each input a mask of its units, true where the planted cause lies, from the probe's inputs and labels.
        epochs: Passes over the training samples.
        of_targets: Of several targets, the cause of each; else that of all.
        collate: Makes a batch of samples; ``None``: as a DataLoader does.
        losses: Returns the loss on samples, and where their causes are exchanged; ``None``: that of the training step.
    """

    make: Callable[[], L.LightningModule]
    data: Callable[[int, torch.Generator], Dataset[Any]]
    cause: Cause
    epochs: int = 4
    of_targets: Mapping[str, Cause] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] | None = None
    losses: Callable[[L.LightningModule, Dataset[Any]], tuple[float, float]] | None = None


def binary(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs.flatten(), labels.float().flatten())


def labels_of(count: int, generator: torch.Generator, classes: int = 2) -> Tensor:
    return torch.randint(classes, (count,), generator=generator)


def tensors(*columns: Tensor) -> TensorDataset:
    return TensorDataset(*columns)
