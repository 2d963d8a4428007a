"""Curves of the strongest features over a training, in TensorBoard and over a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, load_reports
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from training import QUIET, SAFE, points, trainer

pytestmark = QUIET
PROBE = Probe(torch.ones(2, 3), torch.zeros(2, 1))


class Moving(pl.LightningModule):
    """A linear model of which another column is the strongest in each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 0 * self(batch[0]).sum()

    def on_train_epoch_start(self) -> None:
        with torch.no_grad():
            self.net.weight.fill_(1)[0, self.current_epoch] = 5

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(root: Path, epochs: int, checkpoint: Path | None = None) -> Path:
    table = d.Tabular(feature_names=["a", "b", "c"])
    watch = ExplanationMonitor(
        methods=["InputXGradient"], metrics=[q.Importance(curves=1)], probe=PROBE, modalities=table
    )
    loader = DataLoader(TensorDataset(torch.ones(4, 3), torch.zeros(4, 1)), batch_size=4)
    found = trainer(root, watch, max_epochs=epochs, logger=pl.loggers.TensorBoardLogger(root))
    found.fit(Moving(), loader, ckpt_path=checkpoint, **(SAFE if checkpoint else {}))
    found.save_checkpoint(root / "last.ckpt")
    return root / "last.ckpt"


def curves(root: Path) -> dict[str, list[int]]:
    return {tag.split("_")[1][0]: steps for tag, steps in points(root).items() if "importance" in tag}


def test_a_curve_that_has_begun_has_a_point_at_every_explanation_also_in_a_resumed_run(tmp_path: Path) -> None:
    fit(tmp_path / "whole", 2)
    assert curves(tmp_path / "whole") == {"a": [1, 2], "b": [2]}
    fit(tmp_path / "second", 3, fit(tmp_path / "first", 1))
    assert curves(tmp_path / "second") == {"a": [2, 3], "b": [2, 3], "c": [3]}
    (folder,) = {path.parent for path in (tmp_path / "second").rglob("step=*.safetensors")}
    means = [report.scalars()["importance_c/input_x_gradient"] for report in load_reports(folder)]
    assert means == pytest.approx([1 / 7, 5 / 7]), "reports have all features"


def test_pages_are_chosen_in_a_configuration_and_those_of_other_inputs_refused_before_the_first_batch(
    tmp_path: Path,
) -> None:
    config = {"methods": ["InputXGradient"], "metrics": [], "save_reports": False}
    loader = DataLoader(TensorDataset(torch.ones(4, 3), torch.zeros(4, 1)), batch_size=4)
    watch = ExplanationMonitor.from_config({**config, "panels": ["series"]}, probe=PROBE)
    with pytest.raises(ValueError, match="panels names 'series', which none of the inputs has: Tabular has 'beeswarm'"):
        trainer(tmp_path, watch).fit(Moving(), loader)
    watch = ExplanationMonitor.from_config({**config, "panels": ["waterfall"]}, probe=PROBE)
    trainer(tmp_path, watch, logger=pl.loggers.CSVLogger(tmp_path)).fit(Moving(), loader)
    assert len({path.parent for path in tmp_path.rglob("*.png")}) == 2, "the overview, and a page of waterfalls"
