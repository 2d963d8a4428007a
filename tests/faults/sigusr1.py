"""A checkpoint saved at a signal, or by a thread, in the middle of an explanation holds nothing of the explanation.

``python tests/faults/sigusr1.py --moments 20``: each epoch of a training is explained, with random networks (Randomization), and at
one of the forwards of each explanation SIGUSR1 arrives, whose handler saves a checkpoint, as Lightning's does under SLURM.
Meanwhile a thread reads ``state_dict()`` as often as it can. The training is resumed from each checkpoint; its last weights must
be those of a training without the monitor, bit for bit, though it has dropout, whose generator the checkpoint holds, and a buffer
that its forward moves. All that the thread reads must be what was there before the explanation.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q

State = dict[str, Tensor]


class Net(pl.LightningModule):
    """A network with dropout, batch norm and a buffer that each forward moves; its checkpoint holds torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.generator = torch.empty(0, dtype=torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        SIGNALS.called(self)
        self.calls += 1
        found: Tensor = self.head(F.dropout(F.relu(self.norm(self.first(x))), 0.3, self.training))
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]) * (1 + self.calls / 1000), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["generator"] = torch.get_rng_state()
        checkpoint["modes"] = [part.training for part in self.modules()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert all(checkpoint["modes"]), "the checkpoint was saved in eval mode"
        self.generator = checkpoint["generator"]

    def on_train_start(self) -> None:
        if len(self.generator):
            torch.set_rng_state(self.generator)


class Signals:
    """Raises SIGUSR1 at one forward of each explanation, a later one in each epoch; behind everything that is put back."""

    def __init__(self) -> None:
        self.armed, self.epoch, self.calls, self.raised = False, -1, 0, 0
        self.reader: Reader | None = None

    def called(self, module: Net) -> None:
        if not self.armed or module.training:
            return
        if module.current_epoch != self.epoch:
            self.epoch, self.calls = module.current_epoch, 0
        self.calls += 1
        if self.reader is not None:
            self.reader.take_turn()
        if self.calls == 1 + self.epoch:
            self.raised += 1
            signal.raise_signal(signal.SIGUSR1)


SIGNALS = Signals()


def fit(epochs: int, watched: bool, ckpt_path: Path | None = None, root: Path | None = None) -> State:
    """Trains, and returns the last weights; with a root, saves a checkpoint there at each signal."""
    pl.seed_everything(5, verbose=False)
    noise = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 6, generator=noise), torch.randint(3, (16,), generator=noise))
    # With a generator of its own: otherwise Lightning draws once less from torch's in the epoch that is resumed.
    loader = DataLoader(data, batch_size=8, generator=noise)
    methods = {"ig": m.IntegratedGradients(n_steps=3), "lift": m.DeepLift()}
    watch = ExplanationMonitor(
        methods,
        [q.Randomization(n_layers=3, n_draws=3)],
        probe=ProbeSelection(count=2, source="train"),
        save_reports=False,
    )
    reader = Reader()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[reader, watch, Again(reader)] if watched else [],
        logger=False,
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    SIGNALS.reader = reader
    module, safe = Net(), {} if ckpt_path is None else {"weights_only": False}
    reader.thread.start()
    with handling(trainer, root):
        trainer.fit(module, loader, ckpt_path=ckpt_path, **safe)
    reader.done.set()
    reader.thread.join()
    assert not reader.wrong, f"{len(reader.wrong)} of {reader.reads} reads found others: {set(reader.wrong)}"
    assert reader.reads > 0 or not watched
    return state(module)


@contextmanager
def handling(trainer: pl.Trainer, root: Path | None) -> Iterator[None]:
    """Saves a checkpoint at each SIGUSR1."""

    def save(number: int, frame: Any) -> None:
        trainer.save_checkpoint(root / f"{trainer.current_epoch}.ckpt")

    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN if root is None else save)
    SIGNALS.armed = root is not None
    yield
    SIGNALS.armed = False
    signal.signal(signal.SIGUSR1, before)


class Reader(pl.Callback):
    """A thread that reads ``state_dict()`` as often as it can while an explanation runs, and notes what differs from before."""

    def __init__(self) -> None:
        self.reads, self.wrong = 0, list[str]()
        self.begun: tuple[Net, State] | None = None
        self.done, self.has_read = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.read, daemon=True)

    def read(self) -> None:
        while not self.done.is_set():
            begun = self.begun
            # What was read before the model is explained shares its memory, as any state_dict() does.
            if begun is None or begun[0].training:
                self.done.wait(0.0005)
                continue
            found = state(begun[0])
            if self.begun is begun:
                self.reads += 1
                self.wrong += [name for name in begun[1] if not torch.equal(found[name], begun[1][name])]
                self.has_read.set()

    def take_turn(self) -> None:
        """Waits in a forward of the explanation until the thread has read: a machine that does much else may not let it for long."""
        if self.begun is not None and threading.current_thread() is not self.thread:
            self.has_read.clear()
            self.has_read.wait(10)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # One in front of the monitor and one behind it share this.
        self.begun = None if self.begun else (module, state(module))


class Again(pl.Callback):
    """Lets another callback run once more, behind those between."""

    def __init__(self, other: pl.Callback) -> None:
        self.other = other

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.other.on_train_epoch_end(trainer, module)


def state(module: nn.Module) -> State:
    """A copy of the state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def outcomes(moments: int, root: Path) -> list[bool]:
    """For each moment, whether the training resumed from the checkpoint that was saved then has the weights of the undisturbed one."""
    expected = fit(moments, watched=False)
    watched = fit(moments, watched=True, root=root)
    saved = sorted(root.glob("*.ckpt"), key=lambda path: int(path.stem))
    assert SIGNALS.raised == len(saved) == moments, f"{SIGNALS.raised} signals, {len(saved)} checkpoints"
    resumed = [fit(moments, watched=False, ckpt_path=path) for path in saved]
    return [all(torch.equal(state[name], expected[name]) for name in expected) for state in (watched, *resumed)]


def main() -> int:
    """Prints how many trainings were right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as root:
        watched, *resumed = outcomes(parser.parse_args().moments, Path(root))
    print(f"The training itself was {'' if watched else 'not '}the undisturbed one.")
    print(
        f"{sum(resumed)} of {len(resumed)} trainings, resumed from checkpoints saved while explaining, had its weights."
    )
    return 0 if watched and all(resumed) else 1


if __name__ == "__main__":
    sys.exit(main())
