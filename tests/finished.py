"""Runs as a monitor leaves them behind, made in a moment: maps and scores are drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_explain import Probe, Report
from lightning_explain import modalities as d
from lightning_explain.core.report import PassCount
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.serialization import fingerprint
from lightning_explain.store.report_files import save_report
from lightning_explain.store.run_files import save_probe, save_run

HOSTILE = "<script>alert(1)</script>"
CLASSES = ("cat", HOSTILE, "dog", "{{ 7 * 7 }}")


def images(count: int = 4, size: int = 12) -> Probe:
    """Noise with a bright square, which is the mask."""
    noise = torch.Generator().manual_seed(7)
    inputs, masks = torch.rand(count, 3, size, size, generator=noise), torch.zeros(count, size, size, dtype=torch.bool)
    inputs[:, :, 2:5, 2:5] = 1.0
    masks[:, 2:5, 2:5] = True
    return Probe(inputs, torch.arange(count) % 4, torch.arange(count) + 100, masks, CLASSES, modalities=d.Image())


def texts() -> Probe:
    """Two texts; one ends early."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 5, 0, 0]])
    words = ("<pad>", "[CLS]", "very", HOSTILE, "good", "bad")
    text = d.Text(vocabulary=words, pad_id=0, special_ids=(1,))
    return Probe(ids, torch.tensor([1, 0]), torch.tensor([7, 9]), modalities=text)


def features() -> Probe:
    """Three lines of a table of twelve columns."""
    names = [HOSTILE, *(f"column {i}" for i in range(11))]
    inputs = torch.randn(3, 12, generator=torch.Generator().manual_seed(3))
    return Probe(inputs, torch.tensor([0, 1, 1]), torch.arange(3), modalities=d.Tabular(feature_names=names))


def series() -> Probe:
    """Two series of three channels."""
    inputs = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(4)).cumsum(2)
    modality = d.TimeSeries(channel_names=("I", "II", "breath"), layout="NCT", rate=25.0)
    return Probe(inputs, torch.tensor([0, 1]), torch.arange(2), modalities=modality)


def info(probe: Probe, **changes: Any) -> RunInfo:
    """What is true of the run."""
    found = RunInfo(
        "explain",
        methods={"ig": "IntegratedGradients(n_steps=16)", "saliency": "Saliency(abs=False)"},
        metrics={"infidelity": "Infidelity()"},
        how_to_read={"infidelity": "How well the map predicts what removing a square changes. Lower is better."},
        higher_is_better={"infidelity_relative": False, "infidelity": False},
        incomparable=("infidelity",),
        findings={"saliency": "its map is that of the gradient alone"},
        left_out={"cam": "the model has no feature map"},
        cost="an explanation takes 0.5 s",
        class_names=CLASSES,
        fingerprint=fingerprint(probe),
        hyperparameters={"lr": 0.1, "optimizer": "adam"},
    )
    return replace(found, **changes)


def explained(
    probe: Probe, step: int, seed: int = 0, methods: Sequence[str] = ("ig", "saliency"), **changes: Any
) -> Report:
    """One explanation of four classes; the maps lie more and more in the middle."""
    noise = torch.Generator().manual_seed(seed + step)
    inputs = probe.inputs
    assert isinstance(inputs, Tensor)
    count, epoch = len(inputs), step // 10 - 1
    # Methods are told apart by their scale, so that pages cannot mix them up unseen.
    maps = {name: torch.randn(inputs.shape, generator=noise) * 10**k for k, name in enumerate(methods)}
    drawn = {name: torch.rand(count, generator=noise) for name in methods}
    outputs = torch.randn(count, 4, generator=noise)
    found = Report(
        maps,
        {"infidelity_relative": drawn, "infidelity": {name: 100 * value for name, value in drawn.items()}},
        {"infidelity_relative": {name: 0.1 * value for name, value in drawn.items()}},
        outputs,
        outputs.argmax(1),
        torch.zeros(count, dtype=torch.long) if probe.targets is None else probe.targets,
        probe.sample_ids,
        passes=PassCount(640, 320),
        seconds=0.5,
        epoch=epoch,
        step=step,
        fingerprint=fingerprint(probe),
        stage="fit",
        values=outputs[:, 0],
        logged={"val_loss": 1.0 / (1 + step), "train_loss": 0.5 + seed},
        run=info(probe),
    )
    return replace(found, **changes)


def finished(
    folder: Path, probe: Probe, steps: Sequence[int] = (10, 20, 30), seed: int = 0, inputs: bool = True, **changes: Any
) -> Path:
    """The folder of a run with an explanation at each of these steps; other arguments are those of :func:`explained`."""
    reports = [explained(probe, step, seed, **changes) for step in steps]
    for report in reports:
        save_report(report, folder / "explain")
        if report.run is not None:
            save_run(report.run, folder / "explain")
    if inputs:
        save_probe(probe, folder / "explain")
    return folder
