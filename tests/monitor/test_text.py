"""One line on texts: what is explained, which keys can be watched before the model is seen, and which words are drawn."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import Alert, ExplanationMonitor, load_reports
from lightning_explain import modalities as d
from training import QUIET, trainer

pytestmark = QUIET
WORDS = ["<pad>", *"abcdefgh"]


class Reader(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.rnn, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(self.embedding(x))[0].amax(1))
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_what_watches_the_scores_of_any_default_method_is_accepted_before_the_model_is_seen(tmp_path: Path) -> None:
    ids = torch.randint(1, 9, (4, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] = 0
    watched = EarlyStopping(monitor="explain/infidelity_relative/ablation")
    monitor = ExplanationMonitor(
        modalities=d.Text(vocabulary=WORDS), alerts=[Alert("infidelity_relative/ablation", above=2.0)]
    )
    loader = DataLoader(TensorDataset(ids, torch.tensor([0, 1, 0, 1])), 4)
    fitted = trainer(tmp_path, monitor, watched)
    fitted.fit(Reader(), loader)
    assert monitor.last_report is not None
    assert set(monitor.last_report.attributions) == {"ig", "ablation"}
    assert watched.best_score.isfinite()
    # The second page of a method has the strongest words of each class.
    assert {file.parent.name for file in tmp_path.rglob("*.png")} == {"overview", "ig", "ablation", "2"}
    (run,) = tmp_path.rglob("run.json")
    (text,) = load_reports(run.parent)[-1].probe.modalities  # type: ignore[union-attr]
    assert text.pad_id == 0
    assert text.words(ids) == [[WORDS[token] for token in sample] for sample in ids.tolist()]
    again = trainer(tmp_path, monitor, EarlyStopping(monitor="explain/infidelity_relative/cam"))
    with pytest.raises(ValueError, match="'explain/infidelity_relative/ablation'"):
        again.fit(Reader(), loader)
