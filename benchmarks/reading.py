"""Counts what a reader must follow: ``python benchmarks/reading.py [FOLDER]``, the folder of another version for a comparison.

A small classifier is trained with the default monitor. Printed are the files of the package that are entered during the whole fit, and
the jumps before the first batch: calls from one file of the package into another.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

if len(sys.argv) > 1:
    sys.path.insert(0, sys.argv[1])

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_explain

PACKAGE = str(Path(lightning_explain.__file__).parent)


class Small(L.LightningModule):
    """A convolutional classifier that says when its first batch has come."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        self.began = False

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.began = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def main() -> None:
    """Trains once under a profiler that counts calls."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 1, 12, 12), torch.arange(32) % 3)
    module, entered, jumps = Small(), set[str](), [0, 0]

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        entered.add(frame.f_code.co_filename)
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != frame.f_code.co_filename:
            jumps[module.began] += 1

    with tempfile.TemporaryDirectory() as folder:
        monitor = lightning_explain.ExplanationMonitor()
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            callbacks=[monitor],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        sys.setprofile(note)
        try:
            trainer.fit(module, DataLoader(data, 8), DataLoader(data, 8))
        finally:
            sys.setprofile(None)
    print(f"files entered in a fit                  {len(entered)}")
    print(f"jumps between files before the 1st batch {jumps[0]}")
    print(f"jumps between files afterwards           {jumps[1]}")


if __name__ == "__main__":
    main()
