"""Scripts of several ranks in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def finish(script: Path, folder: Path, deadline: float, **environment: str) -> None:
    """Runs a script of the tests to its end; whatever is left of it by then, ranks that wait alone too, is ended.

    Args:
        script: Is given the folder.
        folder: Where it runs; what it prints is in ``output.txt``.
        deadline: In seconds.
        environment: Variables beside those of this process.

    Raises:
        AssertionError: If it failed or missed the deadline, with the end of what it printed.
    """
    paths = [str(script.parents[1]), str(script.parent), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            cwd=folder,
            env={**os.environ, **ours, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(deadline)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, (folder / "output.txt").read_text()[-5000:]
