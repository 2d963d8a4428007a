"""Compares the seconds that the monitor says before training with those that explanations then take.

Run with: python benchmarks/cost_line.py

Each training has the default monitor, a TensorBoard logger and one epoch for each explanation. In all of them time is that of the
process's CPU, with one thread, so that other work on the machine does not count. The first explanation is not counted, because what is
done once (importing, reading fonts) is not part of what each takes.

The benchmark fails if what is said is more than twice or less than half of the median.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor
from lightning_explain.demo.digits import DigitsModel

EPOCHS, MOST = 4, 2.0


class Reads(nn.Module):
    """An LSTM over a series, and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 64, batch_first=True), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)


SETUPS: dict[str, tuple[Any, ...]] = {
    "small MLP, 20 columns": (lambda: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3)), (20,), 3),
    "digits CNN, 28 x 28": (DigitsModel, (1, 28, 28), 10),
    "the same, in batches of 16": (DigitsModel, (1, 28, 28), 10, 16),
    "ResNet-18, 64 x 64": (resnet, (3, 64, 64), 10),
    "LSTM, 50 steps of 6": (Reads, (50, 6), 4),
    "ViT tiny, 64 x 64": (vit, (3, 64, 64), 10),
}


class Training(pl.LightningModule):
    """Trains a network with cross entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Watched(ExplanationMonitor):
    """Keeps what it said, and the seconds of each explanation."""

    said = 0.0

    def on_fit_start(self, *arguments: Any) -> None:
        super().on_fit_start(*arguments)
        self.taken: list[float] = []

    def _cost(self, trainer: pl.Trainer, expected: Any, samples: int) -> str:
        line = super()._cost(trainer, expected, samples)
        self.said = float(line.partition("about ")[2].partition(" seconds")[0])
        return line

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, module)
        if self.last_report is not None:
            self.taken.append(self.last_report.seconds)


def measured(
    make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, batch: int = 64
) -> tuple[float, list[float]]:
    """What was said, and the seconds of each explanation but the first."""
    pl.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(4 * batch, *shape), torch.randint(0, classes, (4 * batch,)))
    watched = Watched()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            limit_train_batches=1,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            callbacks=[watched],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Training(make()), DataLoader(data, batch), DataLoader(data, batch))
    return watched.said, watched.taken[1:]


def main() -> int:
    torch.set_num_threads(1)
    time.perf_counter = time.process_time
    warnings.filterwarnings("ignore")
    table, wrong = Table("network", "said", "measured", "said / measured"), []
    for name, setup in SETUPS.items():
        said, taken = measured(*setup)
        middle = statistics.median(taken)
        spread = f"{middle:.2f} s ({min(taken):.2f} to {max(taken):.2f})"
        table.add_row(name, f"{said:.2f} s", spread, f"{said / middle:.2f}")
        wrong += [] if 1 / MOST <= said / middle <= MOST else [name]
    Console().print(table)
    return print(f"not within a factor of {MOST:g}: {', '.join(wrong)}") or 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
