"""The script for machines with a card runs here, too, on the CPU, and notices what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _gpu_training as training
import gpu

from lightning_explain import ExplanationMonitor, Probe
from lightning_explain import methods as m

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def run(*arguments: str) -> int:
    return gpu.main(["--device", "cpu", "--small", "--repeat", "1", *arguments])


def test_every_part_runs_and_passes_on_a_cpu(tmp_path: Path) -> None:
    assert run("--save", str(tmp_path / "found.txt")) == 0

    found = (tmp_path / "found.txt").read_text(encoding="utf-8")
    for title in (
        "with and without the monitor",
        "against Captum's",
        "Peak memory",
        "too little",
        "The default monitor",
    ):
        assert title in found
    for network in ("ResNet-50", "ViT-B/16", "BERT-base"):
        assert network in found
    assert "processor" in found.splitlines()[0], "a run on a CPU must say so"
    assert "all checks passed" in found


class Meddling(ExplanationMonitor):
    """Draws a number from the training's generator."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        super().on_train_batch_end(*arguments)
        torch.rand(1)


def test_a_monitor_that_draws_from_the_generator_of_the_training_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = Probe(*training.images(2, 2))
    monkeypatch.setattr(
        training, "_monitor", lambda beside: Meddling([m.Saliency()], [], probe, every_n_train_steps=2, at_start=True)
    )

    assert run("interference") == 1
    assert "other values" in capsys.readouterr().out


def test_a_map_that_is_not_captums_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import _gpu_parts as parts

    right = parts.pairs

    def wrong(model: torch.nn.Module) -> Any:
        pair = right(model)["saliency"]
        return {"saliency": type(pair)(pair.ours, lambda x, y: 1.1 * pair.captum(x, y))}

    monkeypatch.setattr(parts, "pairs", wrong)

    assert run("equality") == 1
    assert "saliency differs by" in capsys.readouterr().out
