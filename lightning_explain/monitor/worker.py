"""The process that explains beside a training: a module in, its report and pictures out. ``beside.py`` has the other end.

It is no fork, so that it has threads and CUDA of its own, and does not import the user's script: functions and classes of
``__main__`` come as cloudpickle sends them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import lightning.pytorch as pl

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.core.shared_memory import Layout, SharedMemory
from lightning_explain.core.torch_settings import set_torch_settings
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.history import History
from lightning_explain.loggers.tags import without
from lightning_explain.monitor.drawing import Drawing, Made
from lightning_explain.monitor.lightning import silenced
from lightning_explain.probes.child import portable_error

_WATCHED_EVERY = 0.5  # seconds
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Job:
    """One explanation: everything that decides its numbers, as it is at that moment.

    Args:
        module: The module.
        explainer: What explains it.
        probe: The samples.
        history: Maps of earlier explanations.
        drawing: What draws and saves the report.
        dated: What the report says of its moment, its run and its samples.
        measures: Whether the fastest number of samples in a pass is still to be found.
        settings: Those of torch.
        generators: Functions that set the random generators of the CPU as they are in the training.
    """

    module: pl.LightningModule
    explainer: Explainer
    probe: Probe
    history: History
    drawing: Drawing
    dated: Mapping[str, Any]
    measures: bool
    settings: Mapping[str, Any]
    generators: Sequence[Callable[[], Any]] = ()

    def begin(self, device: str | None) -> None:
        """Sets everything as it was; ``device``: where to compute, ``None``: where the module is."""
        set_torch_settings(self.settings)
        for put in self.generators:
            put()
        if device is not None:
            self.module.to(device)

    def limit(self) -> int:
        """The most samples in a pass, measured here if it is not known."""
        found = self.explainer.fastest(self.module, self.probe) if self.measures else self.explainer
        return found.limit

    def done(self, progress: Progress) -> Done:
        """Explains, draws and saves."""
        with silenced(self.module):
            report = self.explainer.explain(self.module, self.probe, progress, self.history)
        report.scalars()  # If its scores cannot be averaged, the explanation has failed.
        dated = replace(without(report, report.failures, self.explainer.metrics), **self.dated)
        made = self.drawing.make(dated, self.probe).map_errors(portable_error)
        return Done(replace(report, **self.dated), made)


@dataclass(frozen=True, eq=False)
class Done:
    """What became of a job.

    Args:
        report: The report, with what failed in it.
        made: Its pictures and files.
        warnings: What was warned of, with its category.
    """

    report: Report
    made: Made
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)


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
    known: Sequence[Any] = ()
    while True:
        kind, memory, layout, device = other.receive()
        try:
            if kind == "known":
                known = memory.read(layout, (), device)
                continue
            job: Job = memory.read(layout, known, device)
            job.begin(device)
            if kind == "try":
                other.say("tried", job.limit())
            else:
                numbers = {id(value): number for number, value in enumerate(known)}
                other.give(_with_warnings(partial(job.done, partial(other.say, "step"))), numbers)
            del job
        except BaseException as error:
            other.say("failed", portable_error(error), traceback.format_exc())
        finally:
            memory.close()


def _with_warnings(work: Callable[[], Done]) -> Done:
    with warnings.catch_warnings(record=True) as found:
        done = work()
    return replace(done, warnings=[(str(one.message), one.category) for one in found])


def _end_with(parent: int) -> None:
    """Lets this process end when its parent does, however that ends."""
    # Of the whole group in a terminal, Ctrl-C is for the training alone, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCHED_EVERY)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
