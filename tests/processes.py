"""Scripts of several ranks in processes of their own."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

TESTS = Path(__file__).parent


_HELD: list[socket.socket] = []


def free_port() -> str:
    """A port of the loopback that nobody uses; nobody else is given it while this process lives."""
    held = socket.socket()
    # Who listens with this option too, as torch's stores do, may have the port beside it.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return str(held.getsockname()[1])


class Started:
    """A script in a process of its own, with the interface of ``subprocess.Popen``.

    It is the fork of a process that has imported what every script imports and has computed nothing.

    Args:
        command: What follows ``python``.
        folder: Where it runs.
        output: The file for what it prints, at whose end it begins.
        environment: Variables beside those of this process.
    """

    def __init__(self, command: Sequence[str], folder: Path, output: Path, **environment: str) -> None:
        paths = [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        ours = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        values = {**os.environ, **ours, **environment}
        self._process = _server(values["PYTHONPATH"]).Process(target=_run, args=(command, folder, output, values))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode

    def end(self) -> None:
        """Kills it and all that it started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.returncode is None:  # It may have no session yet.
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.wait()


@functools.cache
def _server(paths: str) -> ForkServerContext:
    """Starts the process that is forked, which ends with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    former = os.environ.copy()
    os.environ.update({"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(former)
    return context


def _run(command: Sequence[str], folder: Path, output: Path, environment: Mapping[str, str]) -> None:
    """What the fork does: it becomes ``python *command``."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with output.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    module = command[0] == "-m"
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    sys.argv = list(command[module:])
    try:
        if module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(sys.argv[0]).parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def finish(script: Path, folder: Path, deadline: float, **environment: str) -> None:
    """Runs a script of the tests to its end; see :func:`finish_together`."""
    finish_together([[str(script), str(folder)]], folder, deadline, **environment)


def finish_together(commands: Sequence[Sequence[str]], folder: Path, deadline: float, **environment: str) -> None:
    """Runs commands at once to their end; whatever is left of them by then, ranks that wait alone too, is ended.

    Args:
        commands: What follows ``python`` in each.
        folder: Where they run; what they print is in ``output-<number>.txt``.
        deadline: In seconds.
        environment: Variables beside those of this process.

    Raises:
        AssertionError: If one failed or missed the deadline, with the end of what each printed.
    """
    outputs = [folder / f"output-{number}.txt" for number in range(len(commands))]
    processes = [Started(command, folder, path, **environment) for command, path in zip(commands, outputs, strict=True)]
    until = time.monotonic() + deadline
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    for process in processes:
        process.end()
    codes = [process.returncode for process in processes]
    assert not any(codes), "\n".join([str(codes), *(path.read_text()[-5000:] for path in outputs)])
