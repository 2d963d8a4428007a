"""What docs/how-to/replay.md shows runs, word for word, in an empty folder."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lightning_explain import load_reports
from lightning_explain.cli.main import app
from training import QUIET

pytestmark = QUIET
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "replay.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in {"train", "jobs"} - before:
        sys.modules.pop(name, None)


def test_it_runs_from_the_training_to_the_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, in_python, jobs = blocks("python")
    for name, text in {"train.py": train, "jobs.py": jobs, "replay.yaml": blocks("yaml")[0]}.items():
        (folder / name).write_text(text)
    command, on_ranks, sweep = (shlex.split(block) for block in blocks("bash"))
    assert (command[0], on_ranks[4:]) == ("lightning-explain", ["lightning_explain", *command[1:]])
    runpy.run_path("train.py", run_name="__main__")
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output
    assert f"3 checkpoints explained, 0 explained before, 0 left out; reports in {folder / 'run' / 'explain'}" in (
        result.output
    )
    exec(in_python, {})
    monkeypatch.setattr(sys, "argv", sweep[1:])
    runpy.run_path("jobs.py", run_name="__main__")
    found = [[r.step for r in load_reports(folder / where)] for where in ("run/explain", "run/more", "again")]
    assert found == [[4, 8, 12]] * 3


@pytest.mark.slow
@pytest.mark.ddp
def test_torchrun_divides_the_samples(folder: Path) -> None:
    for name, text in {"train.py": blocks("python")[0], "replay.yaml": blocks("yaml")[0]}.items():
        (folder / name).write_text(text)
    command = shlex.split(blocks("bash")[1])
    runpy.run_path("train.py", run_name="__main__")
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *command[1:]], check=True, timeout=120)
    assert [r.step for r in load_reports(folder / "run")] == [4, 8, 12]
