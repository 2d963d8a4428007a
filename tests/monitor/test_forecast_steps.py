"""Each step of a forecast in a training: its files are enough to draw the map of steps and lags again, also of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, draw, load_reports, replay
from lightning_explain import modalities as d
from training import QUIET, SAFE, report_of, trainer

pytestmark = QUIET


class Forecaster(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def samples() -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 12, generator=make), torch.randn(4, 3, generator=make)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples()), 4)


def monitor() -> ExplanationMonitor:
    """As Hydra makes it, on samples that are given: to choose them from the loader takes most of the time."""
    instantiate = pytest.importorskip("hydra.utils").instantiate
    target = {"_target_": "lightning_explain.targets.Horizon", "step": "each"}
    given = {"_target_": "lightning_explain.ExplanationMonitor", "methods": ["InputXGradient"], "_partial_": True}
    probe = Probe(*samples(), modalities=d.TimeSeries(layout="NCT"))
    found: ExplanationMonitor = instantiate({**given, "target": target, "metrics": []})(probe=probe)
    return found


def test_each_step_is_explained_and_drawn_in_every_epoch_after_a_resume_and_replayed(tmp_path: Path) -> None:
    whole, first, second = monitor(), monitor(), monitor()
    trainer(tmp_path / "whole", whole, max_epochs=2).fit(Forecaster(), loader())
    begun = trainer(tmp_path / "parts", first, max_epochs=1)
    begun.fit(Forecaster(), loader())
    begun.save_checkpoint(tmp_path / "one.ckpt")
    trainer(tmp_path / "parts", second, max_epochs=2).fit(
        Forecaster(), loader(), ckpt_path=tmp_path / "one.ckpt", **SAFE
    )
    expected, found = report_of(whole), report_of(second)
    assert expected.explained["step"].tolist() == [0, 1, 2] * 4
    (name,) = expected.attributions
    assert torch.equal(found.attributions[name], expected.attributions[name])  # type: ignore[arg-type]
    replay(tmp_path / "one.ckpt", Forecaster(), monitor=monitor(), output=tmp_path / "replayed", logger=False)
    stored, (replayed,) = (load_reports(tmp_path / folder / "explain") for folder in ("whole", "replayed"))
    assert torch.equal(replayed.attributions[name], stored[0].attributions[name])  # type: ignore[arg-type]
    # A checkpoint that is saved behind a training has the number of the epoch that would come next.
    assert (draw(replace(replayed, epoch=0), name) == draw(stored[0], name)).all()
    assert (draw(stored[-1], name) == draw(expected, name)).all()
    assert draw(stored[-1], f"history/{name}", stored).shape == (430, 700, 3)
