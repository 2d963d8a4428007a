"""Counts the model's runs before the first batch, and the seconds until then, with and without the default monitor.

Run with: python benchmarks/start.py [--repeat 5] [--threads 2]

Each training is a process of its own, with a TensorBoard logger, and 16 probe samples; trainings with and without the monitor take turns.
The clock runs from ``Trainer.fit`` to the first training batch; importing the package, once Lightning is imported, is timed apart. Runs of
Lightning's sanity check are in both. The benchmark fails if the monitor runs the model more than three times.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

MOST_RUNS, CLASSES, BATCH = 3, 10, 64
SHAPES = {"small CNN, 28 x 28": (1, 28, 28), "ResNet-18, 64 x 64": (3, 64, 64)}


RUNS: list[int] = []
BACKWARD: list[int] = []


class ReachedError(Exception):
    """The first batch has come, at this reading of the clock."""


class Training(pl.LightningModule):
    """Trains a network, notes each of its runs, and ends at the first batch.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(len(x))
        outputs = self.net(x)
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: BACKWARD.append(len(gradient)))
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        raise ReachedError(time.perf_counter())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def network(name: str) -> nn.Module:
    if name.startswith("ResNet"):
        from torchvision.models import resnet18

        return resnet18(num_classes=CLASSES)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(400, CLASSES))


def once(name: str, watched: bool, threads: int) -> None:
    """Trains up to the first batch in this process, and prints what was counted."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    pl.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(4 * BATCH, *SHAPES[name]), torch.arange(4 * BATCH) % CLASSES)
    module, imported = Training(network(name)), time.perf_counter()
    callbacks: list[pl.Callback] = []
    if watched:
        from lightning_explain import ExplanationMonitor

        callbacks.append(ExplanationMonitor())
    imported = time.perf_counter() - imported
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        started = time.perf_counter()
        try:
            trainer.fit(module, DataLoader(data, BATCH), DataLoader(data, BATCH))
        except ReachedError as reached:
            seconds = reached.args[0] - started
    print(json.dumps({"imported": imported, "seconds": seconds, "forward": RUNS, "backward": BACKWARD}))


def trained(name: str, watched: bool, threads: int) -> dict[str, Any]:
    """What was counted in a training of its own process."""
    command = [sys.executable, __file__, "--once", name, str(int(watched)), str(threads)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> int:
    from _measure import console, parser, start, table

    chosen = start(parser(__doc__, repeat=5, clocks=False))
    columns = ("monitor", "forward runs", "samples", "backward runs", "samples", "seconds to the first batch", "import")
    found, most = table(f"{chosen.threads} threads, median of {chosen.repeat} (range)", "network", *columns), 0
    for name in SHAPES:
        runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for i in range(chosen.repeat):
            for watched in (False, True) if i % 2 else (True, False):
                runs[watched].append(trained(name, watched, chosen.threads))
        for watched, of_kind in runs.items():
            forward, backward = of_kind[0]["forward"], of_kind[0]["backward"]
            counts = [str(n) for n in (len(forward), sum(forward), len(backward), sum(backward))]
            times = [spread([run[key] for run in of_kind]) for key in ("seconds", "imported")]
            found.add_row(name, "default" if watched else "none", *counts, *times)
        without, with_it = ([run["seconds"] for run in runs[watched]] for watched in (False, True))
        ratios = [b / a for a, b in zip(without, with_it, strict=True)]
        found.add_row(name, "ratio", "", "", "", "", spread(ratios), "")
        most = max(most, len(runs[True][0]["forward"]) - len(runs[False][0]["forward"]))
    console.print(found, f"The monitor runs the model at most {most} times before the first batch.")
    return 0 if most <= MOST_RUNS else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]))
    else:
        sys.exit(main())
