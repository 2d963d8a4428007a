"""What stands in README runs, word for word."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from cat_or_dog import CatOrDog, data
from lightning_explain import ExplanationMonitor
from training import QUIET

pytestmark = QUIET
README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code of that language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def trainer(root: Path, **arguments: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(default_root_dir=root, accelerator="cpu", max_epochs=4, log_every_n_steps=1, **quiet, **arguments)


def test_all_blocks_are_run_here() -> None:
    assert [len(blocks("python")), len(blocks("yaml"))] == [4, 1]


@pytest.mark.parametrize("number", range(4))
def test_python_runs(number: int, tmp_path: Path) -> None:
    x, y = next(iter(data()))
    here: dict[str, Any] = {
        "L": SimpleNamespace(Trainer=partial(trainer, tmp_path)),
        "ModelCheckpoint": partial(ModelCheckpoint, tmp_path),
        "ExplanationMonitor": ExplanationMonitor,
        "model": CatOrDog(),
        "images": x,
        "labels": y,
    }
    exec(blocks("python")[number], here)
    if "trainer" in here:
        here["trainer"].fit(CatOrDog(), data(), data())
        watch = next(c for c in here["trainer"].callbacks if isinstance(c, ExplanationMonitor))
        assert watch.last_report.epoch == 3
        assert set(watch.last_report.scores) >= {"infidelity", "sensitivity_max"}


def test_yaml_runs(tmp_path: Path) -> None:
    (tmp_path / "monitor.yaml").write_text(blocks("yaml")[0])
    watch = ExplanationMonitor.from_config(OmegaConf.load(tmp_path / "monitor.yaml"))
    trainer(tmp_path, callbacks=[watch], enable_checkpointing=False).fit(CatOrDog(), data(), data())
    assert watch.last_report is not None
    assert set(watch.last_report.attributions) == {"ig", "smooth"}
