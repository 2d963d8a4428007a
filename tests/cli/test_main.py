"""The command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lightning_explain import __version__
from lightning_explain.cli.main import app
from lightning_explain.demo import training as demo_run
from lightning_explain.explainer.registry import METHODS, METRICS


def output(*arguments: str, code: int = 0) -> str:
    # Wide enough that no sentence is broken; without color, whatever the machine that runs the tests wants.
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == code, result.output
    return result.output


def test_help_names_the_commands() -> None:
    shown = output("--help")
    assert "methods" in shown
    assert "demo" in shown


def test_the_version_is_that_of_the_package() -> None:
    assert output("--version") == f"lightning-explain {__version__}\n"


def test_methods_lists_every_class_with_its_arguments() -> None:
    shown = output("methods")
    assert all(name in shown for name in {**METHODS, **METRICS})
    assert "n_steps=50" in shown
    assert "attribution_method=Saliency(abs=False)" in shown
    assert "Gradient integrated from a baseline to the input" in shown


def test_on_a_narrow_terminal_no_name_and_no_argument_is_cut() -> None:
    result = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "80"})
    assert "…" not in result.output
    assert "LayerGradientXActivation" in result.output
    assert "attribution_method=Saliency(abs=False)" in result.output


def test_a_wrong_command_is_answered_with_the_nearest_one() -> None:
    assert "No such command 'method'. Did you mean 'methods'?" in output("method", code=2)


def test_no_command_shows_the_help() -> None:
    assert "Usage" in output(code=2)


def test_demo_hands_over_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    # A training of its own is the test of demo_run.
    given: list[Any] = []
    monkeypatch.setattr(demo_run, "run", lambda *arguments: given.append(arguments))
    output("demo")
    output("demo", "--modality", "text", "--clean", "--epochs", "1", "--output", "there")
    assert given == [(Path("demo_runs"), None, None, "image"), (Path("there"), 1, True, "text")]


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--output", __file__], ["--modality", "smell"]],
    ids=["no epochs", "output is a file", "no such modality"],
)
def test_demo_refuses_what_cannot_be(arguments: list[str]) -> None:
    assert "Invalid value" in output("demo", *arguments, code=2)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from lightning_explain.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(*{'torch', 'lightning', 'captum', 'wandb', 'omegaconf', 'matplotlib'} & set(sys.modules), 'loaded')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded"


def test_python_m_runs_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_explain"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert done.stdout == f"lightning-explain {__version__}\n"
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert "python -m lightning_explain" in shown.stdout
    assert "doctor" in shown.stdout
