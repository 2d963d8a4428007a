"""A few moments of ``sigkill.py``; the command tries as many as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sigkill.py")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "options", [["--kills", "2"], ["--early"]], ids=["checkpoints of epochs", "checkpoints of last batches"]
)
def test_a_training_killed_at_any_moment_and_resumed_gives_the_same_numbers(options: list[str]) -> None:
    paths = [str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--moments", "3", "--seed", "1", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 of 3 trainings gave the numbers of the undisturbed one." in done.stdout
