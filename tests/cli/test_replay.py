"""``lightning-explain replay``: from a folder of checkpoints and a file to reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from lightning_explain import Probe, load_reports
from lightning_explain.cli.main import app
from networks import digits
from training import QUIET, Blind

pytestmark = QUIET


class Wide(Blind):
    """A module that does not work without its argument."""

    def __init__(self, width: int, bias: bool = False) -> None:
        hidden = torch.nn.Linear(64, width, bias)
        super().__init__(torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.Linear(width, 10)))


def samples() -> Probe:
    return Probe(digits()[0][:2], digits()[1][:2])


def saved(step: int, saved_arguments: dict[str, Any] | None = None) -> None:
    """A checkpoint as a Trainer writes it; only some modules put their arguments there."""
    content = {"state_dict": Wide(3).state_dict(), "epoch": 0, "global_step": step}
    named = {} if saved_arguments is None else {"hyper_parameters": saved_arguments}
    Path("run/checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save({**content, **named}, f"run/checkpoints/step={step}.ckpt")


def replayed(code: int, *arguments: str, **changes: Any) -> str:
    """What the command prints, and its exit code."""
    config = {
        "model": {"_target_": f"{__name__}.Wide", "width": 3},
        "data": {"_target_": f"{__name__}.samples"},
        "monitor": {"methods": ["Saliency"], "metrics": []},
        "logger": False,
    }
    Path("config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({**config, **changes})))
    result = CliRunner().invoke(app, ["replay", "run/checkpoints", "--config", "config.yaml", *arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_exit_code_says_whether_all_are_explained() -> None:
    saved(1)
    shown = replayed(0, "+monitor.seed=3")
    assert "1 checkpoints explained, 0 explained before, 0 left out; reports in " in shown
    assert load_reports("run/explain")[0].run.settings["seed"] == 3  # type: ignore[union-attr]
    Path("run/checkpoints/broken.ckpt").write_text("nothing")
    shown = replayed(1, "+monitor.seed=3")
    assert "Left out 'run/checkpoints/broken.ckpt': it cannot be loaded" in shown
    assert "0 checkpoints explained, 1 explained before, 1 left out" in shown


def test_a_file_of_lightning_cli_works_and_arguments_are_those_of_the_checkpoint() -> None:
    saved(1, {"width": 3, "_class_path": "elsewhere"})
    model = {"class_path": f"{__name__}.Wide", "init_args": {"bias": False}}
    data = {"class_path": "training.loader", "init_args": {"count": 8}}
    trainer = {"max_epochs": 3, "accelerator": "cpu", "callbacks": [{"class_path": "none.Such"}]}
    replayed(0, "-o", "out", model=model, data=data, trainer=trainer)
    assert [report.step for report in load_reports("out/explain")] == [1]


@pytest.mark.parametrize(
    ("arguments", "changes", "text"),
    [
        (["--part", "1"], {}, "Error: --part '1'; write i/n, such as 0/4"),
        ([], {"model": {"_target_": f"{__name__}.Wide"}}, "Error: model cannot be built"),
        (
            [],
            {"model": {"_target_": f"{__name__}.Wide", "width": 4}},
            "Error: None of the checkpoints can be explained",
        ),
        ([], {"model": None}, "Error: model=None names no class"),
        ([], {"monitor": {"method": []}}, "Error: Unknown key 'method' in the configuration of the monitor"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], changes: dict[str, Any], text: str) -> None:
    saved(1)
    shown = replayed(2, *arguments, **changes)
    assert text in shown
    assert "Traceback" not in shown


def test_a_folder_without_checkpoints_is_a_mistake() -> None:
    Path("run/checkpoints").mkdir(parents=True)
    assert "Error: No checkpoints (*.ckpt) in" in replayed(2)
