"""What docs/how-to/gate.md shows runs, word for word, and does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from lightning_explain import Report
from lightning_explain.cli.main import app
from lightning_explain.store.report_files import save_report

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "gate.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    (workflow,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    steps = [step["run"] for step in workflow["jobs"]["explanations"]["steps"] if "run" in step]
    return [*re.findall(r"^\$ (lightning-explain .*)", PAGE, re.MULTILINE), steps[-1]]


def save(folder: Path, mass: float) -> None:
    """A run of three epochs, in which ``mass`` of the map lies on the mask."""
    ids = torch.arange(2)
    for step in (100, 200, 252):
        scores = {name: {"ig": torch.full((2,), mass)} for name in ("relevance_mass", "infidelity_relative")}
        scores["infidelity"] = {"saliency": torch.tensor([0.1, 0.3])}
        maps = {"ig": torch.ones(2, 3), "saliency": torch.ones(2, 3)}
        save_report(Report(maps, scores, {}, torch.zeros(2), ids, ids, ids, step=step, fingerprint="f"), folder)


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("run", "other", "lightning_logs/version_0"):
        save(tmp_path / run / "explain", 0.03)


@pytest.mark.parametrize("command", commands())
def test_its_commands_run(command: str, tmp_path: Path) -> None:
    _, *arguments = shlex.split(command)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    if arguments[0] == "check":
        save(tmp_path / arguments[1] / "explain", 0.64)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert "failed: 'relevance_mass/ig > 0.3': 0.64 at step 252 (mean of 2 samples)" in result.output


def test_its_python_runs_and_fails_with_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate, comparison, clustering = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(comparison, {})
    assert "infidelity/saliency: +0.000 ± 0.000" in capsys.readouterr().out
    space: dict[str, object] = {}
    exec(clustering, space)
    assert space["found"].number == 2  # type: ignore[attr-defined]
    exec(gate.replace("> 0.5", "> 0.15"), space)
    with pytest.raises(AssertionError, match=r"failed: 'infidelity/saliency > 0.15': 0.2 at step 252"):
        space["test_the_network_looks_at_the_object"]()  # type: ignore[operator]
    exec(gate, space)
    space["test_the_network_looks_at_the_object"]()  # type: ignore[operator]
