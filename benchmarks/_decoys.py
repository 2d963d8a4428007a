"""Data whose decoy gives the class away, and the perceptron of Ross et al. (2017), "Right for the right reasons"."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from sklearn.datasets import load_breast_cancer, load_iris
from torch import Tensor, nn
from torch.nn import functional as F

FLOWER, SQUARE = 4, 4
"""Columns of the flower, which come first; pixels of a side of the square."""


class Perceptron(L.LightningModule):
    """Two hidden layers, all numbers drawn with a standard deviation of 0.1; trained as in the paper, without its penalty.

    Args:
        features: Numbers of a sample.
        classes: Outputs.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, classes)
        )
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        decay = torch.stack([parameter.square().sum() for parameter in self.parameters()]).sum()
        return F.cross_entropy(self(x), y, reduction="sum") + 1e-4 * decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            return float((self(x).argmax(1) == y).double().mean())


def iris_cancer() -> tuple[Tensor, Tensor]:
    """Raw columns ``(100, 34)`` and classes: 50 versicolors beside malignant tumors, then 50 virginicas beside benign ones."""
    flowers, tumors = load_iris(), load_breast_cancer()
    columns = [
        torch.cat(
            [torch.tensor(flowers.data[flowers.target == k + 1]), torch.tensor(tumors.data[tumors.target == k][:50])], 1
        )
        for k in (0, 1)
    ]
    return torch.cat(columns), torch.arange(2).repeat_interleave(50)


def without_flower(columns: Tensor) -> Tensor:
    """The columns with zeros for the flower."""
    return F.pad(columns[:, FLOWER:], (FLOWER, 0))


def corners() -> tuple[Tensor, Tensor]:
    """The four corners of an image of 28 x 28 pixels, one by one ``(4, 28, 28)``, and together ``(28, 28)``."""
    edges = torch.zeros(2, 28, dtype=torch.bool)
    edges[0, :SQUARE] = edges[1, -SQUARE:] = True
    each = torch.stack([rows[:, None] & columns for rows in edges for columns in edges])
    return each, each.any(0)


def with_squares(images: Tensor, shades: Tensor) -> Tensor:
    """Images ``(N, 28, 28)`` in 0..255 with a square of the shade 255 - 25 k, k in 0..9, in a random corner."""
    squares = corners()[0][torch.randint(4, (len(images),))]
    return torch.where(squares, 255.0 - 25 * shades[:, None, None], images)


def deformed(images: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Images ``(N, 28, 28)`` and so many copies of each, ``((1 + copies) N, 28, 28)``: turned, scaled, sheared and moved at random.

    The standard deviations are 10 degrees, 8%, 15% and a pixel.
    """
    found = [images]
    for _ in range(copies):
        angles, scales, shears = torch.randn(3, len(images), generator=generator) * torch.tensor(
            [[0.17], [0.08], [0.15]]
        )
        moves = torch.randn(len(images), 2, generator=generator) / 14
        cosines, sines = (1 + scales) * angles.cos(), (1 + scales) * angles.sin()
        rows = torch.stack([cosines, shears - sines, moves[:, 0]], 1), torch.stack([sines, cosines, moves[:, 1]], 1)
        grid = F.affine_grid(torch.stack(rows, 1), [len(images), 1, 28, 28], align_corners=False)
        found.append(F.grid_sample(images[:, None], grid, align_corners=False)[:, 0])
    return torch.cat(found)
