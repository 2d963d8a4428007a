"""The process that explains beside a training: jobs in, what became of them out. ``beside.py`` has the other end.

It is no fork, so that it has threads and CUDA of its own, and does not import the user's script: functions and classes of
``__main__`` come as cloudpickle sends them. Training waits until it has imported what its first job needs: what only drawing and writing
need is imported later.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

import torch

from lightning_explain.core.outcome import Outcome
from lightning_explain.core.shared_memory import Layout, SharedMemory
from lightning_explain.core.torch_settings import compute_on, give_back_memory
from lightning_explain.probes.child import portable_error

if TYPE_CHECKING:
    from lightning_explain.monitor.job import Done, Job

_WATCHED_EVERY = 0.5  # seconds
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


class _Parent:
    """The other end of the pipe."""

    def __init__(self, descriptor: int, process: int) -> None:
        self._pipe, self._process = Connection(descriptor), process

    def receive(self) -> tuple[str, SharedMemory, Layout, str | None]:
        """What is to be done, and where its object is; ends this process if nobody is there any more."""
        try:
            kind, layout, device = self._pipe.recv()
            return kind, SharedMemory(recv_handle(self._pipe)), layout, device
        except (EOFError, OSError):
            os._exit(0)

    def say(self, *message: Any) -> None:
        with suppress(OSError):
            self._pipe.send(message)

    def give(self, value: Any, known: Mapping[int, int]) -> None:
        """Sends an object in memory of its own, which the other process then has alone."""
        memory = SharedMemory()
        try:
            self.say("done", memory.write(value, known))
            with suppress(OSError):
                send_handle(self._pipe, memory.descriptor, self._process)
        finally:
            memory.close()


def main(descriptor: int, parent: int) -> None:
    """Does one job after the other, until the parent is gone.

    Args:
        descriptor: Of the pipe to the parent.
        parent: The parent's process.
    """
    _end_with(parent)
    # What the model prints is nobody's message.
    sys.stdout.flush()
    other = _Parent(descriptor, parent)
    # While the parent prepares the first job.
    importlib.import_module("lightning_explain.monitor.job")
    gc.freeze()
    gc.enable()
    known = Outcome[Sequence[Any]](())
    while True:
        known = _served(other, known)


def _served(other: _Parent, known: Outcome[Sequence[Any]]) -> Outcome[Sequence[Any]]:
    """Does what the parent says next, with what is known by then; returns what is known from now on."""
    kind, memory, layout, device = other.receive()
    try:
        if device is not None:
            compute_on(torch.device(device))
        if kind == "known":
            return Outcome.of(partial(memory.read, layout, (), device))
        _do(memory.read(layout, known.get(), device), kind, device, known.get(), other)
    except BaseException as error:
        other.say("failed", portable_error(error), traceback.format_exc())
    finally:
        memory.close()
        give_back_memory()
    return known


def _do(job: Job, kind: str, device: str | None, known: Sequence[Any], other: _Parent) -> None:
    job.begin(device)
    if kind == "try":
        other.say("tried")
    else:
        numbers = {id(value): number for number, value in enumerate(known)}
        other.give(_with_warnings(partial(job.done, partial(other.say, "step"))), numbers)


def _with_warnings(work: Callable[[], Done]) -> Done:
    with warnings.catch_warnings(record=True) as found:
        done = work()
    return replace(done, warnings=[(str(one.message), one.category) for one in found])


def _end_with(parent: int) -> None:
    """Lets this process end when its parent does, however that ends."""
    # Of the whole group in a terminal, Ctrl-C is for the training alone, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A message to this process does not interrupt the one that has sent it, which trains.
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCHED_EVERY)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
