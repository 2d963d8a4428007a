"""Measures what 200 explanations leave behind in a process: memory, threads, open files, hooks. Two monitors, all methods."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from lightning_explain import ExplanationMonitor, Probe
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.explainer.registry import METHODS
from networks import Added, Layered, digits, samples, trained

PATCHES: dict[str, Any] = {"feature_mask": {"grid": 4}}
NEEDED: dict[str, dict[str, Any]] = {
    "NoiseTunnel": {"attribution_method": m.Saliency(abs=False), "nt_samples": 2},
    "Occlusion": {"strides": (1, 4, 4)},
    **dict.fromkeys(("FeatureAblation", "FeaturePermutation", "ShapleyValues", "Lime", "KernelShap"), PATCHES),
    "ShapleyValueSampling": {"n_samples": 1, **PATCHES},
    "NeuronFeatureAblation": PATCHES,
}

COUNTED = ("threads", "files", "hooks", "tensors")


@dataclass
class Left(pl.Callback):
    """Counts what exists after each explanation.

    Args:
        mib: Resident memory in MiB.
        threads: Threads of this process; like files, only those that were not there when this was made.
        files: Open files.
        hooks: Hooks on all modules.
        tensors: Tensors that Python knows.
    """

    mib: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    hooks: list[int] = field(default_factory=list)
    tensors: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # What was there before may end meanwhile, and hide one that is left.
        self._threads, self._files = set(threading.enumerate()), open_files()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        """Counts."""
        self.threads.append(len(set(threading.enumerate()) - self._threads))
        files = open_files()
        self._files &= files  # The number of one that was closed may be given to another.
        self.files.append(len(files - self._files))
        self.hooks.append(
            sum(len(v) for part in pl_module.modules() for k, v in vars(part).items() if "hooks" in k and v)
        )
        # Reference cycles are no leak of memory, but a file in one stays open too long.
        gc.collect()
        self.mib.append(resident())
        self.tensors.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))

    def slope(self, first: int) -> float:
        """Least-squares growth of memory, in KiB per explanation, from the explanation ``first`` on."""
        values = torch.tensor(self.mib[first:], dtype=torch.float64)
        at = torch.arange(len(values), dtype=torch.float64)
        at, values = at - at.mean(), values - values.mean()
        return float(1024 * (at * values).sum() / (at * at).sum())


def open_files() -> set[tuple[str, str]]:
    """Number and target of each open file of this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # The folder itself was open, too.
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def resident() -> float:
    """Resident memory of this process in MiB, after the allocator has returned what it can."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Module(pl.LightningModule):
    """A classifier of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained(Added, Layered)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(N, 10)``."""
        found: torch.Tensor = self.net(x)
        return found

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Cross entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with a small learning rate."""
        return torch.optim.SGD(self.parameters(), 1e-4)


def cheap(method: Any) -> Any:
    """The same method with as few steps and samples as possible."""
    few = {"n_steps": 2, "n_samples": 8 if type(method).__name__ in ("Lime", "KernelShap") else 1}
    return replace(method, **{name: count for name, count in few.items() if hasattr(method, name)})


def monitors() -> list[ExplanationMonitor]:
    """Two monitors: all methods with a metric that keeps maps, and two methods with metrics that run the model again."""
    x, y = samples(2)
    every: dict[str, Any] = {"every_n_train_steps": 1, "on_error": "raise", "probe": Probe(x, y)}
    every["panels"] = [("heat_map", "all")]
    methods = {name: cheap(cls(**NEEDED.get(name, {}))) for name, cls in METHODS.items() if not cls.reads_attention}
    few = {"ig": m.IntegratedGradients(n_steps=2), "cam": m.LayerGradCam()}
    metrics = [q.Infidelity(n_perturb_samples=2), q.SensitivityMax(n_perturb_samples=2), q.Drift()]
    return [
        ExplanationMonitor(name="all", methods=methods, metrics=[q.Drift()], save_reports=False, **every),
        ExplanationMonitor(name="few", methods=few, metrics=metrics, **every),
    ]


@contextmanager
def settled() -> Iterator[None]:
    """Collects earlier garbage now, and keeps what remains out of the collector until the end."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run(steps: int, explained_by: Sequence[pl.Callback], bar: bool = False) -> tuple[Left, nn.Module]:
    """Trains, and explains after each step.

    Args:
        steps: Number of training steps.
        explained_by: The monitors, and any other callbacks to check for leaks.
        bar: Whether progress bars are shown.

    Returns:
        The counts after each step, and the trained module.
    """
    left, module = Left(), Module()
    x, y = digits()
    with settled(), tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=bar,
            enable_model_summary=False,
            callbacks=[*explained_by, left],
        )
        trainer.fit(module, DataLoader(TensorDataset(x[:16], y[:16]), batch_size=8))
    return left, module


def main() -> None:
    """Prints what grew in the second half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--explanations", type=int, default=200)
    parser.add_argument("--bar", action="store_true", help="with progress bars")
    given = parser.parse_args()
    # Each step has one of each monitor.
    count, started = given.explanations // 2, time.perf_counter()
    warnings.simplefilter("ignore")
    left, _ = run(count, monitors(), given.bar)
    half = count // 2
    print(f"{2 * count} explanations in {time.perf_counter() - started:.0f} seconds; in the second half:")
    print(f"memory   {left.mib[half]:.1f} -> {left.mib[-1]:.1f} MiB, {left.slope(half):+.2f} KiB for each step")
    for name in COUNTED:
        values = getattr(left, name)
        print(f"{name:8} {values[half]} -> {values[-1]}")


if __name__ == "__main__":
    main()
