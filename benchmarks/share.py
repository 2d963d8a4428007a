"""Measures how much of the time of an epoch the default explanation takes, and how many training samples take as long.

Run with: python benchmarks/share.py

Three epochs of each training on random images, with TensorBoard; the first epoch is not counted, because what is done once (importing,
reading fonts) is not part of what each takes. An explanation counts everything, with drawing and writing.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from cost_line import Training, resnet
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from _measure import now
from lightning_explain import ExplanationMonitor
from lightning_explain.demo.digits import DigitsModel

# Network, shape of an image, images of an epoch, batch size.
SETUPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int, int]] = {
    "digits CNN, 28 x 28": (DigitsModel, (1, 28, 28), 5000, 64),
    "ResNet-18, 32 x 32": (resnet, (3, 32, 32), 4000, 128),
    "ResNet-18, 64 x 64": (resnet, (3, 64, 64), 2000, 64),
}


class Timed(ExplanationMonitor):
    """Keeps the seconds that the batches of each epoch took, and those of the explanation after them."""

    def on_fit_start(self, *arguments: Any) -> None:
        super().on_fit_start(*arguments)
        self.taken: list[list[float]] = []

    def on_train_epoch_start(self, *arguments: Any) -> None:
        super().on_train_epoch_start(*arguments)
        self.taken.append([now()])

    def on_train_epoch_end(self, *arguments: Any) -> None:
        self.taken[-1].append(now())
        super().on_train_epoch_end(*arguments)
        self.taken[-1].append(now())


def seconds(
    make: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    images: int,
    batch: int,
    accelerator: str = "cpu",
    devices: int | list[int] = 1,
) -> tuple[float, float]:
    """The median seconds of an epoch, and of an explanation, on the devices of a Trainer."""
    pl.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(images, *shape), torch.randint(10, (images,)))
    timed = Timed()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        trainer = pl.Trainer(
            max_epochs=3, accelerator=accelerator, devices=devices, logger=logger, callbacks=[timed], **quiet
        )
        trainer.fit(Training(make()), DataLoader(data, batch, shuffle=True))
    epochs = [(trained - begun, explained - trained) for begun, trained, explained in timed.taken[1:]]
    return statistics.median(e for e, _ in epochs), statistics.median(x for _, x in epochs)


def main() -> None:
    warnings.filterwarnings("ignore")
    table = Table("network", "images of an epoch", "epoch", "explanation", "share", "as long as training on")
    for name, setup in SETUPS.items():
        epoch, explanation = seconds(*setup)
        share = explanation / epoch
        row = f"{epoch:.1f} s", f"{explanation:.1f} s", f"{share:.0%}", f"{share * setup[2]:,.0f} samples"
        table.add_row(name, f"{setup[2]:,}", *row)
    Console().print(table)


if __name__ == "__main__":
    main()
