"""What the demos share: data with a shortcut that gives the class away, a classifier, and how they are explained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_explain.core.probe import Probe

Shown = Literal["right", "none", "wrong"]
"""The shortcut that a sample carries: that of its class, none (or one of any class, by chance), or that of a wrong class."""


class ShortcutData(L.LightningDataModule):
    """Samples for training and validation; most of them carry a shortcut that gives their class away.

    Validation samples carry it like training samples, as in data sets where such a leak goes unnoticed.

    Args:
        marked: Whether the samples carry it; without it the samples and their order are the same.
        share: Share of the samples that carry it.
        batch_size: Samples in a training batch; validation batches have four times as many.
        seed: Seed of the split, of the choice of samples with a shortcut, and of the order of batches.
    """

    class_names: ClassVar[tuple[str, ...]]
    validation_samples: ClassVar[int]

    def __init__(self, marked: bool = True, share: float = 0.98, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.marked = marked
        self.share = share
        self.batch_size = batch_size
        self.seed = seed

    @abstractmethod
    def samples(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """All inputs ``(N, ...)`` and labels ``(N,)`` in the order of the split; those for validation come last."""

    @abstractmethod
    def masks(self, inputs: Tensor) -> Tensor:
        """Where the shortcut is: boolean, one for each unit of the inputs ``(N, ...)``."""

    def wrong_class(self, labels: Tensor) -> Tensor:
        """The class ``(N,)`` whose shortcut a sample with this label carries in the probe."""
        return (labels + 1) % len(self.class_names)

    def datasets(self) -> tuple[TensorDataset, TensorDataset]:
        """The training and the validation samples: inputs and labels."""
        inputs, labels = self.samples("none")
        if self.marked:
            chosen = torch.rand(len(labels), generator=torch.Generator().manual_seed(self.seed)) < self.share
            inputs = torch.where(chosen.view(-1, *[1] * (inputs.ndim - 1)), self.samples("right")[0], inputs)
        last = self.validation_samples
        return TensorDataset(inputs[:-last], labels[:-last]), TensorDataset(inputs[-last:], labels[-last:])

    def train_dataloader(self) -> DataLoader[Any]:
        """The training loader; its own generator shuffles, so that marked and clean networks see the same order."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.datasets()[0], self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation loader, in the order of the split."""
        return DataLoader(self.datasets()[1], 4 * self.batch_size)

    def probe_samples(self, count: int = 16) -> Probe:
        """Validation samples with the shortcut of a wrong class, the same for marked and clean trainings.

        A network that uses the shortcut predicts ``wrong_class(probe.targets)``, and its map lies inside ``probe.masks``. Any other
        predicts ``probe.targets``. Samples of all classes alternate.

        Args:
            count: Number of samples.

        Raises:
            ValueError: If there are not so many validation samples.
        """
        inputs, labels = (column[-self.validation_samples :] for column in self.samples("wrong"))
        ids = _classes_in_turn(labels)[:count]
        if len(ids) != count and count > 0:
            raise ValueError(f"probe_samples({count}): the demo's data have {len(labels)} samples for validation.")
        return Probe(inputs[ids], labels[ids], ids, self.masks(inputs[ids]), self.class_names)

    def accuracy(self, model: torch.nn.Module, shown: Shown) -> float:
        """The share of validation samples, with this shortcut, that the model classifies as labelled."""
        inputs, labels = (column[-self.validation_samples :] for column in self.samples(shown))
        training = model.training
        with torch.no_grad():
            predictions = model.eval()(inputs).argmax(1)
        model.train(training)
        return float((predictions == labels).float().mean())


def _classes_in_turn(labels: Tensor) -> Tensor:
    """Indices of all samples: the first sample of each class, then the second of each, and so on."""
    classes = int(labels.max()) + 1
    turn = F.one_hot(labels, classes).cumsum(0).gather(1, labels[:, None])[:, 0]
    return torch.argsort(turn * classes + labels)


class Classifier(L.LightningModule):
    """Learns classes with cross-entropy.

    Args:
        classes: Number of classes.
        lr: Learning rate of Adam.
    """

    def __init__(self, classes: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of one batch; also logged as ``train_loss``."""
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the accuracy of one batch as ``val_accuracy``."""
        inputs, labels = batch
        self.accuracy(self(inputs), labels)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the learning rate ``lr``."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@dataclass(frozen=True)
class Demo:
    """One demo.

    Args:
        data: The data.
        model: The network.
        epochs: Passes over the training samples.
        title: What the table shows.
        truth: What the network should look at, as in "predicts the digit".
        shortcut: What it looks at instead, as in "predicts the mark's class".
        unit: The shortcut in one word.
        monitor: Further arguments of the monitor.
    """

    data: type[ShortcutData]
    model: Callable[[], Classifier]
    epochs: int
    title: str
    truth: str
    shortcut: str
    unit: str
    monitor: Mapping[str, Any] = field(default_factory=dict)
