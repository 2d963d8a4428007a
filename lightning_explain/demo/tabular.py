"""Tumors with the measurements of a flower that gives the diagnosis away, and a multilayer perceptron.

After Iris-Cancer of Ross et al. (2017), "Right for the right reasons".
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_explain.demo.shortcut import Classifier, Demo, ShortcutData, Shown
from lightning_explain.modalities import Tabular

DECOYS = 4
"""The first four columns are the flower's."""


@functools.cache
def _tables() -> tuple[Any, Any]:
    try:
        from sklearn.datasets import load_breast_cancer, load_iris
    except ImportError as error:
        raise ImportError("The demo's tables need scikit-learn: pip install 'lightning-explain[demo]'") from error
    return load_iris(), load_breast_cancer()


def feature_names() -> list[str]:
    """The names of the flower's columns, and of the tumor's."""
    iris, cancer = _tables()
    return [*(f"iris {name.removesuffix(' (cm)')}" for name in iris.feature_names), *map(str, cancer.feature_names)]


class MarkedTumors(ShortcutData):
    """419 tumors for training and 150 for validation: 34 standardized columns, of which four measure a flower of the class.

    A malignant tumor comes with a versicolor, a benign one with a setosa; each flower is drawn from the 50 of its kind.
    Further arguments: :class:`~lightning_explain.demo.shortcut.ShortcutData`.
    """

    class_names: ClassVar[tuple[str, ...]] = ("malignant", "benign")
    validation_samples: ClassVar[int] = 150

    def samples(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Columns ``(N, 34)`` and labels; without a shortcut the kind of the flower is drawn."""
        iris, cancer = _tables()
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(cancer.target), generator=generator)
        tumors, labels = torch.tensor(cancer.data).float()[order], torch.tensor(cancer.target)[order]
        drawn, which = (torch.randint(most, labels.shape, generator=generator) for most in (2, 50))
        kinds = 1 - {"right": labels, "wrong": 1 - labels, "none": drawn}[shown]
        flowers = torch.tensor(iris.data).float()
        columns = torch.cat([flowers[50 * kinds + which], tumors], 1)
        known = torch.cat([flowers[:100].mean(0), tumors.mean(0)]), torch.cat([flowers[:100].std(0), tumors.std(0)])
        return (columns - known[0]) / known[1], labels

    def masks(self, inputs: Tensor) -> Tensor:
        """The flower's columns, ``(N, 34)``."""
        return (torch.arange(inputs.shape[1]) < DECOYS).expand(inputs.shape).clone()


class TumorsModel(Classifier):
    """Two hidden layers.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 3e-3) -> None:
        super().__init__(2, lr)
        self.save_hyperparameters()
        layers = [nn.Linear(34, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, 2)]
        self.net = nn.Sequential(*layers)

    def forward(self, columns: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of columns ``(N, 34)``."""
        logits: Tensor = self.net(columns)
        return logits


def demo() -> Demo:
    """The demo with tables."""
    return Demo(
        data=MarkedTumors,
        model=TumorsModel,
        epochs=12,
        title="What the network looks at, on tumors that come with the flower of the other class",
        truth="the diagnosis",
        shortcut="the flower's class",
        unit="flower",
        monitor={"modalities": Tabular(feature_names=feature_names())},
    )
