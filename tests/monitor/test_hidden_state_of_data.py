"""Nothing of the data moves because samples are read: neither what a dataset hides, nor what processes share."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import re
import sqlite3
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_explain import ProbeSelection
from networks import digits
from training import QUIET, Blind, DigitModule, loader, monitor, trainer

pytestmark = QUIET

Draw = Callable[[int], float]
OPEN = ExitStack()
"""Closes what a case has opened."""


class Drawing(Dataset[tuple[Tensor, Tensor]]):
    """Eight samples, with a feature for each function of the index."""

    def __init__(self, *draws: Draw) -> None:
        self.draws = draws

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = [index / 8, *(draw(index) for draw in self.draws)]
        return torch.tensor(features, dtype=torch.float32), torch.tensor(index % 2)

    def read(self) -> Tensor:
        """All samples as they are now."""
        return torch.stack([self[i][0] for i in range(len(self))])


class Linear(Blind):
    """The smallest network, with as many features as the data has."""

    def __init__(self, features: int = 2) -> None:
        torch.manual_seed(5)
        super().__init__(nn.Linear(features, 2))


class Case:
    """A data set-up: its loader, its module, and what is compared after the training."""

    def __init__(self, loader: Any, after: Callable[[], Tensor], module: pl.LightningModule | None = None) -> None:
        self.loader = loader
        self.after = after
        self.module = Linear() if module is None else module


# -- random generators where no walk over attributes finds them --------------------------------------------------------

NUMPY = np.random.default_rng(0)
TORCH = torch.Generator()


class Slots:
    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = random.Random(3)

    def draw(self, index: int) -> float:
        return self.generator.random()


class Holding:
    """Draws from what an attribute holds."""

    def __init__(self, held: Any, draw: Callable[[Any], float]) -> None:
        self.held = held
        self.draw = draw

    def __call__(self, index: int) -> float:
        return self.draw(self.held)


class OfClass:
    generator = random.Random(3)

    def __call__(self, index: int) -> float:
        return type(self).generator.random()


def numbers() -> Iterator[float]:
    generator = random.Random(3)
    while True:
        yield generator.random()


def module_level_numpy(folder: Path) -> Draw:
    NUMPY.bit_generator.state = np.random.default_rng(1).bit_generator.state
    return lambda index: NUMPY.random()


def module_level_torch(folder: Path) -> Draw:
    TORCH.manual_seed(1)
    return lambda index: torch.rand((), generator=TORCH).item()


def closure(folder: Path) -> Draw:
    generator = np.random.RandomState(3)
    return lambda index: generator.rand()


def in_a_partial(folder: Path) -> Draw:
    return partial(lambda generator, index: generator.random(), random.Random(3))


def bound_method(folder: Path) -> Draw:
    return Slots().draw


def slots(folder: Path) -> Draw:
    return Holding(Slots(), lambda holder: holder.generator.random())


def in_a_deque(folder: Path) -> Draw:
    return Holding(deque([random.Random(3)]), lambda queue: queue[0].random())


def long_list(folder: Path) -> Draw:
    return Holding([random.Random(3)] * 200, lambda many: many[-1].random())


def class_attribute(folder: Path) -> Draw:
    OfClass.generator = random.Random(3)
    return OfClass()


def python_generator(folder: Path) -> Draw:
    return Holding(numbers(), next)


# -- counters, caches --------------------------------------------------------------------------------------------------


def counter(folder: Path) -> Draw:
    calls: list[int] = []

    def draw(index: int) -> float:
        calls.append(index)
        return len(calls) / 9

    return draw


def cache(folder: Path) -> Draw:
    """A cache that is empty until training fills it; filled by anybody else, it has other noise."""
    known: dict[int, float] = {}
    return lambda index: known.setdefault(index, torch.rand(()).item())


# -- what processes share ----------------------------------------------------------------------------------------------


def open_file(folder: Path) -> Draw:
    """Samples in a file that is read on from where it is."""
    path = folder / "samples.bin"
    path.write_bytes(np.random.default_rng(0).random(1000).tobytes())
    file = OPEN.enter_context(path.open("rb", buffering=0))
    return lambda index: np.frombuffer(file.read(8))[0]


def buffered_file(folder: Path) -> Draw:
    path = folder / "lines.txt"
    path.write_text("\n".join(map(str, np.random.default_rng(0).random(5000))))
    file = OPEN.enter_context(path.open())
    return lambda index: float(file.readline())


def file_that_counts(folder: Path) -> Draw:
    file = OPEN.enter_context((folder / "count.bin").open("w+b", buffering=0))

    def draw(index: int) -> float:
        file.seek(0)
        number = int(file.read() or b"0") + 1
        file.seek(0)
        file.write(str(number).encode())
        return number / 9

    return draw


def log_file(folder: Path) -> Draw:
    file = OPEN.enter_context((folder / "log.txt").open("w", buffering=1))

    def draw(index: int) -> float:
        file.write("read\n")
        return (folder / "log.txt").stat().st_size / 100

    return draw


def memory_map(folder: Path) -> Draw:
    counts = np.memmap(folder / "counts.bin", np.int64, "w+", shape=(4,))
    return counted(counts)


def shared_counter(folder: Path) -> Draw:
    value = multiprocessing.get_context("fork").Value("i", 0)

    def draw(index: int) -> float:
        with value.get_lock():
            value.value += 1
        return float(value.value) / 9

    return draw


def shared_tensor(folder: Path) -> Draw:
    return counted(torch.zeros(4, dtype=torch.int64).share_memory_())


def anonymous_map(folder: Path) -> Draw:
    return counted(np.frombuffer(mmap.mmap(-1, 4096), np.int64))


def counted(counts: Any) -> Draw:
    def draw(index: int) -> float:
        counts[0] += 1
        return float(counts[0]) / 9

    return draw


def database(folder: Path) -> Draw:
    connection = OPEN.enter_context(closing(sqlite3.connect(folder / "counts.db")))
    connection.execute("create table counts (number integer)")
    connection.execute("insert into counts values (0)")
    connection.commit()

    def draw(index: int) -> float:
        with connection:
            connection.execute("update counts set number = number + 1")
        return float(connection.execute("select number from counts").fetchone()[0]) / 9

    return draw


DRAWS = [
    module_level_numpy,
    module_level_torch,
    closure,
    in_a_partial,
    bound_method,
    slots,
    in_a_deque,
    long_list,
    class_attribute,
    python_generator,
    counter,
    cache,
    open_file,
    buffered_file,
    file_that_counts,
    log_file,
    memory_map,
    shared_counter,
    shared_tensor,
    anonymous_map,
    database,
]


# -- loaders and hooks -------------------------------------------------------------------------------------------------


class Before(Linear):
    """Draws, and counts, in a hook."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.seen = SimpleNamespace(generator=deque([random.Random(3)]), calls=0)

        def noisy(batch: Any, dataloader_idx: int) -> Any:
            self.seen.calls += 1
            return [batch[0] + self.seen.generator[0].random(), batch[1]]

        setattr(self, hook, noisy)


def before_transfer(folder: Path) -> Case:
    module = Before("on_before_batch_transfer")
    return Case(DataLoader(Drawing(lambda index: 0.5), 4), lambda: torch.tensor(module.seen.calls), module)


def after_transfer(folder: Path) -> Case:
    module = Before("on_after_batch_transfer")
    return Case(DataLoader(Drawing(lambda index: 0.5), 4), lambda: torch.tensor(module.seen.calls), module)


class Labelled(Drawing):
    """Reads its labels once, and counts how often it was asked for its length."""

    def __init__(self) -> None:
        super().__init__(lambda index: len(self.asked) / 9)
        self.asked: list[str] = []

    @property
    def targets(self) -> list[int]:
        self.asked.append("targets")
        return [index % 2 for index in range(8)]


def property_of_labels(folder: Path) -> Case:
    dataset = Labelled()
    return Case(DataLoader(dataset, 4), dataset.read)


class Positioned(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that goes on where it was left."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(8):
            self.position += 1
            yield torch.full((2,), self.position / 9), torch.tensor(self.position % 2)


def stream(folder: Path) -> Case:
    dataset = Positioned()
    return Case(DataLoader(dataset, 4), lambda: torch.stack([x for x, _ in dataset]))


class Endless:
    """No dataset at all: an iterable of batches over one generator."""

    def __init__(self) -> None:
        self.numbers = numbers()

    def __iter__(self) -> Iterator[list[Tensor]]:
        for _ in range(2):
            yield [torch.full((4, 2), next(self.numbers)), torch.tensor([0, 1, 0, 1])]


def batches_of_a_generator(folder: Path) -> Case:
    endless = Endless()
    return Case(endless, lambda: torch.tensor(next(endless.numbers)))


def stateful_collate(folder: Path) -> Case:
    draws = numbers()

    def collate(samples: list[Any]) -> list[Tensor]:
        x, y = zip(*samples, strict=True)
        return [torch.stack(x) + next(draws), torch.stack(y)]

    sampler = [[0, 1, 2, 3], [7, 6, 5, 4]]
    loader = DataLoader(Drawing(lambda index: 0.5), batch_sampler=sampler, collate_fn=collate)
    return Case(loader, lambda: torch.tensor(next(draws)))


def one_worker(folder: Path) -> Case:
    """A shared counter that a worker moves."""
    dataset = Drawing(shared_counter(folder))
    return Case(DataLoader(dataset, 4, num_workers=1), dataset.read)


# -- with and without the monitor --------------------------------------------------------------------------------------


def trained(case: Case, folder: Path, *callbacks: pl.Callback) -> tuple[Tensor, Tensor]:
    """The weights after a training, and what the data is then."""
    torch.manual_seed(7)
    trainer(folder, *callbacks).fit(case.module, case.loader)
    return torch.cat([p.detach().flatten() for p in case.module.parameters()]), case.after()


def with_and_without(make: Callable[[Path], Case], folder: Path, **selection: Any) -> list[tuple[Tensor, Tensor]]:
    """What a training alone gives, and one beside which samples are read, which says nothing of what moved."""
    # It reads samples, and explains nothing.
    watch = monitor(metrics=[], every_n_epochs=2, probe=ProbeSelection(count=3, source="train", **selection))
    found = []
    with OPEN, warnings.catch_warnings(record=True) as said:
        for name, callbacks in {"alone": [], "watched": [watch]}.items():
            (folder / name).mkdir()
            found.append(trained(make(folder / name), folder / name, *callbacks))
    assert watch.probe is not None
    assert not [str(w.message) for w in said if re.search("training process|cannot be put back", str(w.message))]
    return found


def test_reading_samples_moves_nothing_that_a_dataset_draws_from(tmp_path: Path) -> None:
    def make(folder: Path) -> Case:
        dataset = Drawing(*(draw(folder) for draw in DRAWS))
        return Case(DataLoader(dataset, 4), dataset.read, Linear(1 + len(DRAWS)))

    (weights, data), (same_weights, same_data) = with_and_without(make, tmp_path)
    moved = (data != same_data).any(0)[1:].tolist()
    assert [draw.__name__ for draw, has in zip(DRAWS, moved, strict=True) if has] == []
    assert torch.equal(weights, same_weights)


@pytest.mark.parametrize(
    "make",
    [
        before_transfer,
        after_transfer,
        property_of_labels,
        stream,
        batches_of_a_generator,
        stateful_collate,
        one_worker,
    ],
    ids=lambda make: make.__name__,
)
def test_reading_samples_moves_nothing_of_loaders_and_hooks(make: Callable[[Path], Case], tmp_path: Path) -> None:
    (weights, data), (same_weights, same_data) = with_and_without(make, tmp_path, per_class=make is property_of_labels)
    assert torch.equal(data, same_data)
    assert torch.equal(weights, same_weights)


# -- loaders that are created ------------------------------------------------------------------------------------------


class Counting(pl.LightningDataModule):
    """Counts how often it is asked for loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(0, 16)

    def val_dataloader(self) -> DataLoader[Any]:
        self.asked.append(self.trainer.current_epoch if self.trainer else -1)
        return loader(100, 8)


@pytest.mark.parametrize(
    "options",
    [
        {"check_val_every_n_epoch": 2},
        {"limit_val_batches": 0},
        {"reload_dataloaders_every_n_epochs": 1, "num_sanity_val_steps": 1},
    ],
    ids=["later", "never", "often"],
)
def test_validation_loaders_are_created_when_and_as_often_as_without_the_monitor(
    options: dict[str, Any], tmp_path: Path
) -> None:
    asked = []
    watch = monitor(metrics=[], every_n_epochs=3)
    for callbacks in [[], [watch]]:
        data = Counting()
        trainer(tmp_path, *callbacks, max_epochs=2, **options).fit(DigitModule(), datamodule=data)
        asked.append(data.asked)
    assert asked[0] == asked[1]
    assert watch.probe is not None
    assert torch.equal(watch.probe.inputs, digits()[0][100:108][watch.probe.sample_ids])


# -- devices -----------------------------------------------------------------------------------------------------------


class Device(SingleDeviceStrategy):
    """A strategy whose device cannot be used in a fork, as CUDA cannot; while ``far``, it says so."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.far = False
        self.processes: list[int] = []

    @property
    def root_device(self) -> torch.device:
        return torch.device("meta" if self.far else "cpu")

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        self.processes.append(os.getpid())
        return super().batch_to_device(batch, torch.device("cpu"), dataloader_idx)


class Far(pl.Callback):
    def __init__(self, far: bool) -> None:
        self.far = far

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.far = self.far  # type: ignore[attr-defined]


@pytest.mark.parametrize("hook", ["on_after_batch_transfer", "on_before_batch_transfer"])
def test_only_hooks_for_batches_on_a_device_run_in_this_process(hook: str, tmp_path: Path) -> None:
    strategy, module, watch = (
        Device(),
        Before(hook),
        monitor(metrics=[], every_n_epochs=2, probe=ProbeSelection(source="train")),
    )
    dataset = Drawing(counter(tmp_path))
    callbacks = [Far(True), watch, Far(False)]
    trainer(tmp_path, *callbacks, strategy=strategy).fit(module, DataLoader(dataset, 4))
    assert watch.probe is not None
    here = hook == "on_after_batch_transfer"
    # For the samples and those that give standard deviations, and for each batch of the training.
    assert strategy.processes == [os.getpid()] * (2 + 2 * here)
    assert module.seen.calls == 2 + 2 * here
    drawn = random.Random(3).random()
    assert torch.allclose(watch.probe.inputs[:, 1], torch.arange(1, 9) / 9 + drawn)
    assert torch.equal(dataset.read()[:, 1], torch.arange(9, 17) / 9)


# -- a child that dies -------------------------------------------------------------------------------------------------


def test_a_training_goes_on_if_the_process_that_reads_samples_dies(tmp_path: Path) -> None:
    this = os.getpid()
    dataset = Drawing(lambda index: 0.0 if os.getpid() == this else os._exit(9))
    watch, text = monitor(probe=ProbeSelection(count=3, source="train")), "training continues.*ended with code 9"
    run = trainer(tmp_path, watch)
    with pytest.warns(RuntimeWarning, match=f"(?s)nothing is explained in this run, and {text}"):
        run.fit(Linear(), DataLoader(dataset, 4))
    assert run.global_step == 2
    assert watch.last_report is None
