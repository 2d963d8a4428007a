"""Measures what explanations beside a training cost that training, against explanations that it waits for.

Run with: python benchmarks/beside.py [--pairs 20] [--steps 240] [--every 60]

A small ResNet trains on one core (one thread of torch) with the default methods and scores of 16 samples, pictures, TensorBoard and stored
reports: without a monitor, with one beside it, which skips what is due before the last is done, and with one that it waits for.
Trainings of a pair run one after the other, in alternating
order. The clock runs from the first batch to the last; starting the worker before, and awaiting its last explanation after, are told apart.
The ratio is that of pairs, with the 95% interval of its median by the bootstrap. A second core must be free: the load is printed.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from _measure import console, table
from _workload import ResNet, images, probe
from lightning_explain import ExplanationMonitor

BATCH = 16


class Gratings(pl.LightningModule):
    """A ResNet on gratings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = ResNet((16, 32, 64), blocks=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.001)


class Clock(pl.Callback):
    """From the first batch to the last, in seconds of the wall and of the cores that this process used; stands behind the monitor."""

    def __init__(self) -> None:
        self.fitted, self.hooks = time.perf_counter(), list[float]()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.started, self.cpu_started = time.perf_counter(), time.process_time()
            self.before = self.started - self.fitted

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
        self.hooks.append(self.ended - self.in_front.now)

    in_front: InFront


class InFront(pl.Callback):
    """Reads the clock in front of the monitor."""

    now = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.now = time.perf_counter()


@dataclass
class Run:
    """What one training took.

    Args:
        wall: Seconds from the first batch to the last.
        cpu: Seconds of all cores that the training process used meanwhile.
        before: Seconds before the first batch.
        after: Seconds after the last.
        blocked: Seconds in the monitor's hooks from the first batch to the last.
        explanations: How many there are.
        weights: At the end.
    """

    wall: float
    cpu: float
    before: float
    after: float
    blocked: float
    explanations: int
    weights: dict[str, Tensor] = field(default_factory=dict)


def run(kind: str, steps: int, every: int) -> Run:
    """One training: ``"plain"``, ``"beside"`` or ``"inline"``."""
    module = Gratings()
    data = DataLoader(TensorDataset(*images(steps * BATCH, seed=1)), batch_size=BATCH)
    with tempfile.TemporaryDirectory() as root:
        clock = Clock()
        clock.in_front = InFront()
        watch = ExplanationMonitor(
            probe=probe(), every_n_train_steps=every, beside=kind == "beside", max_examples_per_pass=16
        )
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            callbacks=[clock.in_front, *([] if kind == "plain" else [watch]), clock],
            logger=TensorBoardLogger(root, name="", version="run"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        after = time.perf_counter() - clock.ended
        made = len(list(Path(root, "run", "explain").glob("step=*.safetensors")))
    return Run(
        clock.ended - clock.started,
        clock.cpu_ended - clock.cpu_started,
        clock.before,
        after,
        sum(clock.hooks),
        made,
        module.state_dict(),
    )


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the median, by the bootstrap."""
    values, generator = torch.tensor(ratios), torch.Generator().manual_seed(0)
    drawn = values[torch.randint(len(values), (2000, len(values)), generator=generator)].median(1).values
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def copying(module: torch.nn.Module) -> float:
    """Seconds that copying weights and buffers takes, into memory that is there."""
    source = torch.cat([value.detach().flatten().view(torch.uint8) for value in module.state_dict().values()])
    target, times = source.clone(), []
    for _ in range(20):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    run("inline", 2 * given.every, given.every)  # What is read and compiled once.
    found: dict[str, list[Run]] = {"plain": [], "beside": [], "inline": []}
    for number in range(given.pairs):
        for kind in reversed(found) if number % 2 else found:
            found[kind].append(run(kind, given.steps, given.every))
    for runs in zip(*found.values(), strict=True):
        assert all(
            torch.equal(other.weights[name], value) for other in runs[1:] for name, value in runs[0].weights.items()
        )
    made = table(f"{given.pairs} trainings of {given.steps} steps each", "", *found)
    median = {
        kind: lambda part, kind=kind: statistics.median(getattr(one, part) for one in found[kind]) for kind in found
    }
    for part, words in {
        "wall": "seconds, first to last batch",
        "cpu": "CPU seconds of the training process",
        "before": "seconds before the first batch",
        "after": "seconds after the last batch",
    }.items():
        made.add_row(words, *(f"{median[kind](part):.2f}" for kind in found))
    ratios = {kind: [a.wall / b.wall for a, b in zip(found[kind], found["plain"], strict=True)] for kind in found}
    shown = ("{:.3f} ({:.3f}-{:.3f})".format(statistics.median(r), *interval(r)) for r in ratios.values())
    made.add_row("wall over that of no monitor, with its 95% interval", *shown)
    blocked = {kind: [one.blocked * 1000 / max(1, one.explanations) for one in found[kind]] for kind in found}
    words = (f"{statistics.median(times):.1f} ({max(times):.1f})" for times in blocked.values())
    made.add_row("ms in the monitor's hooks for each explanation (at most)", *words)
    made.add_row("explanations", *(str(sum(one.explanations for one in runs)) for runs in found.values()))
    console.print(made)
    copied = 1000 * copying(Gratings())
    print(
        f"Copying the weights takes {copied:.2f} ms. Load of the machine in the last minute: {os.getloadavg()[0]:.1f}."
    )


if __name__ == "__main__":
    main()
