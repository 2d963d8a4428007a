"""What worked with version 0.1 works now: scripts written against its README, stored reports, and checkpoints."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cat_or_dog import CatOrDog, data
from lightning_explain import ExplanationMonitor, Probe, load_reports
from training import QUIET

pytestmark = QUIET
DATA = Path(__file__).parents[1] / "data"
SNIPPETS = re.findall(r"```python\n(.*?)```", (DATA / "README-0.1.md").read_text(encoding="utf-8"), re.DOTALL)


def trainer(root: Path, **arguments: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(default_root_dir=root, accelerator="cpu", max_epochs=2, log_every_n_steps=1, **quiet, **arguments)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_of_its_readme_runs_unchanged(number: int, tmp_path: Path) -> None:
    x, y = next(iter(data()))
    here: dict[str, Any] = {
        "L": SimpleNamespace(Trainer=partial(trainer, tmp_path)),
        "ModelCheckpoint": partial(ModelCheckpoint, tmp_path),
        "ExplanationMonitor": ExplanationMonitor,
        "model": CatOrDog(),
        "images": x,
        "labels": y,
    }
    exec(SNIPPETS[number], here)
    if "trainer" in here:
        here["trainer"].fit(CatOrDog(), data(), data())
        watch = next(c for c in here["trainer"].callbacks if isinstance(c, ExplanationMonitor))
        assert watch.last_report is not None
        assert "infidelity" in watch.last_report.scores
    if "report" in here:
        assert here["report"].scores["infidelity"]["integrated_gradients"].shape == (len(x),)


def test_there_are_four_snippets() -> None:
    assert len(SNIPPETS) == 4


def test_a_stored_report_loads() -> None:
    (report,) = load_reports(DATA / "report-0.1.safetensors")
    assert (report.step, report.epoch, report.stage) == (12, 2, "fit")
    assert report.attributions["input_x_gradient"].shape == (3, 1, 6, 6)
    assert report.maps == {} or set(report.maps) <= {"layer_grad_cam"}
    assert set(report.scalars()) >= {"infidelity/input_x_gradient", "infidelity/layer_grad_cam"}


def test_the_state_in_a_checkpoint_loads_without_a_warning() -> None:
    state = torch.load(DATA / "monitor-0.1.pt", weights_only=True)
    monitor = ExplanationMonitor(methods=["InputXGradient"], metrics=["Infidelity", "Drift"])
    monitor.load_state_dict(state)
    assert monitor.state_key == "ExplanationMonitor{'name': 'explain'}"
    assert monitor.probe is not None
    assert monitor.probe.sample_ids.tolist() == [0, 6, 11]
    assert monitor.state_dict().keys() == {*state, "pictures", "curves"}


def test_a_probe_still_has_row_ids() -> None:
    assert Probe(torch.rand(2, 1, 4, 4), ids=torch.tensor([7, 3])).row_ids.tolist() == [7, 3]
