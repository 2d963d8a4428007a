"""A function that reads samples in; its result out, computed in a child process, so that nothing it moves or fills moves here."""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from lightning_explain.core.warn import warn_or_log

T = TypeVar("T")
Here = Mapping[str, Callable[..., Any]]
"""Functions that run in this process, by the names of the arguments as which the work receives them."""

PATIENCE = 60.0
"""Seconds without a message and nearly without computing, after which a child hangs."""
_LONGEST = 60  # times as long, if it computes in between
_COMPUTING = 0.01  # of the time, at least

# Failures of the machine, not of the dataset's code; it must be possible to make each from a text.
_ACCIDENTS = (OSError, MemoryError)


class ChildDiedError(OSError):
    """The process that read the samples is gone; reading them here might end the training in the same way."""


class _UnusableError(Exception):
    """The samples cannot be read in a child process, for the reason in its text."""


class _ForkError(_UnusableError):
    """They cannot be read in a fork, but perhaps in a new process."""


def in_child(
    work: Callable[..., T], here: Here, retries: bool = True, portable: Callable[[], Callable[..., T]] | None = None
) -> T:
    """What ``work(**here)`` returns, called in a fork of this process, so that nothing moves here.

    The functions in ``here`` run in this process when the work calls them. Where a child process cannot do the work (the samples are
    on a GPU, cannot be pickled, or wait for a thread), it is done here, which is reported.

    Args:
        work: Returns anything that can be pickled.
        here: What the work needs of this process, such as a function that moves a batch to a GPU.
        retries: Do the work here if it fails in the child; otherwise its error is raised.
        portable: Returns the same work as something that cloudpickle can send to a new process, for where a fork is not safe.

    Raises:
        ChildDiedError: If the child dies.
        Exception: What the work raises.

    Example:
        >>> from lightning_explain.probes.child import in_child
        >>> read = []
        >>> in_child(lambda double: read.append(1) or double(21), {"double": lambda x: 2 * x}), read
        (42, [])
    """
    try:
        found, moved = _elsewhere(work, here, retries, portable)
    except _UnusableError as error:
        reason = str(error)
    else:
        if moved:
            warn_or_log(
                "Reading the probe samples changed something outside of the process, which cannot be restored: "
                f"{'; '.join(moved)}. Training may differ from training without the monitor. To avoid that, give a Probe."
            )
        return cast(T, found)
    result = work(**here)
    warn_or_log(
        f"The probe samples were read in the training process, because {reason}. Reading changed the dataset's own state, such as "
        "counters, caches and random generators, so training may differ from training without the monitor. To avoid that, give a Probe."
    )
    return result


# -- in this process ---------------------------------------------------------------------------------------------------


def _elsewhere(work: Callable[..., Any], here: Here, retries: bool, portable: Callable[[], Any] | None) -> list[Any]:
    try:
        return _served(_forked(work, here), here, retries)
    except _ForkError as reason:
        if portable is None:
            raise
        child = _spawned(portable, here, reason)
    return _served(child, here, retries)


def _forked(work: Callable[..., Any], here: Here) -> _Child:
    if sys.platform != "linux":
        raise _ForkError(f"a fork is not safe on {sys.platform}")
    # Only Linux has what it needs. A child would import it anew each time.
    from lightning_explain.probes.private import make_private

    ours, theirs = Pipe()
    # What is left in the buffers would be written by both processes.
    _flush()
    try:
        with warnings.catch_warnings():
            # Python and some libraries warn of a fork beside threads. The child takes none of their locks, or hangs, which is found.
            warnings.simplefilter("ignore")
            process = os.fork()
    except OSError as error:
        raise _UnusableError(f"no process can be started ({error})") from error
    if process == 0:
        ours.close()
        _work_and_leave(work, list(here), theirs, make_private)
    theirs.close()
    return _Child(process, ours)


def _spawned(portable: Callable[[], Any], here: Here, reason: _ForkError) -> _Child:
    """A new process that does the portable work."""
    try:
        import cloudpickle  # type: ignore[import-untyped]

        content = cloudpickle.dumps((portable(), list(here)))
        ours, theirs = Pipe()
        os.set_inheritable(theirs.fileno(), True)
        code = f"from lightning_explain.probes.child import main; main({theirs.fileno()})"
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = os.posix_spawn(sys.executable, [sys.executable, "-c", code], {**os.environ, **paths})
    except Exception as error:
        raise _UnusableError(f"{reason}, nor can they be sent to a new process ({error})") from error
    theirs.close()
    child = _Child(process, ours)
    child.reply(content)
    return child


def _served(child: _Child, here: Here, retries: bool) -> list[Any]:
    """Does what the child asks for until it is done; returns its result, and what it has moved."""
    with closing(child):
        while True:
            kind, *rest = child.message()
            if kind == "done":
                return list(rest)
            if kind == "unsent":
                raise _UnusableError(f"they cannot be sent by a child process: {rest[0]}")
            if kind == "failed":
                raise _failure(rest[0], rest[1], retries)
            name, arguments = rest
            try:
                answer: tuple[str, Any] = ("returned", here[name](*arguments))
            except Exception as error:
                answer = ("raised", portable_error(error))
            child.reply(_packed(answer))


def _failure(error: BaseException, text: str, retries: bool) -> BaseException:
    """What is raised here for an error in the child."""
    reason = f"reading them in a child process failed ({type(error).__name__}: {error})"
    if isinstance(error, RuntimeError) and "fork" in str(error):
        return _ForkError(reason)  # So CUDA and autograd say that they cannot go on in a fork.
    if retries and isinstance(error, Exception) and not isinstance(error, _ACCIDENTS):
        return _UnusableError(reason)
    error.__cause__ = ChildProcessError(f"in the process that read the samples\n{text}")
    return error


class _Child:
    """A forked process, and the connection to it."""

    def __init__(self, process: int, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self._status: int | None = None

    def message(self) -> Any:
        """The next message; an error if there is none, or it cannot be read."""
        started, computed = time.monotonic(), seconds_of(self._process) or 0.0
        try:
            while not self._pipe.poll(PATIENCE):
                waited, before, computed = time.monotonic() - started, computed, seconds_of(self._process) or 0.0
                if computed - before < _COMPUTING * PATIENCE or waited > _LONGEST * PATIENCE:
                    raise _ForkError(f"a child process that read them did nothing for {waited:.0f} seconds")
            content = self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            raise ChildDiedError(
                f"The process that read the probe samples died: {self._end_in_words()}. Repair the dataset, or give a Probe."
            ) from None
        try:
            return pickle.loads(content)
        except Exception as error:
            raise _UnusableError(f"what a child process sent cannot be read ({error})") from error

    def reply(self, content: bytes) -> None:
        """Sends a packed message."""
        # If nobody is there to receive it, the next message says so.
        with suppress(ConnectionError):
            self._pipe.send_bytes(content)

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        if self._status is None:
            self._status = 0
            # Where SIGCHLD is ignored, nobody can wait for it.
            with suppress(ChildProcessError):
                self._status = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        return self._status

    def _end_in_words(self) -> str:
        code = self._wait()
        return f"it ended with code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"


def seconds_of(process: int) -> float | None:
    """Seconds that a process and those it has started have computed, as far as the system says; ``None``: it says nothing."""
    try:
        spent = _text(f"/proc/{process}/stat").rpartition(")")[2].split()[11:15]
    except OSError:
        return None
    children = list[str]()
    with suppress(OSError):  # Not every kernel lists them.
        children = _text(f"/proc/{process}/task/{process}/children").split()
    return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK") + sum(seconds_of(int(child)) or 0.0 for child in children)


def _text(path: str) -> str:
    with open(path) as file:
        return file.read()


# -- in the child ------------------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Does, in a new process, the work that comes through a pipe."""
    pipe = Connection(descriptor)
    work, names = pickle.loads(pipe.recv_bytes())
    _answer(pipe, work, names, list)


def _work_and_leave(
    work: Callable[..., Any], names: list[str], pipe: Connection, make_private: Callable[[], Callable[[], list[str]]]
) -> NoReturn:
    """Answers, in a fork, and leaves without what an interpreter does at its end."""
    try:
        _answer(pipe, work, names, make_private())
    finally:
        os._exit(1)


def _answer(pipe: Connection, work: Callable[..., Any], names: list[str], moved: Callable[[], list[str]]) -> None:
    """Sends what the work returns or raises, and what it has moved."""
    try:
        message: tuple[Any, ...] = ("done", work(**{name: partial(_call, pipe, name) for name in names}), moved())
    except BaseException as error:
        message = ("failed", portable_error(error), traceback.format_exc())
    _flush()
    pipe.send_bytes(_packed(message))


def _call(pipe: Connection, name: str, *arguments: Any) -> Any:
    """Calls a function of the other process."""
    pipe.send_bytes(_packed(("call", name, arguments)))
    kind, found = pickle.loads(pipe.recv_bytes())
    if kind == "returned":
        return found
    raise found if kind == "raised" else TypeError(found)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


# -- messages ----------------------------------------------------------------------------------------------------------


def _packed(message: tuple[Any, ...]) -> bytes:
    content = io.BytesIO()
    try:
        _Pickler(content, protocol=5).dump(message)
    except Exception as error:
        return pickle.dumps(("unsent", f"{type(error).__name__}: {error}"))
    return content.getvalue()


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class _Pickler(pickle.Pickler):
    """Sends tensors of unsigned numbers as signed ones, because torch's own cannot be read again."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in _SIGNED:
            return _viewed, (value.view(_SIGNED[value.dtype]), value.dtype)
        return NotImplemented


def _viewed(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.view(dtype)


def portable_error(error: BaseException) -> BaseException:
    """The error, or one of a type of Python's with the same text if it does not survive pickling."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        if type(copy) is type(error):
            return error
    except Exception:
        pass
    kinds = (OSError, MemoryError, TypeError, ValueError, LookupError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
    return kind(f"{type(error).__name__}: {error}")
