"""Faces of noise with an age and a sex, and a model that returns both by name."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset


class Faces(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i))
        return image, {"age": image.mean()[None], "sex": torch.tensor(i % 2)}


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.age, self.sex = nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"age": self.age(h), "sex": self.sex(h)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, labels = batch
        found = self(x)
        return F.mse_loss(found["age"], labels["age"]) + F.cross_entropy(found["sex"], labels["sex"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(pl.LightningDataModule):
    """The same samples for training and validation."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Faces(), 4)

    val_dataloader = train_dataloader
