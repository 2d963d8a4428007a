"""The same training with and without the monitor, bit by bit, on any device: a part of ``gpu.py``."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from _measure import in_short, table
from _workload import ResNet, images
from lightning_explain import ExplanationMonitor, Probe
from lightning_explain import methods as m
from lightning_explain.core.torch_settings import torch_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from states import Recorder, assert_equal


class Student(pl.LightningModule):
    """A network with BatchNorm, and dropout before its head; its training draws from the device's generator."""

    def __init__(self, compiled: bool, device: torch.device) -> None:
        super().__init__()
        if compiled:
            torch.compiler.reset()  # After some networks of a class, others of it are not compiled any more.
        net = ResNet((8, 8, 8), blocks=1)
        net.head = nn.Sequential(nn.Dropout(0.3), net.head)
        # Without a card, one that needs no C compiler.
        backend = "inductor" if device.type == "cuda" else "eager"
        self.net = torch.compile(net, backend=backend) if compiled else net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x + 0.1 * torch.randn_like(x)), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01)


class DeviceRecorder(Recorder):
    """Also keeps what belongs to the device: generators, cuDNN's settings, and the scale of float16 losses."""

    def _note(self, where: str, trainer: pl.Trainer, module: pl.LightningModule, batch: Any = None) -> None:
        super()._note(where, trainer, module, batch)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.states[-1] |= {
            "cuda generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "settings": torch_settings(),
            "autocast": torch.is_autocast_enabled(),
            "scale": None if scaler is None else scaler.get_scale(),
        }


def place(device: torch.device) -> dict[str, Any]:
    """A Trainer's arguments for one device, the card of that index."""
    if device.type == "cuda":
        return {"accelerator": "gpu", "devices": [device.index or 0]}
    return {"accelerator": device.type, "devices": 1}


def trained(
    device: torch.device, precision: str, compiled: bool, watched: bool, beside: str | None = None
) -> DeviceRecorder:
    """Trains for two epochs of two steps, and explains before the first and after each second step."""
    pl.seed_everything(3, verbose=False)
    monitor = _monitor(beside) if watched else None
    recorder = DeviceRecorder(monitor)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=2,
            num_sanity_val_steps=0,
            precision=precision,
            **place(device),
            default_root_dir=folder,
            callbacks=[*filter(None, [monitor]), recorder],
            **quiet,
        )
        data = [DataLoader(TensorDataset(*images(count, 1)), 16, shuffle=count == 32) for count in (32, 16)]
        trainer.fit(Student(compiled, device), *data)
    return recorder


def _monitor(beside: str | None) -> ExplanationMonitor:
    methods = {
        "saliency": m.Saliency(),
        "ig": m.IntegratedGradients(n_steps=4),
        "cam": m.LayerGradCam(),
        "smoothgrad": m.NoiseTunnel(m.Saliency(), nt_samples=2),
        "deep_lift": m.DeepLift(),
    }
    metrics = ["Infidelity", "SensitivityMax"]
    options: dict[str, Any] = {} if beside is None else {"beside": beside, "when_busy": "wait"}
    return ExplanationMonitor(
        methods, metrics, Probe(*images(4, 2)), every_n_train_steps=2, at_start=True, on_error="raise", **options
    )


@contextmanager
def _repeatable() -> Iterator[None]:
    """Kernels that give the same sum each time, so that trainings can be compared at all."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def difference(one: DeviceRecorder, other: DeviceRecorder) -> str:
    """Where two trainings differ first, or nothing."""
    try:
        assert_equal(one.states, other.states, "state")
    except AssertionError as error:
        return str(error)
    return ""


def kinds(device: torch.device) -> dict[str, tuple[str, bool, str | None]]:
    """By name: the precision, whether it is compiled, and where it is explained if not in the training process."""
    half = ["16-mixed"] if device.type == "cuda" else []
    plain: dict[str, tuple[str, bool, str | None]] = {p: (p, False, None) for p in ("32-true", *half, "bf16-mixed")}
    return plain | {"32-true, compiled": ("32-true", True, None), "32-true, beside": ("32-true", False, "cpu")}


def interference(device: torch.device) -> tuple[Table, list[str]]:
    """Compares trainings in each precision that the device has, compiled ones, and those explained beside, on the CPU."""
    found = table(
        "Training with and without the monitor", "training", "states", "explanations", "again", "with the monitor"
    )
    wrong = []
    with _repeatable():
        for name, kind in kinds(device).items():
            try:
                cells, differences = _compared(device, *kind)
            except Exception as error:
                traceback.print_exc()
                cells, differences = ["", "", "", "did not run"], [in_short(error)]
            found.add_row(name, *cells)
            wrong += [f"{name}: {difference}" for difference in differences]
    return found, wrong


def _compared(device: torch.device, precision: str, compiled: bool, beside: str | None) -> tuple[list[str], list[str]]:
    """The cells of a training's row, and what is wrong."""
    plain, again = (trained(device, precision, compiled, False) for _ in range(2))
    watched = trained(device, precision, compiled, True, beside)
    control, moved = difference(plain, again), difference(plain, watched)
    wrong = [f"not repeatable: {control}" if control else moved] if control or moved else []
    if len(watched.reports) != 3:
        wrong.append(f"{len(watched.reports)} explanations instead of 3")
    return [str(len(plain.states)), str(len(watched.reports)), control or "equal", moved or "equal"], wrong
