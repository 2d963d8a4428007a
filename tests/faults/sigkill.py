"""A training killed at any moment and resumed gives the numbers of one that was never killed.

``python tests/faults/sigkill.py --moments 20``: a training is killed (SIGKILL) while it trains, explains or writes, and resumed
from its last checkpoint until it is finished. Checkpoints are made at the ends of epochs, or (``--early``) at their last batches,
before what is explained there; then each is killed once, for Lightning miscounts the epochs of a training that is resumed from such a
checkpoint of an epoch which began with a resume. Its weights and all curves ``explain/*``, except of times, must be those of the
training that was left alone, bit for bit. An epoch that was explained twice counts once, and must have given the same twice.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples

EPOCHS = 5
DEADLINE = 60.0
_TIMES = ("explain/seconds", "explain/overhead")
# Imported once, by the process that all others are forked from.
_HEAVY = [
    "lightning.pytorch",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "lightning_explain.monitor.callback",
    "captum.attr",
]
Curves = dict[tuple[str, int], float]


class Net(pl.LightningModule):
    """A small network with dropout, whose randomness depends on the step alone, so that a training can be repeated."""

    def __init__(self, tick: Callable[[], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 36, 4)
        self.tick = tick

    def forward(self, x: Tensor) -> Tensor:
        self.tick()
        return self.head(F.dropout(F.relu(self.norm(self.conv(x))).flatten(1), 0.2, self.training))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class Early(Method):
    """Fails in the first three epochs and would work from then on, if it were not switched off by then."""

    weights_of_epoch_3: ClassVar[int] = 12

    def __init__(self, module: Net) -> None:
        self.module = module

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        if self.module.global_step <= self.weights_of_epoch_3:
            raise ArithmeticError("too early")
        return torch.ones_like(samples.inputs[0])


def train(root: Path, pipe: Connection | None = None, early: bool = False) -> None:
    """Trains in this process, from the last checkpoint if there is one; sends a byte through the pipe at every forward."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    module = Net(_nothing if pipe is None else partial(pipe.send_bytes, b"."))
    noise = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 1, 8, 8, generator=noise), torch.randint(4, (32,), generator=noise)
    data = DataLoader(TensorDataset(x, y), batch_size=8)
    methods = {"ig": m.IntegratedGradients(n_steps=4), "shap": m.GradientShap(n_samples=3), "early": Early(module)}
    metrics = [q.Infidelity(n_perturb_samples=4), q.SensitivityMax(n_perturb_samples=2), q.Drift()]
    watch = ExplanationMonitor(methods, metrics, probe=[1, 5, 9], max_examples_per_pass=8)
    often = {"every_n_train_steps": len(data)} if early else {}
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        callbacks=[watch, ModelCheckpoint(root / "checkpoints", filename="{epoch}", save_top_k=-1, **often)],
        logger=TensorBoardLogger(root, name="", version="run"),
        default_root_dir=root,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data, data, ckpt_path=last_checkpoint(root))


def _nothing() -> None:
    pass


def last_checkpoint(root: Path) -> Path | None:
    found = (root / "checkpoints").glob("epoch=*.ckpt")
    return max(found, key=lambda path: int(path.stem.removeprefix("epoch=")), default=None)


# -- killing -------------------------------------------------------------------------------------------------------


def attempt(context: Any, root: Path, kill_at: float, early: bool = False) -> int:
    """One process that trains until it is finished, or killed after so many forwards; the number of its forwards.

    Raises:
        RuntimeError: If it fails, or is not finished in time.
    """
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(root, theirs, early))
    process.start()
    theirs.close()
    count, until = 0, time.monotonic() + DEADLINE
    while process.is_alive() or ours.poll():
        try:
            count += len(ours.recv_bytes()) if ours.poll(0.05) else 0
        except EOFError:
            break
        if count >= kill_at or time.monotonic() > until:
            process.kill()  # It may have ended by now: what it sent is read behind it.
            break
    process.join()
    killed = process.exitcode == -signal.SIGKILL and count >= kill_at
    if process.exitcode != 0 and not killed:
        raise RuntimeError(f"The training ended with {process.exitcode} after {count} forwards.")
    return count


def finished(root: Path) -> bool:
    return (path := last_checkpoint(root)) is not None and path.stem == f"epoch={EPOCHS - 1}"


def survive(context: Any, root: Path, moments: list[int], early: bool = False) -> int:
    """Trains to the end, killed at each of these forwards, counted from the start of the process; how often it was started."""
    for starts, moment in enumerate([*moments, math.inf], 1):
        attempt(context, root, moment, early)
        if finished(root) and moment == math.inf:
            return starts
    return len(moments)


# -- comparing -----------------------------------------------------------------------------------------------------


def curves(root: Path) -> Curves:
    """Every point of every curve, of all event files; a point that is there twice must be the same twice.

    Raises:
        ValueError: If it is not.
    """
    found: Curves = {}
    for path in sorted((root / "run").glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("explain/") or value.metadata.plugin_data.plugin_name != "scalars":
                    continue
                point, number = (value.tag, event.step), float(tensor_util.make_ndarray(value.tensor))
                if value.tag not in _TIMES and found.setdefault(point, number) != number:
                    raise ValueError(f"{point} was {found[point]!r} and then {number!r}")
    return found


def difference(root: Path, expected: Path) -> str:
    """What differs between two finished trainings; empty if nothing does."""
    try:
        mine, other = curves(root), curves(expected)
    except ValueError as error:
        return str(error)
    for point in sorted(mine.keys() | other.keys()):
        if mine.get(point) != other.get(point):
            return f"{point}: {mine.get(point)!r} instead of {other.get(point)!r}"
    weights = [torch.load(path, weights_only=True)["state_dict"] for path in map(last_checkpoint, (root, expected))]
    for name, value in weights[0].items():
        if not torch.equal(value, weights[1][name]):
            return f"the weights {name} differ"
    found = load_reports(root / "run" / "explain")
    if any(report.run is None or report.probe is None for report in found):
        return "a report lacks its run or its samples"
    steps = [[report.step for report in each] for each in (found, load_reports(expected / "run" / "explain"))]
    return "" if steps[0] == steps[1] else f"reports of steps {steps[0]} instead of {steps[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the arguments are those of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20, help="how many trainings are killed, each at another moment")
    parser.add_argument("--kills", type=int, default=1, help="how often each of them is killed")
    parser.add_argument(
        "--early", action="store_true", help="checkpoints at the last batches of epochs, not at their ends"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.early and given.kills > 1:
        parser.error("--early allows one kill only: Lightning does not resume such a training exactly twice.")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    draw, missed = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder, "undisturbed")
        forwards = attempt(context, undisturbed, math.inf, given.early)
        points = len(curves(undisturbed))
        print(f"Undisturbed: {EPOCHS} epochs, {forwards} forwards, {points} points of curves.", flush=True)
        for moment in range(given.moments):
            started, root = time.perf_counter(), Path(folder, str(moment))
            kills = [draw.randrange(1, forwards) for _ in range(given.kills)]
            survive(context, root, kills, given.early)
            found = difference(root, undisturbed)
            missed += bool(found)
            after = " and ".join(map(str, kills))
            print(
                f"killed after {after} forwards: {found or 'equal'} ({time.perf_counter() - started:.1f} s)", flush=True
            )
    print(f"{given.moments - missed} of {given.moments} trainings gave the numbers of the undisturbed one.")
    return 1 if missed or points < EPOCHS else 0


if __name__ == "__main__":
    sys.exit(main())
