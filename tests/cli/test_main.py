"""The command line."""

from __future__ import annotations

import json
import re
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

ROOT = Path(__file__).parents[2]


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


def test_a_name_is_described_in_full() -> None:
    shown = output("methods", "integrated_gradients", "RelevanceMass")
    for part in (
        "Gradient integrated from",
        "n_steps forward, n_steps backward",
        "Signed: yes",
        "Not for: ",
        "Sundararajan",
    ):
        assert part in shown
    assert re.search(r"│ n_steps +│ 50 +│ Points on the path", shown)
    assert shown.index("IntegratedGradients") < shown.index("RelevanceMass\n")


@pytest.mark.parametrize("names", [[], ["Saliency", "infidelity"]], ids=["all", "two"])
def test_descriptions_are_values_of_json_and_tables_of_markdown(names: list[str]) -> None:
    found = json.loads(output("methods", *names, "--format", "json"))
    expected = (
        {"methods": names[:1], "metrics": ["Infidelity"]} if names else {"methods": [*METHODS], "metrics": [*METRICS]}
    )
    assert {kind: [one["name"] for one in entries] for kind, entries in found.items()} == expected
    saliency = next(one for one in found["methods"] if one["name"] == "Saliency")
    assert saliency["cost"]["forward"] == saliency["cost"]["backward"] == "1"
    assert [argument["default"] for argument in saliency["arguments"]] == ["True"]
    assert next(one for one in found["metrics"] if one["name"] == "Infidelity")["higher_is_better"] is False
    shown = output("methods", *names, "--format", "markdown")
    assert ("# Saliency" in shown) == bool(names)
    assert re.search(r"^\| abs \| True \|" if names else r"^\| Saliency \| .* \| abs=True \|$", shown, re.M)


def test_a_wrong_name_is_answered_with_the_nearest_one() -> None:
    assert "There is no method or metric 'Salience': did you mean 'Saliency'" in output("methods", "Salience", code=2)
    assert "'a=1' overrides a configuration; give one with --plan CONFIG." in output("methods", "a=1", code=2)


def test_in_a_pipe_no_line_is_broken() -> None:
    shown = CliRunner().invoke(app, ["methods", "Infidelity"], env={"NO_COLOR": "1", "COLUMNS": None}).output
    assert re.search("^Not for: .{150,}", shown, re.M)
    assert re.search("│ perturb_func +│ .{150,}│$", shown, re.M)


def test_examples_are_listed_and_copied_but_never_over_others() -> None:
    assert "examples/doctor.yaml" in output("examples")
    assert "examples/doctor.yaml" in [one["file"] for one in json.loads(output("examples", "--format", "json"))]
    there = Path("there")
    for _ in range(2):
        assert "README.md describes them" in output("examples", "--copy", "there")
    copied = {path.relative_to(there) for path in there.rglob("*") if path.is_file()}
    ours = {
        p.relative_to(ROOT)
        for folder in ("examples", "configs")
        for p in (ROOT / folder).rglob("*.[!p]*")
        if p.is_file()
    }
    assert {path for path in copied if path.suffix != ".py"} == {p for p in ours if "__pycache__" not in p.parts}
    mine = there / "examples" / "doctor.yaml"
    mine.write_text("mine")
    (there / "examples" / "train.py").unlink()
    assert f"'{mine}' would be overwritten, so nothing was copied" in output("examples", "--copy", "there", code=2)
    assert mine.read_text() == "mine"
    assert not (there / "examples" / "train.py").exists()
    output("examples", "--copy", "there", "--force")
    assert mine.read_bytes() == (ROOT / "examples" / "doctor.yaml").read_bytes()


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
