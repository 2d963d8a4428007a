"""Several gloo processes for the price of one import: forks of a process that has not computed anything yet."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def on_ranks(world: int, work: Callable[[int], Any], folder: Path, deadline: float = 60) -> list[Any]:
    """What the work gives on each rank.

    Args:
        world: How many.
        work: Called with the rank; its result is saved by ``torch.save``.
        folder: For a file store and the results; it must be there.
        deadline: Seconds after which a rank is taken to wait for another one in vain.

    Raises:
        RuntimeError: If a rank failed or missed the deadline. All are ended by then.
    """
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_run, args=(world, rank, work, folder)) for rank in range(world)]
    for process in ranks:
        process.start()
    end = time.monotonic() + deadline
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    if codes != [0] * world:
        raise RuntimeError(f"{world} ranks ended with {codes}; None: it waited until the deadline.")
    return [torch.load(_file(folder, world, rank), weights_only=True) for rank in range(world)]


def _file(folder: Path, world: int, rank: int) -> Path:
    return folder / f"{world}-{rank}.pt"


def _run(world: int, rank: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store-{world}"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.save(work(rank), _file(folder, world, rank))
    distributed.destroy_process_group()
