"""Samples with several labels: a map, a title and scores for each positive label, the same in every epoch and after a resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, draw, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.loggers.about import about
from training import QUIET, SAFE, report_of, trainer

pytestmark = QUIET
LABELS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
SAMPLES, EXPLAINED = [0, 0, 1, 2, 3, 3, 3], [0, 2, -1, 1, 0, 1, 2]


class Tagger(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader() -> DataLoader[Any]:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, LABELS), 4)


def monitor() -> ExplanationMonitor:
    metrics: dict[str, Any] = {"drift": q.Drift(), "infidelity": q.Infidelity(n_perturb_samples=2)}
    return ExplanationMonitor({"saliency": m.Saliency(abs=False)}, metrics)


def test_each_label_is_explained_in_every_epoch_and_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, first, second = monitor(), monitor(), monitor()
    with caplog.at_level(logging.INFO):
        trainer(tmp_path / "whole", whole, max_epochs=2).fit(Tagger(), loader())
    assert "an explanation of 7 labels of 4 samples takes" in caplog.text
    assert 'target="label" means each positive label by itself' in caplog.text
    begun = trainer(tmp_path / "parts", first, max_epochs=1)
    begun.fit(Tagger(), loader())
    begun.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path / "parts", second, max_epochs=2).fit(Tagger(), loader(), ckpt_path=tmp_path / "one.ckpt", **SAFE)
    expected, found = report_of(whole), report_of(second)
    assert expected.samples.tolist() == SAMPLES
    assert [t for t, label in zip(expected.targets.tolist(), EXPLAINED, strict=True) if label >= 0] == [
        0,
        2,
        1,
        0,
        1,
        2,
    ]
    assert torch.equal(found.attributions["saliency"], expected.attributions["saliency"])
    drifts = [score["saliency"] for name, score in expected.scores.items() if name.startswith("drift")]
    assert torch.stack(drifts).isfinite().all()
    for name, score in expected.scores.items():
        assert torch.equal(found.scores[name]["saliency"], score["saliency"]), name
    assert whole.probe is not None
    assert len(whole.probe) == 4, "checkpoints keep the samples"


def test_a_sum_is_said_where_it_is_explained_instead(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = m.IntegratedGradients(n_steps=2, baselines=torch.zeros(4, 1, 8, 8))
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, found := ExplanationMonitor({"ig": own}, [])).fit(Tagger(), loader())
    assert len(report_of(found).ids) == 4
    line = "each positive label by itself, at most 4 of a sample; but the positive labels of a sample are explained by their sum"
    assert line in caplog.text
    run = report_of(found).run
    assert run is not None
    assert line in run.task
    assert line in about(run)


def test_the_files_of_a_run_are_enough_to_draw_each_label(tmp_path: Path) -> None:
    trainer(tmp_path, monitor()).fit(Tagger(), loader())
    stored = load_reports(tmp_path / "explain")[-1]
    assert stored.probe is not None
    assert stored.probe.entries is not None
    assert stored.probe.entries.tolist() == [list(each) for each in zip(SAMPLES, EXPLAINED, strict=True)]
    assert (draw(stored, "saliency") != draw(stored, "saliency/2")).any()
