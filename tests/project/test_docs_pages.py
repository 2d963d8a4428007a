"""What the pages of the documentation show runs, word for word."""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hydra import compose, initialize_config_dir

from lightning_explain import ExplanationMonitor
from lightning_explain.cli.main import app
from training import QUIET

pytestmark = QUIET
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Run by tests of their own, or (how-it-works) shortened code of the package.
ELSEWHERE = (
    "how-to/extending.md",
    "how-to/modalities.md",
    "how-to/replay.md",
    "tutorial/cat.md",
    "explanation/how-it-works.md",
)
PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.rglob("*.md")
    if "_build" not in path.parts and path.parent.name not in ("methods", "metrics")
)


def blocks(page: str, language: str) -> list[str]:
    """The code of that language on a page, in order."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in ELSEWHERE])
def test_python_runs_from_top_to_bottom_in_an_empty_folder(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "tests" / "data" / "run-0.2", tmp_path / "run" / "explain")
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), space)
    if "trainer" in space and page.startswith("tutorial"):
        assert space["monitor"].last_report.epoch == 2
        assert len(space["reports"]) == 3


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml") and page != "how-to/gate.md"])
def test_yaml_configures_a_monitor(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "yaml"):
        config = yaml.safe_load(block)
        if "defaults" in config:
            # In the wheel, the configurations lie inside the package.
            here = block.replace("pkg://lightning_explain.configs", f"file://{ROOT}/configs")
            (tmp_path / "config.yaml").write_text(here)
            with initialize_config_dir(str(tmp_path), version_base="1.3"):
                config = compose("config").monitor
        elif "trainer" in config:
            config = config["trainer"]["callbacks"][0]["init_args"]
        elif "monitor" in config:
            config = config["monitor"]
        assert isinstance(ExplanationMonitor.from_config(config), ExplanationMonitor)


def commands() -> list[str]:
    """Lines behind a prompt, without their comments."""
    lines = [
        line for page in PAGES for block in blocks(page, "console") for line in re.findall(r"^\$ (.*)", block, re.M)
    ]
    return sorted({line.split("   #")[0].strip() for line in lines})


@pytest.mark.parametrize("command", commands())
def test_a_command_exists_and_takes_its_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    if program == "lightning-explain":
        group: Any = typer.main.get_command(app)
        name, found, rest = group.resolve_command(
            group.make_context("lightning-explain", [], resilient_parsing=True), arguments
        )
        found.make_context(name, rest)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file() or arguments[0] == "-m"
    elif program == "pip":
        extras = metadata("lightning-explain").get_all("Provides-Extra") or []
        assert {extra for group in re.findall(r"\[(.*?)\]", command) for extra in group.split(",")} <= set(extras)
    else:
        assert program in ("tensorboard", "make", "mlflow", "wandb", "torchrun", "pytest")
