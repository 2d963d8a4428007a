"""A table is explained and drawn by one line, with the names that its data set has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_explain import ExplanationMonitor, load_reports
from training import QUIET, DigitModule

pytestmark = QUIET


class Cancer(TensorDataset):
    def __init__(self) -> None:
        found: Any = load_breast_cancer()
        x = torch.tensor(found.data, dtype=torch.float32)
        super().__init__((x - x.mean(0)) / x.std(0), torch.tensor(found.target))
        self.feature_names = found.feature_names


def test_breast_cancer_is_explained_by_name_in_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loader = DataLoader(Subset(Cancer(), range(64)), 32)
    trainer = pl.Trainer(
        max_epochs=1,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path),
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor := ExplanationMonitor()],
    )
    trainer.fit(
        DigitModule(nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))), loader, loader
    )
    assert monitor.probe is not None
    (table,) = monitor.probe.modalities
    assert table.feature_names[:2] == ("mean radius", "mean texture")
    assert set(monitor.last_report.attributions) == {"saliency", "ig", "ablation"}  # type: ignore[union-attr]
    (again,) = load_reports(next(tmp_path.rglob("run.json")).parent)[-1:]
    assert again.probe is not None
    assert again.probe.modalities == monitor.probe.modalities, "files know the names"
