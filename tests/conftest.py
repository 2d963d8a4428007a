"""Every test leaves the process as it found it, or fails."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import random
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

# Until all is imported: of what imports leave, collections find nothing to free, and take a fifth of the time.
gc.disable()

# Before the files of tests are imported, some of which train a network: the number of threads decides its last digits.
torch.set_num_threads(1)

# Before Lightning is imported, which reads the lists of all installed packages anew for every Trainer.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

# What libraries set in their own process on purpose: they are put back, but are nobody's fault.
_SET_BY_LIBRARIES = {
    "CRC32C_SW_MODE",
    "CUDA_MODULE_LOADING",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "LOCAL_RANK",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "WANDB_MODE",
    "WANDB_SERVICE",
}
# Pools that live as long as the process.
_POOLS = ("asyncio_", "ThreadPoolExecutor-", "wandb", "WandbService", "QueueFeederThread")


def pytest_collection_finish() -> None:
    """What the imports left stays: collections that do not look at it make the suite a twelfth faster."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} - _SET_BY_LIBRARIES
    assert not changed, f"the test left environment variables changed: {sorted(changed)}"


@pytest.fixture
def _threads() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.daemon and not t.name.startswith(_POOLS)]
    deadline = time.monotonic() + 30.0  # Those that end do so at once, unless the machine does much else.
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread for thread in left if thread.is_alive()]
    assert not left, f"the test left threads running: {left}"


@pytest.fixture
def _process_group() -> Iterator[None]:
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        raise AssertionError("the test left torch.distributed initialized")


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    # Where there is no CUDA, torch.manual_seed writes down the whole stack for when there is: a millisecond for each test.
    torch.default_generator.manual_seed(0)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a file of tests draws when it is imported does not depend on the files before it, nor, with torch, on chance."""
    if isinstance(collector, pytest.Module):
        _seed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """What a fixture of a whole file draws does not depend on the tests before it, nor, with torch, on chance."""
    if fixturedef.scope == "function":
        return (yield)
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    _seed()
    try:
        return (yield)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


@pytest.fixture
def _generators() -> None:
    _seed()


@pytest.fixture(autouse=True)
def _isolated(
    _environment: None,
    _threads: None,
    _process_group: None,
    _generators: None,
    # Last, so that a test's own patches are undone before the leak checks look.
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
