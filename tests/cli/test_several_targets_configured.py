"""Several targets from a Hydra configuration to its replay, its plan, and everything that reads the finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from faces import Data, Module
from lightning.pytorch.callbacks import ModelCheckpoint
from typer.testing import CliRunner

from comparing import assert_same_numbers
from lightning_explain import ExplanationMonitor, load_reports
from lightning_explain.cli.main import app
from lightning_explain.monitor.config import read
from training import QUIET, trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:.*ProbeSelection.count=.*:UserWarning")]
CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = f"""
defaults:
  - monitor: standard
  - _self_
model: {{_target_: faces.Module}}
data: {{_target_: faces.Data}}
monitor:
  target: {{age: label, sex: label}}
  alerts: ["infidelity_relative/ig@sex > 9"]
  max_examples_per_pass: 8
  methods: {{ig: {{n_steps: 2}}}}
  probe: {{count: 4}}
logger: false
hydra: {{searchpath: ["file://{CONFIGS}"]}}
"""
NAMES = [f"{method}@{of}" for of in ("age", "sex") for method in ("saliency", "ig", "cam")]


def command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training, with the configuration beside it."""
    root = tmp_path_factory.mktemp("several")
    (root / "train.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    watch = ExplanationMonitor.from_config(read(root / "train.yaml")["monitor"])
    every = ModelCheckpoint(root / "run" / "checkpoints", "{epoch}", save_top_k=-1)
    trainer(root / "run", watch, every, max_epochs=2).fit(Module(), datamodule=Data())
    return root


def test_targets_of_the_command_line_take_the_place_of_those_in_the_file(run: Path) -> None:
    def target(*overrides: str) -> Any:
        return ExplanationMonitor.from_config(read(run / "train.yaml", overrides)["monitor"])._explainer.target

    assert target() == {"age": "label", "sex": "label"}
    assert target("monitor.target.sex=1") == {"age": "label", "sex": 1}
    assert target("~monitor.target.sex", "monitor.alerts=null") == {"age": "label"}
    assert list(target("+monitor.target.smile={name: Position}")) == ["age", "sex", "smile"]


def test_a_replay_finds_the_numbers_of_the_training(run: Path) -> None:
    arguments = ["replay", str(run / "run" / "checkpoints"), "--config", str(run / "train.yaml"), "--output"]
    command(*arguments, str(run / "again"))
    theirs, ours = (load_reports(run / name / "explain") for name in ("run", "again"))
    assert list(theirs[0].attributions) == NAMES
    assert_same_numbers(ours, theirs)
    assert "0 checkpoints explained, 2 explained before" in command(*arguments, str(run / "again"))
    # Another target is another explanation.
    assert "2 checkpoints explained" in command(*arguments, str(run / "again"), "monitor.target.sex=1")
    other = load_reports(run / "again" / "explain")[-1]
    assert (other.of_target("sex").targets == 1).all()
    assert torch.equal(other.attributions["ig@age"], theirs[-1].attributions["ig@age"])


def test_the_plan_names_methods_and_metrics_of_each_target(run: Path) -> None:
    printed = command("methods", "--plan", str(run / "train.yaml"), "--format", "markdown")
    for of in ("age", "sex"):
        assert f"| saliency@{of}, cam@{of} | AtInput | 1 | 1 | 1 |" in printed
        assert f"| ig@{of} | Line | 2 | 2 | 2 |" in printed
        assert f"| infidelity@{of} | score |" in printed
    assert "sex" not in command(
        "methods", "--plan", str(run / "train.yaml"), "~monitor.target.sex", "monitor.alerts=null"
    )


def test_the_doctor_compare_check_and_the_page_name_targets(run: Path) -> None:
    folder = str(run / "run")
    verdicts = command("doctor", str(run / "train.yaml"))
    assert all(name in verdicts for name in NAMES)
    compared = command("compare", folder, folder, "--format", "markdown")
    assert all(f"| infidelity_relative | {name} |" in compared for name in NAMES)
    command("check", folder, "--fail-if", "infidelity_relative/ig@age > 9")
    assert "failed: 'infidelity_relative/ig@sex > 0'" in command(
        "check", folder, "--fail-if", "infidelity_relative/ig@sex > 0", code=1
    )
    missing = command("check", folder, "--fail-if", "infidelity_relative/ig > 0", code=2)
    assert "did you mean 'infidelity_relative/ig@" in missing
    command("report", folder, "--output", str(run / "page.html"))
    text = (run / "page.html").read_text(encoding="utf-8")
    assert all(name in text for name in NAMES)
