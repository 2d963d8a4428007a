"""Faults of the model and of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from faults.fault import Fault, Inject, argument, fails
from faults.scene import Fire, Scene, Trap
from lightning_explain import Probe
from networks import digits


def raising(output: Tensor) -> Tensor:
    raise RuntimeError("device-side assert triggered")


def out_of_memory(output: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")


def no_memory_left(output: Tensor) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400000000 bytes.")


def going_back(output: Tensor) -> Tensor:
    if output.requires_grad:
        output.register_hook(raising)
    return output


def not_a_number(output: Tensor) -> Tensor:
    return output * torch.nan


def too_few(output: Tensor) -> Tensor:
    return output[:-1]


def trapped(fire: Fire, first: int, last: float | None = None, before: bool = False) -> Inject:
    def inject(scene: Scene) -> None:
        if scene.injured:
            scene.trap = Trap(fire, first, first if last is None else last, before)

    return inject


def model() -> Iterator[Fault]:
    """The faults of this kind."""
    for n in (1, 2, 3, 4):
        yield Fault("pass", f"forward raises at call {n}", trapped(raising, n))
    for n in (1, 3):
        yield Fault("pass", f"backward raises at call {n}", trapped(going_back, n))
        yield Fault("pass", f"out of memory at call {n}", trapped(out_of_memory, n), raises=False)
    always = float("inf")
    yield Fault("pass", "forward always raises", trapped(raising, 1, always))
    yield Fault("pass", "always out of memory", trapped(out_of_memory, 1, always))
    yield Fault("pass", "outputs are NaN", trapped(not_a_number, 1, always), raises=False)
    yield Fault("pass", "outputs are NaN at call 2", trapped(not_a_number, 2), raises=False)
    yield Fault("pass", "outputs lack a sample", trapped(too_few, 1, always))
    yield Fault("doctor", "forward raises at the first call of all", trapped(raising, 1, before=True), refused=True)
    yield Fault("doctor", "always out of memory", trapped(out_of_memory, 1, always, before=True))
    first = "the CPU has no memory left at the first call of all"
    yield Fault("doctor", first, trapped(no_memory_left, 1, before=True), raises=False)
    yield Fault("pass", "the CPU has no memory left at call 2", trapped(no_memory_left, 2), raises=False)
    for n in (2, 3):
        yield Fault("doctor", f"forward raises at call {n}", trapped(raising, n, before=True))
        yield Fault("doctor", f"out of memory at call {n}", trapped(out_of_memory, n, before=True), raises=False)


class Unreadable(Dataset[tuple[Tensor, Tensor]]):
    """Digits whose disk fails until training begins."""

    def __init__(self, scene: Scene, error: Exception) -> None:
        self.scene, self.error = scene, error
        self.begun = False

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not self.begun:
            self.scene.strike()
            raise self.error
        x, y = digits()
        return x[100 + index], y[100 + index]


class Begins(pl.Callback):
    def __init__(self, data: Unreadable) -> None:
        self.data = data

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.data.begun = True


def unreadable(error: Exception) -> Inject:
    def inject(scene: Scene) -> None:
        if scene.injured:
            data = Unreadable(scene, error)
            scene.validation = DataLoader(data, batch_size=8)
            scene.before.append(Begins(data))

    return inject


def samples() -> Iterator[Fault]:
    """The faults of this kind."""
    yield Fault("probe choice", "the disk cannot be read", unreadable(OSError("input/output error")))
    yield Fault("probe choice", "memory runs out", unreadable(MemoryError("no memory")))
    yield Fault("probe choice", "the dataset raises", unreadable(KeyError("image")), refused=True)

    def batch_fn(scene: Scene) -> dict[str, Any]:
        broken = fails(LookupError("no such column"), scene)
        return {"batch_fn": lambda batch: broken() if scene.injured else Probe(*batch)}

    yield Fault("probe choice", "batch_fn raises", argument(batch_fn), refused=True)
