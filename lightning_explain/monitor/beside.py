"""A module that trains in; its explanations by a process beside the training out. ``worker.py`` is that process.

The weights are copied into memory that both share, and training goes on. Both processes have one pipe for short messages; it carries
descriptors of memory, never content. One explanation is made at a time.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

from torch import nn

from lightning_explain.core.outcome import Outcome
from lightning_explain.core.shared_memory import Layout, SharedMemory
from lightning_explain.core.warn import warn_or_log
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor.job import Done, Job, Progress
from lightning_explain.probes.child import seconds_of

DEADLINE = 600.0
"""Seconds that training waits for one explanation, at its end or where ``when_busy="wait"``; then that explanation is given up."""
PATIENCE = 60.0
"""Seconds without a message and nearly without computing, after which the worker hangs."""
GONE_AFTER = 10.0
"""Seconds that are given to a killed worker, which ends at once unless it waits for a device or a disk."""
_COMPUTING = 0.01  # of the time, at least
_LOOK_EVERY = 0.1  # seconds between two looks at the pipe
_RESTARTS = 1


class WorkerError(RuntimeError):
    """The process that explains is gone, hangs, or could not be started."""


class LateError(WorkerError):
    """It is not done, and training has waited long enough."""


@dataclass(frozen=True, eq=False)
class Pending:
    """An explanation that is being made.

    Args:
        job: What the worker was given.
        count: Of the schedule; 0 outside of it.
        blocked: Seconds that training waited for it so far.
    """

    job: Job
    count: int
    blocked: float


class Beside:
    """The worker of one training, and the explanation that it is making.

    Args:
        device: Where it computes; ``None``: where the model is.
        when_busy: ``"skip"`` or ``"wait"``: what to do when one is due before the last is done.
        name: The monitor's name.
    """

    def __init__(self, device: str | None, when_busy: str, name: str) -> None:
        self.device, self.when_busy, self.name = device, when_busy, name
        self.pending: Pending | None = None
        self.skipped = 0
        self._worker: Worker | None = None
        self._classes: Sequence[type] = ()
        self._known: Sequence[Any] = ()
        self._memory = self._of_known = self._layout = self._layout_of_known = None  # type: Any
        self._trying = False
        self._knows = False  # whether the worker has what is known by now
        self._starts = 0

    def open(self) -> None:
        """Starts the process, which takes seconds to import what it needs, beside whatever is done here until :meth:`begin`."""
        self.close()
        self.skipped = self._starts = 0
        self._start()

    @property
    def given_up(self) -> bool:
        """Whether there is no worker, nor will there be."""
        return self._worker is None

    def begin(self, known: Sequence[Any], job: Job) -> None:
        """Sends one job for a try, whose result :meth:`tried` awaits.

        Args:
            known: Objects that jobs and reports name instead of sending them; they stay as they are.
            job: As all that follow.

        Raises:
            TypeError: If something cannot be pickled; it says what.
        """
        explainer, self._memory = job.explainer, SharedMemory()
        parts = (*job.module.modules(), *explainer.methods.values(), *explainer.metrics.values(), explainer.target)
        self._classes = [*dict.fromkeys(map(type, parts))]
        try:
            self._write(known, job)
        except OSError:
            raise
        except Exception as error:
            raise TypeError(_refusal(error, job)) from error
        self._send("try")
        self._trying = True

    def tried(self) -> None:
        """Awaits what became of the try, if there is one.

        Raises:
            TypeError: If something cannot be read there; it says what.
            WorkerError: If the process does not answer.
        """
        if not self._trying:
            return
        self._trying = False
        message = self._await(lambda name: None, DEADLINE)
        if message[0] == "failed":
            raise TypeError(
                f"beside={self.device or True!r}, but the worker process cannot read the model "
                f"({type(message[1]).__name__}: {message[1]}). It imports modules as this process does, from sys.path. "
                "Make them importable, or use beside=False."
            ) from message[1]

    def hand_over(self, known: Sequence[Any], job: Job, count: int, started: float) -> None:
        """Copies a job into the shared memory, and lets the worker begin.

        Args:
            known: As for :meth:`begin`.
            job: The job.
            count: That of the schedule.
            started: Clock reading since which training waits, in seconds.

        Raises:
            Exception: If something in it cannot be pickled.
        """
        self._write(known, job)
        with suppress(OSError):  # A look at the pipe will say so.
            self._send("explain")
        self.pending = Pending(job, count, time.perf_counter() - started)

    def has_news(self) -> bool:
        """Whether :meth:`arrived` is to be asked. It takes microseconds, because it is asked after every batch."""
        return self.pending is not None and self._worker is not None and self._worker.has_news()

    def arrived(self) -> tuple[Pending, Outcome[Done]] | None:
        """The pending explanation, if it is done or failed."""
        if self.pending is None or self.given_up:
            return None
        return self._taken(lambda: self._worker_now.message(0.0))

    def awaited(self, bar: Callable[[int], AbstractContextManager[Progress]]) -> tuple[Pending, Outcome[Done]] | None:
        """The same, waited for as long as :data:`DEADLINE`.

        Args:
            bar: Returns a progress bar of so many steps.
        """
        if self.pending is None or self.given_up:
            return None
        explainer, until = self.pending.job.explainer, time.monotonic() + DEADLINE
        with bar(len(explainer.methods) + len(explainer.metrics)) as progress:
            return self._taken(lambda: self._await(progress, until - time.monotonic()))

    def close(self) -> None:
        """Ends the worker and gives its memory back; an explanation that is not done is lost."""
        self.pending, self._trying = None, False
        if self._worker is not None:
            self._worker.close()
        for memory in (self._memory, self._of_known):
            if memory is not None:
                memory.close()
        self._worker = self._memory = self._of_known = None
        self._known = ()

    # -- messages ------------------------------------------------------------------------------------------------------

    @property
    def _worker_now(self) -> Worker:
        if self._worker is None:
            raise WorkerError("there is no worker")
        return self._worker

    def _start(self) -> None:
        self._starts += 1
        self._worker, self._knows = None, False
        self._worker = Worker()

    def _write(self, known: Sequence[Any], job: Job) -> None:
        known = [*known, *self._classes]
        if [*map(id, known)] != [*map(id, self._known)]:
            # Into memory of its own: the worker still reads in the former one.
            memory = SharedMemory()
            self._layout_of_known = memory.write(known, sent=trainers.eager)
            if self._of_known is not None:
                self._of_known.close()
            self._known, self._of_known, self._knows = known, memory, False
        self._layout = self._memory.write(job, {id(value): n for n, value in enumerate(known)}, trainers.eager)

    def _send(self, kind: str) -> None:
        if not self._knows:
            self._worker_now.send("known", self._of_known, self._layout_of_known, self.device)
            self._knows = True
        self._worker_now.send(kind, self._memory, self._layout, self.device)

    def _await(self, progress: Progress, seconds: float) -> tuple[Any, ...]:
        """The next message that is no step."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            message = self._worker_now.message(min(left, 1.0))
            if message is not None and message[0] != "step":
                return message
            if message is not None:
                progress(message[1])
        raise LateError(f"it was not done after {DEADLINE:.0f} seconds")

    def _taken(self, receive: Callable[[], tuple[Any, ...] | None]) -> tuple[Pending, Outcome[Done]] | None:
        """The result in the next message; a worker that is gone or hangs is replaced, with the same job."""
        while True:
            try:
                message = receive()
            except WorkerError as error:
                outcome = self._again(error)
                if outcome is None:
                    continue
                break
            if message is None:
                return None
            if message[0] != "step":
                outcome = self._outcome(message)
                break
        pending, self.pending = self.pending, None
        assert pending is not None
        return pending, outcome

    def _outcome(self, message: tuple[Any, ...]) -> Outcome[Done]:
        if message[0] == "failed":
            error: Exception = message[1] if isinstance(message[1], Exception) else RuntimeError(str(message[1]))
            error.__cause__ = ChildProcessError(f"in the process that explains\n{message[2]}")
            return Outcome(error=error)
        memory = message[2]
        try:
            done: Done = memory.read(message[1], self._known)
        finally:
            memory.close()
        for text, category in done.warnings:
            warn_or_log(text, category)
        return Outcome(done)

    def _again(self, why: WorkerError) -> Outcome[Done] | None:
        """Starts the worker once more, with the same job; its failure, if that was tried before or there is no time left."""
        self._worker_now.close()
        if self._starts > _RESTARTS or isinstance(why, LateError):
            return self._gave_up(why)
        warn_or_log(
            f"ExplanationMonitor {self.name!r}: the process that explains beside the training failed: {why}. It is started once more.",
            RuntimeWarning,
        )
        try:
            self._start()
        except OSError as error:
            return self._gave_up(WorkerError(f"{why}, and no other could be started: {error}"))
        with suppress(OSError):  # The next message says so.
            self._send("explain")
        return None

    def _gave_up(self, why: WorkerError) -> Outcome[Done]:
        self._worker = None
        text = (
            f"The process that explains beside the training is given up: {why}. Nothing more is explained in this training. "
            "Read what it printed; use beside=False, fewer methods or samples, or a smaller max_examples_per_pass if memory ran out."
        )
        return Outcome(error=WorkerError(text))


# -- the process -------------------------------------------------------------------------------------------------------


class Worker:
    """A new process that runs ``worker.main``; it ends with this one, or when it is closed."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        # That one would look in the working directory first. Ctrl-C is for this process, also while that one is still importing, which
        # looking for garbage would slow down.
        code = (
            f"import sys; sys.path[:] = {[*map(str, sys.path)]!r}; "
            "import gc, signal; gc.disable(); signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"from lightning_explain.monitor.worker import main; main({theirs.fileno()}, {os.getpid()})"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        self._pipe = ours
        self._ready = select.poll()
        self._ready.register(ours.fileno(), select.POLLIN)
        self._looked = self._alive_at = time.monotonic()
        self._computed: float | None = None
        self._close = weakref.finalize(self, _end, self.process, ours, os.getpid())

    def send(self, kind: str, memory: SharedMemory, layout: Layout, device: str | None) -> None:
        """Sends what is to be done, and where its object is."""
        self._pipe.send((kind, layout, device))
        send_handle(self._pipe, memory.descriptor, self.process.pid)
        self._alive_at, self._computed = time.monotonic(), seconds_of(self.process.pid)

    def has_news(self) -> bool:
        """Whether there is a message or the end of the process in the pipe, or neither for long; looked at only now and then."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return False
        self._looked = now
        return bool(self._ready.poll(0)) or now - self._alive_at >= PATIENCE

    def message(self, seconds: float) -> tuple[Any, ...] | None:
        """The next message, waited for so long; with the memory that comes with a result.

        Raises:
            WorkerError: If the process is gone or hangs.
        """
        try:
            if not self._pipe.poll(seconds):
                self._check()
                return None
            message: tuple[Any, ...] = self._pipe.recv()
            self._alive_at = time.monotonic()
            return (*message, SharedMemory(recv_handle(self._pipe))) if message[0] == "done" else message
        except (EOFError, OSError):
            raise WorkerError(f"it {self.end_in_words()}") from None

    def _check(self) -> None:
        """Raises if the process has done nothing for long."""
        now = time.monotonic()
        if now - self._alive_at < PATIENCE:
            return
        before, computed = self._computed, seconds_of(self.process.pid)
        # Where nobody knows whether it computes, only the deadline ends it.
        if before is not None and computed is not None and computed - before < _COMPUTING * PATIENCE:
            raise WorkerError(f"it did nothing for {now - self._alive_at:.0f} seconds")
        self._alive_at, self._computed = now, computed

    def end_in_words(self) -> str:
        """How the process ended."""
        try:
            code = self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"ended with code {code}" if code >= 0 else f"was ended by signal {-code} ({signal.Signals(-code).name})"

    def close(self) -> None:
        """Ends the process."""
        self._close()


def _end(process: subprocess.Popen[bytes], pipe: Connection, owner: int) -> None:
    if os.getpid() != owner:  # A fork of the training that exits.
        return
    pipe.close()
    with suppress(ProcessLookupError):
        process.kill()
    try:
        process.wait(GONE_AFTER)
    except subprocess.TimeoutExpired:
        # It waits for a device or a disk, and nothing ends it before that answers.
        warn_or_log(
            f"The process {process.pid} that explained beside the training does not end although it was killed, and keeps its memory "
            "until then. Training goes on without it.",
            RuntimeWarning,
        )


# -- what cannot be pickled --------------------------------------------------------------------------------------------


def _refusal(error: Exception, job: Job) -> str:
    path = next(_unpicklable(_named(job)), "something in it")
    return (
        f"beside=True sends the model to another process, but {path} cannot be pickled ({type(error).__name__}: {error}). "
        "Leave it out of the pickle (__getstate__), create it when it is needed, or use beside=False."
    )


def _named(job: Job) -> dict[str, Any]:
    found = {"the module": job.module, **{f"the method {name!r}": one for name, one in job.explainer.methods.items()}}
    found |= {f"the metric {name!r}": one for name, one in job.explainer.metrics.items()}
    settings = ("target", "forward_fn", "output_fn", "forward_context", "modalities")
    return found | {name: getattr(job.explainer, name) for name in settings} | {"the probe": job.probe}


def _unpicklable(named: Mapping[str, Any], seen: tuple[int, ...] = ()) -> Iterator[str]:
    """The paths of the objects that cannot be pickled, the innermost first."""
    for path, value in named.items():
        if id(value) not in seen and not _can_be_pickled(value):
            inside = {f"{path}.{key}": part for key, part in _parts(value).items()}
            yield from _unpicklable(inside, (*seen, id(value)))
            yield path


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(number): part for number, part in enumerate(value)}
    found = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        found = trainers.eager(value, found)
        found = {name: part for name, part in found.items() if name not in ("_trainer", "_fabric", "_modules")}
        found |= dict(value.named_children())
    return found


def _can_be_pickled(value: Any) -> bool:
    memory = SharedMemory()
    try:
        memory.write(value, sent=trainers.eager)
    except Exception:
        return False
    finally:
        memory.close()
    return True
