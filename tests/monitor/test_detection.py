"""A detector in training: lists of images, explained beside losses, drawn with boxes, resumed, and never disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from detectors import SIDE, faster_rcnn, scenes
from torch import Tensor
from torch.utils.data import DataLoader

from comparing import assert_same_numbers
from lightning_explain import ExplanationMonitor, draw, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.render.boxes import EXPLAINED, LABELLED
from training import QUIET

pytestmark = QUIET
SIZES = [(SIDE, SIDE), (SIDE, 40), (40, SIDE), (SIDE, SIDE)]


class Detector(L.LightningModule):
    """Losses with targets, detections without."""

    def __init__(self) -> None:
        super().__init__()
        self.net = faster_rcnn().train()

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        return self.net(images, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        return torch.stack(list(self(list(images), list(targets)).values())).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(list(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def collate(samples: Any) -> Any:
    return tuple(zip(*samples, strict=True))


def fitted(folder: Path, sizes: list[tuple[int, int]], callbacks: list[L.Callback], **resumed: Any) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    loaders = [DataLoader(list(zip(*scenes(sizes), strict=True)), 2, collate_fn=collate) for _ in range(2)]
    trainer = L.Trainer(
        max_epochs=1 + bool(resumed),
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Detector(), *loaders, **resumed)
    return trainer


def monitor(**arguments: Any) -> ExplanationMonitor:
    return ExplanationMonitor({"gradient": m.Saliency(abs=False)}, [], range(len(SIZES)), **arguments)


@pytest.mark.parametrize("sizes", [SIZES[:1] * 4, SIZES], ids=["one size", "several sizes"])
def test_a_detector_is_explained_and_its_training_stays_the_same(tmp_path: Path, sizes: Any) -> None:
    ours = monitor()
    weights = [fitted(tmp_path, sizes, callbacks).model.state_dict() for callbacks in ([], [ours])]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    report = ours.last_report
    assert report.task == "detection"
    assert not report.failures
    assert report.attributions["gradient"].flatten(1).any(1).all()


def test_a_resumed_training_keeps_its_samples(tmp_path: Path) -> None:
    first, second = monitor(save_probe=True), monitor(save_probe=True)
    fitted(tmp_path, SIZES, [first]).save_checkpoint(tmp_path / "last.ckpt")
    fitted(tmp_path, SIZES, [second], ckpt_path=tmp_path / "last.ckpt")
    one, other = first.probe, second.probe
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.targets, other.targets)
    assert one.parameters == other.parameters
    assert second.last_report.epoch == 1


def test_stored_reports_draw_labelled_and_explained_boxes(tmp_path: Path) -> None:
    fitted(tmp_path, SIZES, [monitor()])
    (report,) = load_reports(tmp_path / "explain")
    picture = draw(report, "gradient")
    for color in (LABELLED, EXPLAINED):
        assert (picture == torch.tensor(color, dtype=torch.uint8).numpy()).all(2).any()
    _columns, lines = report.table()
    assert len(lines) == len(SIZES)


def test_a_process_beside_the_training_finds_the_same_numbers(tmp_path: Path) -> None:
    scored: dict[str, Any] = {
        "methods": {"gradient": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=2)},
        "metrics": [q.Infidelity(n_perturb_samples=16), q.PointingGame()],
        "probe": range(len(SIZES)),
        "every_n_train_steps": 1,
        "max_examples_per_pass": 4,
    }
    ways: dict[str, dict[str, Any]] = {"inline": {}, "beside": {"beside": True, "when_busy": "wait"}}
    weights, reports = [], []
    for name, way in ways.items():
        weights.append(fitted(tmp_path / name, SIZES, [ExplanationMonitor(**scored, **way)]).model.state_dict())
        reports.append(load_reports(tmp_path / name / "explain"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert_same_numbers(*reports)
    assert set(reports[1][-1].scores["pointing_game"]) == {"gradient", "ig"}
