"""With and without the monitor a training run is the same, bit by bit, after every step."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_explain import ExplanationMonitor, Probe, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Score
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.model.isolation import STATE_SAVERS
from networks import DigitNet, digits, samples
from states import Recorder, assert_equal
from training import SAFE, NoTarget, told_in

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
]


class Augmented(Dataset):
    """Digits, moved and made noisy by all three generators each time they are read."""

    def __init__(self, first: int, count: int) -> None:
        self.x, self.y = (part[first : first + count] for part in digits())

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[index].roll(random.randint(-1, 1), -1) * float(np.random.uniform(0.8, 1.2))
        return x + 0.1 * torch.randn(x.shape), self.y[index]


class Student(pl.LightningModule):
    """Batch norm, dropout, metrics (one inside forward), and a stem that is frozen in part and always in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = DigitNet()
        self.net.stem[0].requires_grad_(False)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10)
        self.val_accuracy = torchmetrics.classification.MulticlassAccuracy(10)
        self.brightness = torchmetrics.MeanMetric()
        self.shapes = torchmetrics.CatMetric()
        self.calls = 0

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        self.net.stem.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.brightness.update(x.detach().mean())
        self.shapes.update(torch.tensor(float(len(x))))
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.val_accuracy(self(batch[0]), batch[1])
        self.log("val_accuracy", self.val_accuracy)

    def on_train_epoch_end(self) -> None:
        self.log("brightness", self.brightness.compute())
        self.brightness.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)}


METHODS = {
    "saliency": m.Saliency(abs=False),
    "input_x_gradient": m.InputXGradient(),
    "ig": m.IntegratedGradients(n_steps=4),
    "shap": m.GradientShap(n_samples=2, stdevs=0.1),
    "occlusion": m.Occlusion(strides=(1, 4, 4)),
    "cam": m.LayerGradCam(),
    "gradient_x_activation": m.LayerGradientXActivation("net.block.bn2"),
    "guided": m.GuidedBackprop(),
    **{
        nt_type: m.NoiseTunnel(m.Saliency(abs=False), nt_type=nt_type, nt_samples=2, stdevs=0.1)
        for nt_type in ("smoothgrad", "smoothgrad_sq", "vargrad")
    },
}
METRICS = {
    "infidelity": q.Infidelity(n_perturb_samples=3),
    "removal": q.Infidelity("square", n_perturb_samples=3),
    "sensitivity": q.SensitivityMax(n_perturb_samples=2),
}


CHOSEN = ProbeSelection(count=4)


def all_of_it(**options: Any) -> ExplanationMonitor:
    return ExplanationMonitor(**{"methods": METHODS, "metrics": METRICS, "probe": CHOSEN, **options})


def light(**options: Any) -> ExplanationMonitor:
    """Two methods, on two samples that it need not choose."""
    methods = {"saliency": m.Saliency(abs=False), "ig": METHODS["ig"]}
    return all_of_it(**{"methods": methods, "probe": Probe(*samples(2)), **options})


def fit(
    monitor: ExplanationMonitor | None,
    module: type[Student] = Student,
    ckpt_path: Path | None = None,
    more: Sequence[pl.Callback] = (),
    workers: int = 0,
    **options: Any,
) -> tuple[Recorder, pl.Trainer]:
    """Trains on 4 batches an epoch, shuffled; without workers, they are read with the generators of this process."""
    pl.seed_everything(3, verbose=False)
    recorder = Recorder(monitor)
    trainer = pl.Trainer(
        **{"max_epochs": 3, "num_sanity_val_steps": 0, **options},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*([] if monitor is None else [monitor]), *more, recorder],
    )
    trainer.fit(
        module(),
        DataLoader(Augmented(0, 64), batch_size=16, shuffle=True, num_workers=workers),
        DataLoader(Augmented(1500, 32), batch_size=16, shuffle=True, num_workers=workers),
        ckpt_path=ckpt_path,
        **({} if ckpt_path is None else SAFE),
    )
    return recorder, trainer


@functools.cache
def alone(**options: Any) -> Recorder:
    """The same run without a monitor."""
    return fit(None, **options)[0]


def assert_undisturbed(recorder: Recorder, expected: Recorder, least: int = 20) -> None:
    """Every state of the run is as in the run without a monitor."""
    assert len(recorder.states) == len(expected.states) > least
    for ours, theirs in zip(recorder.states, expected.states, strict=True):
        assert_equal(ours, theirs, f"after step {theirs['step']}, {theirs['hook']}: state")


def assert_explained(recorder: Recorder, count: int, methods: int = len(METHODS), metrics: int = len(METRICS)) -> None:
    """As many reports, with scores that change as the model does, and are not finite only where they are undefined."""
    assert len(recorder.reports) == count
    for report in recorder.reports:
        assert not report.failures
        assert len(report.attributions) == methods
        assert len(report.scores) == metrics
        assert not any(report.nonfinite().values())
        for scores in report.scores.values():
            assert all(torch.isfinite(values).any() for values in scores.values())
    for before, after in zip(recorder.reports, recorder.reports[1:], strict=False):
        assert torch.equal(before.ids, after.ids)
        for metric, scores in before.scores.items():
            for method, values in scores.items():
                assert not torch.equal(values.nan_to_num(-1), after.scores[metric][method].nan_to_num(-1))


def written(value: Any) -> str:
    """Arguments as a test's name."""
    if not isinstance(value, dict):
        return ""
    return ",".join(f"{k}={v if isinstance(v, (str, int, float)) else '...'}" for k, v in value.items())


@pytest.mark.parametrize(
    ("options", "training", "count"),
    [
        ({}, {"workers": 1}, 3),
        ({"hook": "validation_epoch_end"}, {"num_sanity_val_steps": 1}, 3),
        ({"at_start": True}, {}, 4),
        ({"every_n_train_steps": 2}, {"accumulate_grad_batches": 2}, 3),
        ({"every_n_train_steps": 5}, {"precision": "bf16-mixed"}, 2),
    ],
    ids=written,
)
def test_training_is_bit_identical_with_the_monitor(
    options: dict[str, Any], training: dict[str, Any], count: int
) -> None:
    recorder, _ = fit(all_of_it(**options), **training)
    assert_undisturbed(recorder, alone(**training))
    assert_explained(recorder, count)


@pytest.mark.parametrize(
    ("options", "training", "count"),
    [
        ({"every_n_train_steps": 3, "probe": CHOSEN}, {"val_check_interval": 2, "workers": 1}, 4),
        ({"every_n_epochs": 2, "max_examples_per_pass": 3}, {"gradient_clip_val": 0.1}, 1),
        ({"target": "predicted", "max_overhead": 1e-6}, {}, 1),
        ({"target": 3, "probe": [0, 5, 7], "save_probe": False, "save_reports": False}, {"limit_val_batches": 0}, 3),
    ],
    ids=written,
)
@pytest.mark.filterwarnings("ignore:There is no val loader:UserWarning")
def test_training_is_bit_identical_whenever_and_whatever_is_explained(
    options: dict[str, Any], training: dict[str, Any], count: int
) -> None:
    recorder, _ = fit(light(**options), **training)
    assert_undisturbed(recorder, alone(**training))
    assert_explained(recorder, count, methods=2)


def test_training_is_bit_identical_with_masks() -> None:
    x, y = samples(4)
    recorder, _ = fit(all_of_it(probe=Probe(x, y, masks=x[:, 0] > 0), metrics=[q.RelevanceMass()]))
    assert_undisturbed(recorder, alone())
    assert_explained(recorder, 3, metrics=2)


def validate(monitor: ExplanationMonitor | None) -> Recorder:
    """Validates alone, in inference mode, where the states of metrics are made anew."""
    pl.seed_everything(3, verbose=False)
    recorder = Recorder(monitor)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", callbacks=[*([] if monitor is None else [monitor]), recorder], **quiet)
    for _ in range(2):
        trainer.validate(
            Student(), DataLoader(Augmented(1500, 64), batch_size=16, shuffle=True, num_workers=1), verbose=False
        )
    return recorder


def test_a_validation_alone_is_bit_identical_with_the_monitor() -> None:
    recorder = validate(all_of_it())
    assert_undisturbed(recorder, validate(None), least=8)
    assert_explained(recorder, 2)


@pytest.mark.parametrize("saver", ["attributes", "tensors"])
def test_the_comparison_sees_what_a_missing_saver_does(saver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATE_SAVERS, saver, lambda model: nullcontext())
    recorder, _ = fit(light(metrics=[]))
    with pytest.raises(AssertionError, match=r"after step \d+, .*: state\['(metrics|logged)'\]"):
        assert_undisturbed(recorder, alone())


@dataclass(frozen=True)
class Moody(Method, Metric):
    """A method and a metric that raises on its second explanation, in the middle of a pass, and leaves a hook behind."""

    calls: list[int] = field(default_factory=list)
    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)

    def _pass(self, explained: ExplainedFunction, samples: Samples) -> None:
        def disturb(*arguments: object) -> None:
            random.random()
            torch.rand(3)
            np.random.rand()
            if len(self.calls) == 2:
                raise RuntimeError("not today")

        self.calls.append(1)
        for module in explained.forward.modules():
            module.register_forward_hook(disturb)
        explained.evaluate(samples)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        self._pass(explained, samples)
        return torch.ones_like(samples.inputs[0])

    def score(self, case: MetricInputs) -> dict[str, dict[str, Score]]:
        self._pass(case.explained, case.samples)
        return {"": dict.fromkeys(case.maps, (case.outputs, None))}


@pytest.mark.parametrize("kind", ["method", "metric"])
def test_training_is_bit_identical_when_an_explanation_fails_in_the_middle(kind: str) -> None:
    methods = {"ig": METHODS["ig"], **({"moody": Moody()} if kind == "method" else {}), "guided": METHODS["guided"]}
    metrics = {"infidelity": METRICS["infidelity"], **({"moody": Moody()} if kind == "metric" else {})}
    with pytest.warns(RuntimeWarning, match=r"(?s)'moody' failed and is left out .*not today"):
        recorder, _ = fit(all_of_it(methods=methods, metrics=metrics))
    assert_undisturbed(recorder, alone())
    assert [list(report.failures) for report in recorder.reports] == [[], ["moody"], []]
    for report in recorder.reports:
        assert {"ig", "guided"} <= report.attributions.keys()
        assert "infidelity" in report.scores


def test_training_is_bit_identical_when_a_whole_explanation_fails() -> None:
    class Drawing(NoTarget):
        def __call__(self, outputs: Tensor) -> Tensor:
            torch.rand(3)
            return super().__call__(outputs)

    target = Drawing(RuntimeError("no target today"))
    with pytest.warns(RuntimeWarning) as told:
        recorder, _ = fit(light(target=target), more=[target])
    failed, off = told_in(told)
    assert re.search("(?s)No explanation.*training continues.*no target today", failed)
    assert "failed 3 times in a row" in off
    assert target.calls == 3
    assert_undisturbed(recorder, alone())
    assert recorder.reports == []


def test_a_failing_explanation_is_not_tried_again_at_every_step() -> None:
    target = NoTarget(RuntimeError("no target today"))
    with pytest.warns(RuntimeWarning, match="No explanation"):
        fit(light(target=target, every_n_train_steps=6), max_epochs=3, more=[target])
    assert target.calls == 12 // 6


@pytest.fixture(scope="module")
def resumed_alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A checkpoint of a training without a monitor, and what comes of it without one."""
    path = tmp_path_factory.mktemp("alone") / "without.ckpt"
    _, trainer = fit(None, max_epochs=2, workers=1)
    trainer.save_checkpoint(path)
    return path, fit(None, ckpt_path=path, max_epochs=4, workers=1)[0]


@pytest.mark.parametrize("saved_with", [True, False], ids=["saved with it", "saved without it"])
def test_a_resumed_training_is_bit_identical_with_the_monitor(
    saved_with: bool, resumed_alone: tuple[Path, Recorder], tmp_path: Path
) -> None:
    path, expected = resumed_alone
    if saved_with:
        first, trainer = fit(light(at_start=True, probe=CHOSEN), max_epochs=2, workers=1)
        path = tmp_path / "with.ckpt"
        trainer.save_checkpoint(path)
    recorder, _ = fit(light(at_start=True, probe=CHOSEN), ckpt_path=path, max_epochs=4, workers=1)
    assert_undisturbed(recorder, expected)
    assert_explained(recorder, 2, methods=2)
    assert [report.epoch for report in recorder.reports] == [2, 3]
    if saved_with:
        assert torch.equal(first.reports[-1].ids, recorder.reports[0].ids)
        assert first.reports[-1].fingerprint == recorder.reports[0].fingerprint


class Talkative(Student):
    """Logs in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        if self._trainer is not None and self.trainer.training:
            self.log("loudness", x.abs().mean(), on_step=True, on_epoch=True)
        return super().forward(x)


@pytest.mark.parametrize("options", [{}, {"every_n_train_steps": 1, "at_start": True}])
def test_what_a_model_logs_in_its_forward_is_not_logged_by_an_explanation(options: dict[str, Any]) -> None:
    recorder, _ = fit(light(metrics=[], **options), module=Talkative)
    assert_undisturbed(recorder, alone(module=Talkative))
    assert recorder.reports
