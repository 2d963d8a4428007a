"""Scripts of several ranks in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).parent


def free_port() -> str:
    """A port of the loopback that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


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
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    outputs, processes = [folder / f"output-{number}.txt" for number in range(len(commands))], []
    for command, path in zip(commands, outputs, strict=True):
        with path.open("w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=folder,
                    env={**os.environ, **ours, **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    until = time.monotonic() + deadline
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    codes = [process.returncode for process in processes]
    assert not any(codes), "\n".join([str(codes), *(path.read_text()[-5000:] for path in outputs)])
