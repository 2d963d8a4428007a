"""Laws of the monitor in real training runs: when it explains, what it logs, and on which models."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import tqdm.std
from lightning.pytorch.callbacks.progress import tqdm_progress
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from clock import Clock
from lightning_explain import ExplanationMonitor, ProbeSelection, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples
from networks import DigitNet, digits, trained
from training import (
    QUIET,
    Blind,
    Counted,
    DigitModule,
    fit,
    keys,
    loader,
    loaders,
    report_of,
    steps_in,
    trainer,
)
from training import (
    monitor_of_digits as monitor,
)

pytestmark = QUIET


# -- without any argument ------------------------------------------------------------------------------------------


def test_without_arguments_an_image_classifier_gets_saliency_ig_and_cam(tmp_path: Path) -> None:
    watch = ExplanationMonitor(max_examples_per_pass=64)
    finished = fit(tmp_path, watch)
    methods = ("saliency", "ig", "cam")
    kinds = ("infidelity", "infidelity_relative", "nonfinite")
    scores = {f"explain/{kind}/{name}" for kind in kinds for name in methods} | {"explain/sensitivity_max/ig"}
    assert keys(finished) == scores | {"explain/seconds", "explain/overhead"}
    assert tuple(report_of(watch).attributions) == methods
    assert report_of(watch).ids.tolist() == sorted(random.Random(0).sample(range(24), 16))


def test_callback_metrics_are_the_means_of_the_report(tmp_path: Path) -> None:
    watch = monitor()
    finished = fit(tmp_path, watch)
    expected = report_of(watch).scores["infidelity"]["saliency"].double().mean()
    assert float(finished.callback_metrics["explain/infidelity/saliency"]) == pytest.approx(float(expected))
    assert float(finished.callback_metrics["explain/seconds"]) == pytest.approx(report_of(watch).seconds)


def test_a_model_without_a_feature_map_is_explained_without_cam_and_that_is_said(tmp_path: Path) -> None:
    watch = ExplanationMonitor(metrics=[q.Infidelity(n_perturb_samples=2)], probe=ProbeSelection(count=4))
    module = DigitModule(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.warns(
        UserWarning,
        match=r"'cam' \(LayerGradCam\) is left out: it names no layer",
    ):
        fit(tmp_path, watch, module=module)
    assert set(report_of(watch).attributions) == {"saliency", "ig"}


# -- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [4, 8, 12, 16]),
        ({"every_n_epochs": 2}, [8, 16]),
        ({"every_n_epochs": 3, "at_start": True}, [0, 12]),
        ({"every_n_train_steps": 3}, [3, 6, 9, 12, 15]),
        ({"every_n_train_steps": 8, "at_start": True}, [0, 8, 16]),
        ({"hook": "validation_epoch_end"}, [4, 8, 12, 16]),
        ({"hook": "validation_epoch_end", "every_n_epochs": 2}, [8, 16]),
        ({"enabled": False}, []),
    ],
    ids=str,
)
def test_it_explains_when_it_is_told_to(arguments: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    fit(tmp_path, monitor(**arguments), max_epochs=4)
    assert steps_in(tmp_path) == expected


def test_steps_are_optimizer_steps_when_gradients_are_accumulated(tmp_path: Path) -> None:
    counted = Counted()
    watch = monitor(methods={"it": counted}, metrics=[], every_n_train_steps=2)
    fit(tmp_path, watch, max_epochs=2, accumulate_grad_batches=2)
    assert steps_in(tmp_path) == [2, 4]
    assert counted.calls == 2


def test_a_validation_in_the_middle_of_an_epoch_is_not_explained_twice(tmp_path: Path) -> None:
    fit(tmp_path, monitor(hook="validation_epoch_end"), max_epochs=2, val_check_interval=0.5)
    assert steps_in(tmp_path) == [2, 6]


def test_the_sanity_check_is_not_explained(tmp_path: Path) -> None:
    fit(tmp_path, monitor(hook="validation_epoch_end"), num_sanity_val_steps=2)
    assert steps_in(tmp_path) == [4]


def test_reports_know_their_epoch_and_step(tmp_path: Path) -> None:
    fit(tmp_path, monitor(at_start=True), max_epochs=2)
    assert [(r.epoch, r.step) for r in load_reports(tmp_path / "explain")] == [(0, 0), (0, 4), (1, 8)]


def test_fast_dev_run_explains_and_writes_nothing(tmp_path: Path) -> None:
    watch = monitor()
    with_logger = TensorBoardLogger(tmp_path)
    finished = trainer(tmp_path, watch, fast_dev_run=True, logger=with_logger)
    finished.fit(DigitModule(), **loaders())
    assert report_of(watch).step == 1
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("way", ["validate", "test"])
def test_validate_and_test_explain_in_inference_mode(way: str, tmp_path: Path) -> None:
    watch, module = monitor(probe=ProbeSelection(count=4)), DigitModule(trained())
    alone = trainer(tmp_path, watch)
    getattr(alone, way)(module, loader(100, 24), verbose=False)
    # A sweep that reads "explain/..." behind a test must not choose by the test samples.
    prefix, other = ("test/explain/", "explain/") if way == "test" else ("explain/", "test/explain/")
    assert float(alone.callback_metrics[f"{prefix}infidelity/saliency"]) >= 0
    assert not [key for key in alone.callback_metrics if key.startswith(other)]
    assert f"{prefix}overhead" not in alone.callback_metrics
    assert steps_in(tmp_path) == [0]
    assert not any(
        isinstance(value, Tensor) and value.is_inference() for value in report_of(watch).attributions.values()
    )


def test_validation_by_hand_explains_the_same_numbers_as_training_did(tmp_path: Path) -> None:
    watch, module = monitor(), DigitModule()
    finished = fit(tmp_path, watch, module=module)
    before = report_of(watch)
    finished.validate(module, loader(100, 24), verbose=False)
    after = report_of(watch)
    assert torch.equal(before.attributions["saliency"], after.attributions["saliency"])
    assert torch.equal(before.scores["infidelity"]["saliency"], after.scores["infidelity"]["saliency"])


def test_a_monitor_can_watch_a_second_training(tmp_path: Path) -> None:
    watch = monitor()
    fit(tmp_path / "one", watch, max_epochs=3)
    fit(tmp_path / "two", watch, max_epochs=1)
    assert steps_in(tmp_path / "two") == [4]


# -- time ----------------------------------------------------------------------------------------------------------


class Slow(Method):
    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        time.sleep(0.2)
        return torch.ones_like(samples.inputs[0])


class Unhurried(Blind):
    """Steps of five milliseconds, by the clock of the test."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(0.005)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:There is no val loader")
def test_a_monitor_that_takes_too_long_explains_less_often_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    watch = monitor(methods={"it": Slow()}, metrics=[], max_overhead=0.5, every_n_train_steps=4)
    finished = trainer(tmp_path, watch, max_epochs=30)
    with caplog.at_level(logging.INFO):
        finished.fit(Unhurried(), loader())
    said = [r.message for r in caplog.records if "explains less often" in r.message]
    assert len(said) == 1
    # After 0.02 seconds of training; with a second one of 0.2 seconds, half of the time would be 0.8, but 120 steps take 0.6.
    assert steps_in(tmp_path) == [4]
    assert float(finished.callback_metrics["explain/overhead"]) == pytest.approx(10)


def test_overhead_is_told_of_training_alone(tmp_path: Path) -> None:
    watch = monitor(at_start=True, every_n_epochs=5)
    finished = fit(tmp_path, watch)
    assert "explain/seconds" in finished.callback_metrics
    assert "explain/overhead" not in finished.callback_metrics


class VerySlow(Method):
    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        time.sleep(2.2)
        return torch.ones_like(samples.inputs[0])


@pytest.fixture
def _clock_of_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only methods that sleep take time."""
    monkeypatch.setattr(tqdm.std, "time", Clock(monkeypatch).now)


@pytest.mark.usefixtures("_clock_of_bars")
@pytest.mark.parametrize("shown", [True, False])
def test_a_long_explanation_shows_a_bar_only_if_the_trainer_does(
    shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"slow": VerySlow(), "fast": Counted()}
    watch = monitor(methods=slow, metrics=[])
    fit(tmp_path, watch, enable_progress_bar=shown, limit_train_batches=1, limit_val_batches=0)
    assert ("Explaining" in "".join(capsys.readouterr())) == shown


@pytest.mark.usefixtures("_clock_of_bars")
def test_a_short_explanation_shows_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, monitor(), enable_progress_bar=True, limit_train_batches=1, limit_val_batches=0)
    assert "Explaining" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("bar", ["none", "rich", "tqdm"])
def test_a_bar_leaves_no_thread_behind_that_is_not_lightnings(bar: str, tmp_path: Path) -> None:
    def left(*callbacks: pl.Callback) -> list[str]:
        if (running := tqdm_progress.Tqdm.monitor) is not None:
            running.exit()
            tqdm_progress.Tqdm.monitor = None
        before = {*threading.enumerate()}
        bars = [pl.callbacks.RichProgressBar()] if bar == "rich" else []
        fit(tmp_path, *callbacks, *bars, enable_progress_bar=bar != "none", limit_train_batches=1, limit_val_batches=0)
        return sorted(type(thread).__name__ for thread in threading.enumerate() if thread not in before)

    assert left(monitor()) == left()


# -- precision, compilation, other calls ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_reports_are_finite_in_every_precision(precision: str, tmp_path: Path) -> None:
    watch = monitor(
        methods={"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()},
        metrics=[q.Infidelity(n_perturb_samples=2), q.SensitivityMax(n_perturb_samples=2)],
        probe=ProbeSelection(count=4),
        on_error="raise",
    )
    finished = fit(tmp_path, watch, precision=precision)
    assert [float(finished.callback_metrics[f"explain/nonfinite/{name}"]) for name in ("saliency", "cam")] == [0, 0]
    assert report_of(watch).attributions["cam"].dtype == (torch.float64 if precision == "64-true" else torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "a part"])
def test_a_compiled_model_is_explained_as_if_it_were_not(whole: bool, tmp_path: Path) -> None:
    torch._dynamo.reset()
    watch = monitor(methods={"guided": m.GuidedBackprop(), "cam": m.LayerGradCam("net.stem")}, on_error="raise")
    module = DigitModule(trained())
    if whole:
        compiled: Any = torch.compile(module, backend="eager")
    else:
        module.net, compiled = torch.compile(module.net, backend="eager"), module  # type: ignore[assignment]
    finished = trainer(tmp_path, watch, limit_train_batches=2)
    finished.fit(compiled, loader(), loader(100, 24))
    net = DigitNet()
    net.load_state_dict(getattr(module.net, "_orig_mod", module.net).state_dict())
    assert watch.probe is not None
    plain = explain(net, watch.probe, {"guided": m.GuidedBackprop(), "cam": m.LayerGradCam("stem")}, [])
    for name, expected in plain.attributions.items():
        torch.testing.assert_close(report_of(watch).attributions[name], expected)


class Pair(DigitModule):
    """Takes a mapping of two inputs and gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(64, 10)

    def logits(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"scores": self.net((left + 2 * right).flatten(1))}

    def _loss(self, batch: Any) -> Tensor:
        found = self.logits(batch["left"], batch["right"])["scores"]
        return nn.functional.cross_entropy(found, batch["digit"])


class PairData(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = digits()
        return {"left": x[index], "right": x[index + 1], "digit": y[index]}


def test_any_batch_and_any_call_can_be_told_to_the_monitor(tmp_path: Path) -> None:
    watch = monitor(
        probe=ProbeSelection(count=4),
        batch_fn=lambda batch: ((batch["left"], batch["right"]), batch["digit"]),
        forward_fn=lambda module, left, right: module.logits(left, right),
        output_fn=lambda output: output["scores"],
        on_error="raise",
    )
    data = DataLoader(PairData(), batch_size=8)
    trainer(tmp_path, watch).fit(Pair(), data, data)
    left, right = report_of(watch).attributions["saliency"]
    torch.testing.assert_close(right, 2 * left)
    assert torch.equal(report_of(watch).targets, digits()[1][report_of(watch).ids])


# -- mistakes ------------------------------------------------------------------------------------------------------


class NoStep(DigitModule):
    """Notes whether a batch was ever trained on."""

    stepped = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.stepped = True
        return super().training_step(batch, batch_idx)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "target out of range": ({"target": 10}, r"target=10 gives indices 10 to 10 of 10 outputs"),
    "wrong layer": ({"methods": [m.LayerGradCam("net.blok")]}, "net.blok.*did you mean 'net.block'"),
    "masks": ({"metrics": ["RelevanceMass"]}, r"'relevance_mass' \(RelevanceMass\): it needs masks"),
    "indices": ({"probe": [3, 99]}, r"indices=\.\.\.\) has \[99\]; use indices of the dataset behind .*: 0 to 23"),
    "loader": (
        {"probe": ProbeSelection(dataloader_idx=2)},
        "dataloader_idx=2.*there are 1 val loaders; use one below 1",
    ),
    "tuple target": ({"target": (3, 0, 0)}, r"target=\(3, 0, 0\) does not fit outputs"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_told_before_the_first_batch(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    module = NoStep()
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, monitor(**arguments), module=module)
    assert not module.stepped


def test_labels_of_a_regression_are_told_before_the_first_batch(tmp_path: Path) -> None:
    x, y = digits()
    module = NoStep()
    data = DataLoader(TensorDataset(x[:24], y[:24].float()), batch_size=8)
    with pytest.raises(ValueError, match=r'target="label" needs integer labels \(4,\), got torch.float32'):
        trainer(tmp_path, monitor(probe=ProbeSelection(count=4))).fit(module, data, data)
    assert not module.stepped


@pytest.mark.parametrize(("module", "limit"), [(Blind, None), (DigitModule, 0)], ids=["no step", "no batches"])
def test_explaining_after_validation_needs_validation(module: Any, limit: int | None, tmp_path: Path) -> None:
    run = trainer(tmp_path, monitor(hook="validation_epoch_end"), limit_val_batches=limit)
    data = loaders() if limit == 0 else {"train_dataloaders": loader()}
    with pytest.raises(ValueError, match='this run does not validate; use hook="train_epoch_end"'):
        run.fit(module(), **data)


def test_what_was_counted_in_steps_says_nothing_about_epochs() -> None:
    by_steps = ExplanationMonitor(every_n_train_steps=100)
    by_steps._memory.schedule.done(300, 0.0, 1.0)
    by_epochs, again = ExplanationMonitor(), ExplanationMonitor(every_n_train_steps=100)
    by_epochs.load_state_dict(by_steps.state_dict())
    again.load_state_dict(by_steps.state_dict())
    assert by_epochs._memory.schedule.due(1)
    assert not again._memory.schedule.due(300)


def test_one_line_at_the_start_says_what_an_explanation_costs_and_one_hint_that_it_was_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slow = {"methods": {"saliency": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=40)}, "metrics": []}
    with caplog.at_level(logging.INFO):
        fit(tmp_path, monitor(**slow), max_epochs=3)
    (line,) = [r.message for r in caplog.records if "evaluations of the model for each" in r.message]
    assert "'explain': an explanation of 4 samples takes 41 forward and 41 backward evaluations" in line
    assert "164 and 164 in all" in line
    assert re.search(
        r"about [\d.e-]+ seconds with drawing, as estimated from the fastest of a few runs of the model", line
    )
    assert "512% of the samples that a training epoch sends through the model" in line, "164 of 32"
    hints = [r.message for r in caplog.records if "To spend less: max_overhead=0.1" in r.message]
    assert len(hints) == 1, "five times as many evaluations as in a training epoch, and files"


@pytest.mark.parametrize(("took", "limit", "hints"), [(1.0, None, 1), (0.1, None, 0), (1.0, 0.5, 0)])
def test_the_hint_comes_above_a_fifth_of_the_training_and_without_a_limit(
    took: float, limit: float | None, hints: int, caplog: pytest.LogCaptureFixture
) -> None:
    watch = monitor(max_overhead=limit)
    watch._memory.schedule.explain_seconds, watch._memory.schedule.train_seconds = 3 * took, 3.0
    with caplog.at_level(logging.INFO):
        watch._hint()
    assert sum("took 3 seconds so far, 100% of the time of training" in r.message for r in caplog.records) == hints


def test_once_something_was_explained_the_line_at_the_start_says_what_that_took(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = monitor(methods=["Saliency"], metrics=[])
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            before = watch.last_report
            fit(tmp_path, watch, max_epochs=1)
        (line,) = [r.message for r in caplog.records if "evaluations of the model for each" in r.message]
        measured = "" if before is None else f", {before.seconds:.2g} seconds, as the last one took, with drawing,"
        assert ("as estimated" in line) == (before is None)
        assert measured in line
    for methods, net in (
        (["InputXGradient"], None),
        (["Saliency"], nn.Sequential(nn.Flatten(), nn.Linear(digits()[0][0].numel(), 10))),
    ):
        other = monitor(methods=methods, metrics=[])
        other.last_report, other._last_model = watch.last_report, watch._last_model
        caplog.clear()
        with caplog.at_level(logging.INFO):
            trainer(tmp_path, other).fit(DigitModule(net), loader(), loader(100))
        assert "as estimated" in caplog.text, "that was of another method or model"
