"""An explanation reaches every logger once, and its failures do not end the training."""

from __future__ import annotations

import json
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from lightning_explain import Alert, ExplanationMonitor, Probe, ProbeSelection, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.model.isolation import LARGE
from lightning_explain.monitor import drawing, publisher
from networks import samples
from offline_wandb import read_back, staged
from training import (
    QUIET,
    DigitModule,
    Failing,
    NoTarget,
    fit,
    keys,
    loaders,
    points,
    steps_in,
    told_in,
    trainer,
)
from training import (
    monitor_of_digits as monitor,
)

pytestmark = QUIET


# -- loggers -------------------------------------------------------------------------------------------------------


def test_without_a_logger_files_lie_under_the_root(tmp_path: Path) -> None:
    fit(tmp_path, monitor())
    (line,) = (tmp_path / "explain" / "scalars.jsonl").read_text().splitlines()
    assert set(json.loads(line)["scalars"]) == {
        "explain/infidelity/saliency",
        "explain/nonfinite/saliency",
        "explain/seconds",
        "explain/overhead",
    }
    assert (tmp_path / "explain" / "saliency" / "step=00000004.png").exists()


def test_csv_logger_gets_the_numbers_and_files_lie_beside_them(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, monitor(), logger=logger)
    assert "explain/infidelity/saliency" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert (Path(logger.log_dir) / "explain" / "step=00000004.safetensors").exists()
    assert not (tmp_path / "explain").exists()


@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 4}, {"hook": "validation_epoch_end"}], ids=str)
def test_tensorboard_gets_one_point_for_each_tag_and_explanation(arguments: dict[str, Any], tmp_path: Path) -> None:
    finished = fit(tmp_path, monitor(**arguments), logger=TensorBoardLogger(tmp_path), max_epochs=2)
    found = {tag: steps for tag, steps in points(tmp_path).items() if tag.startswith("explain")}
    score = "explain/infidelity/saliency"
    others = {key.replace("explain/", "explain_run/", 1) for key in keys(finished) - {score}}
    margins = {f"explain_margins/infidelity/saliency/{end}" for end in ("lower", "upper")}
    assert found == {key: [4, 8] for key in (score, *others, *margins)}


def test_tensorboard_and_wandb_are_served_together_and_wandb_gets_files_and_alerts_on_wish(tmp_path: Path) -> None:
    offline = WandbLogger(save_dir=tmp_path, offline=True, project="p")
    alert = Alert("infidelity/saliency", above=-1, action="wandb")
    shared = monitor(name="shared", log_artifacts=True, alerts=[alert], save_reports=True)
    with pytest.warns(UserWarning, match="shared/infidelity/saliency is .* above -1"):
        fit(tmp_path, monitor(), shared, logger=[TensorBoardLogger(tmp_path), offline], max_epochs=2)
    assert points(tmp_path)["explain/infidelity/saliency"] == [4, 8]
    run = read_back(offline)
    explained = [entry for entry in run.history if "explain/samples" in entry]
    assert all({"explain_maps/overview", "explain_maps/saliency"} <= entry.keys() for entry in explained)
    tables = [artifact for artifact in run.artifact if artifact.name.endswith("explainsamples")]
    tables = tables or [artifact for artifact in run.artifact if "incr-explainsamples" in artifact.name]
    assert [len(staged(artifact, ".png")) for artifact in tables] == [4, 4]  # samples of one method
    assert run.config["explain"]["methods"]["saliency"]["class"] == "Saliency"
    assert run.config["_wandb"]["visualize"].keys() == {"explain/infidelity", "shared/infidelity"}
    better = {metric.name: metric.summary for metric in run.metric if metric.name.startswith("explain")}
    assert better["explain/infidelity/saliency"].last  # it has a unit
    assert better["explain_run/seconds"].last
    (files,) = (artifact for artifact in run.artifact if artifact.type == "explanations")
    folder = tmp_path / "lightning_logs" / "version_0" / "shared"
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.name.startswith("shared-")
    assert len([name for name in kept if name.startswith("step=")]) == 2
    assert {name: path.read_bytes() for name, path in staged(files, "").items()} == kept
    assert [found.title for found in run.alert] == ["shared/infidelity/saliency above -1"]


def test_files_of_a_wandb_run_lie_in_the_folder_of_its_checkpoints(tmp_path: Path) -> None:
    offline = WandbLogger(save_dir=tmp_path, offline=True, project="p")
    fit(tmp_path, monitor(), ModelCheckpoint(), logger=offline)
    offline.experiment.finish()
    run = tmp_path / "p" / str(offline.version)
    assert {"checkpoints", "explain"} <= {path.name for path in run.iterdir()}


def test_several_monitors_have_their_own_tags_and_folders(tmp_path: Path) -> None:
    one, other = monitor(name="one"), monitor(name="other", every_n_epochs=2)
    finished = fit(tmp_path, one, other, logger=TensorBoardLogger(tmp_path), max_epochs=2)
    assert keys(finished, "one") == {f"one/{key.removeprefix('other/')}" for key in keys(finished, "other")}
    assert points(tmp_path)["one_run/seconds"] == [4, 8]
    assert points(tmp_path)["other_run/seconds"] == [8]
    run = next(tmp_path.rglob("events.out.tfevents.*")).parent
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"one", "other"}


def test_two_monitors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(tmp_path, monitor(), monitor())


def test_reports_are_not_kept_if_not_wanted(tmp_path: Path) -> None:
    fit(tmp_path, monitor(save_reports=False))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert (tmp_path / "explain" / "scalars.jsonl").exists()


# -- failures ------------------------------------------------------------------------------------------------------


OFF = "failed 3 times in a row and is switched off"


def test_a_failing_method_is_told_once_switched_off_after_three_and_the_others_go_on(tmp_path: Path) -> None:
    watch = monitor(methods={"bad": (bad := Counting()), "good": m.Saliency(abs=False)})
    with pytest.warns(RuntimeWarning) as told:
        finished = fit(tmp_path, watch, max_epochs=5)
    message, off = told_in(told)
    assert "'bad' failed and is left out" in message
    assert "(rank 0)" in message
    assert "Traceback" in message
    assert "ArithmeticError: no map today" in message
    assert f"'bad' {OFF}. To switch it on again, call monitor.switch_on('bad')" in off
    assert finished.current_epoch == 5
    assert "explain/infidelity/good" in keys(finished)
    assert not any(key.endswith("/bad") for key in keys(finished))
    assert bad.calls == 3


class Counting(Method):
    """Fails in the explanations of these numbers, from 1; in all, if there are none."""

    def __init__(self, *failing: int) -> None:
        self.failing = failing
        self.calls = 0

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        self.calls += 1
        if not self.failing or self.calls in self.failing:
            raise ArithmeticError("no map today")
        return torch.ones_like(samples.inputs[0])


def test_a_success_begins_the_count_anew(tmp_path: Path) -> None:
    bad = Counting(1, 2, 4, 5)
    with pytest.warns(RuntimeWarning) as told:
        fit(tmp_path, monitor(methods={"bad": bad}), max_epochs=6)
    assert len(told_in(told)) == 1
    assert bad.calls == 6


class Mended(Callback):
    """Switches everything on again at the beginning of an epoch."""

    def __init__(self, watch: ExplanationMonitor, epoch: int) -> None:
        self.watch, self.epoch = watch, epoch

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            self.watch.switch_on()


def test_what_is_switched_off_can_be_had_again(tmp_path: Path) -> None:
    watch = monitor(methods={"bad": (bad := Counting(1, 2, 3)), "good": m.Saliency(abs=False)})
    with pytest.warns(RuntimeWarning) as told:
        finished = fit(tmp_path, watch, Mended(watch, 4), max_epochs=5)
    assert OFF in told_in(told)[-1]
    assert bad.calls == 4
    assert "explain/infidelity/bad" in keys(finished)


class NotANumberAnywhere(Method):
    """A map of NaN."""

    calls = 0

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        type(self).calls += 1
        return torch.full_like(samples.inputs[0], torch.nan)


def test_a_method_that_finds_no_number_on_any_sample_is_switched_off_and_metrics_are_not(tmp_path: Path) -> None:
    watch = monitor(methods={"nan": NotANumberAnywhere(), "good": m.Saliency(abs=False)})
    with pytest.warns(RuntimeWarning) as told:
        finished = fit(tmp_path, watch, max_epochs=4)
    nonfinite, off = told_in(told)
    assert "'nan' has a map or score that is NaN" in nonfinite
    assert f"'nan' {OFF}" in off
    assert NotANumberAnywhere.calls == 3
    assert watch.state_dict()["failures"] == {"nan": 3}
    assert "explain/infidelity/good" in keys(finished)


def test_a_score_that_is_undefined_on_every_sample_has_not_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = samples(4)
    probe = Probe(x, y, masks=torch.zeros(4, 8, 8, dtype=torch.bool))
    watch = monitor(metrics=[q.RelevanceMass(), q.PointingGame()], probe=probe)
    with caplog.at_level("INFO"):
        finished = fit(tmp_path, watch, max_epochs=4)
    assert watch.state_dict()["failures"] == {}
    (line,) = (record.message for record in caplog.records if "'relevance_mass' is undefined" in record.message)
    assert (
        "because the mask is empty, or the map has no positive part: [0, 1, 2, 3] for 'saliency'. They are counted"
        in line
    )
    assert "nothing has failed" in line
    assert float(finished.callback_metrics["explain/undefined/relevance_mass/saliency"]) == 4
    assert float(finished.callback_metrics["explain/nonfinite/saliency"]) == 0
    assert "explain/relevance_mass/saliency" not in finished.callback_metrics


def test_an_explanation_that_fails_as_a_whole_is_told_once_and_tried_three_times(tmp_path: Path) -> None:
    target = NoTarget(ArithmeticError("no target today"))
    with pytest.warns(RuntimeWarning) as told:
        finished = fit(tmp_path, monitor(target=target, every_n_train_steps=4), target, max_epochs=5)
    failed, off = told_in(told)
    assert "No explanation (rank 0); training continues" in failed
    assert "no target today" in failed
    assert f"'the whole explanation' {OFF}" in off
    assert finished.global_step == 20
    assert target.calls == 3
    assert steps_in(tmp_path) == []


def test_a_checkpoint_that_watches_a_failing_score_sees_the_worst_value(tmp_path: Path) -> None:
    watch = monitor(methods={"bad": Counting(1, 3)})
    best = ModelCheckpoint(tmp_path, monitor="explain/infidelity/bad", mode="min")
    with pytest.warns(RuntimeWarning, match="'bad' failed"):
        finished = fit(tmp_path, watch, best, max_epochs=3)
    assert finished.current_epoch == 3
    assert best.best_model_path.endswith("epoch=1-step=8.ckpt")
    assert not bool(torch.isfinite(finished.callback_metrics["explain/infidelity/bad"]))


@pytest.mark.filterwarnings("ignore:Early stopping conditioned on metric")
@pytest.mark.parametrize("strict", [True, False])
def test_early_stopping_without_its_score_does_what_strict_says(strict: bool, tmp_path: Path) -> None:
    stop = EarlyStopping("explain/infidelity/bad", strict=strict)
    run = trainer(tmp_path, monitor(methods={"bad": Failing()}), stop, max_epochs=2)
    ends = pytest.raises(RuntimeError, match="Early stopping conditioned on metric") if strict else nullcontext()
    with pytest.warns(RuntimeWarning, match="'bad' failed"), ends:
        run.fit(DigitModule(), **loaders())
    assert run.current_epoch == (0 if strict else 2)


class Broken(CSVLogger):
    """A logger whose disk is full when it gets an explanation."""

    refused = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("explain/") for key in metrics):
            self.refused += 1
            raise OSError("no space left on device")
        super().log_metrics(metrics, step)


def test_a_failing_logger_is_told_once_and_the_others_are_served(tmp_path: Path) -> None:
    broken = Broken(tmp_path / "csv")
    with pytest.warns(RuntimeWarning) as told:
        fit(tmp_path, monitor(), logger=[broken, TensorBoardLogger(tmp_path / "tb")], max_epochs=4)
    assert broken.refused == 3
    failed, off = told_in(told)
    assert "ScalarSink failed; training continues (rank 0)" in failed
    assert "no space left" in failed
    assert f"'ScalarSink' {OFF}" in off
    assert points(tmp_path / "tb")["explain_run/seconds"] == [4, 8, 12, 16]


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "explain").write_text("a file in the way")
    with pytest.warns(RuntimeWarning) as told:
        finished = fit(tmp_path, monitor(), max_epochs=2)
    messages = told_in(told)
    assert len(messages) == 2
    assert all(what in text for what, text in zip(("Saving the report", "FilesSink"), messages, strict=True))
    assert "explain/infidelity/saliency" in keys(finished)


def test_pictures_that_cannot_be_drawn_are_told_once_and_numbers_are_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: Any) -> None:
        raise MemoryError("no memory for pictures")

    monkeypatch.setattr(drawing, "figures_of", no_memory)
    with pytest.warns(RuntimeWarning, match="Drawing pictures failed; training continues") as told:
        fit(tmp_path, monitor(), max_epochs=2)
    assert len(told_in(told)) == 1
    assert len((tmp_path / "explain" / "scalars.jsonl").read_text().splitlines()) == 2
    assert steps_in(tmp_path) == [4, 8]


@pytest.mark.parametrize("what", ["method", "logger"])
def test_failures_are_raised_if_asked_for(what: str, tmp_path: Path) -> None:
    watch = monitor(methods={"it": Failing() if what == "method" else m.Saliency(abs=False)}, on_error="raise")
    with pytest.raises(ArithmeticError if what == "method" else OSError, match=r"no map today|no space left"):
        fit(tmp_path, watch, logger=Broken(tmp_path))


@pytest.mark.parametrize("what", ["method", "explanation", "logger", "sinks"])
def test_where_warnings_are_errors_failures_are_warned_of_and_training_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = NoTarget(ArithmeticError("no target today"))
    watch = {
        "method": monitor(methods={"bad": Failing(), "good": m.Saliency(abs=False)}),
        "explanation": monitor(target=target),
    }.get(what, monitor(alerts=[{"metric": "infidelity/saliency", "above": -1}]))
    if what == "sinks":
        monkeypatch.setattr(publisher, "sinks_for", unreachable)
    with warnings.catch_warnings(record=True) as seen:
        for start in ("ExplanationMonitor", "explain/"):
            warnings.filterwarnings("error", start)
        finished = fit(tmp_path, watch, target, logger=Broken(tmp_path) if what == "logger" else False, max_epochs=4)
    assert finished.current_epoch == 4
    text = "\n".join(str(w.message) for w in seen)
    reasons = {"method": "no map", "explanation": "no target", "logger": "no space left", "sinks": "no route"}
    assert reasons[what] in text
    assert ("which is above -1" in text) == (what in ("logger", "sinks"))
    assert ("is switched off" in text) == (what != "sinks")


class Gated(nn.Module):
    """Multiplies by a gate, for which DeepLIFT has no rule, and holds a large buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(LARGE // 4 + 1))
        self.gate, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1) * self.gate(x.flatten(1)).sigmoid())


def test_where_warnings_are_errors_what_an_explanation_notices_is_warned_of(tmp_path: Path) -> None:
    watch = monitor(methods={"it": m.DeepLift()}, probe=ProbeSelection(count=100), on_error="raise")
    noticed = ("'it': the map misses f", "Each explanation copies 64 MB", r"ProbeSelection\(count=100\), but")
    with warnings.catch_warnings(record=True) as seen:
        for start in noticed:
            warnings.filterwarnings("error", start)
        finished = fit(tmp_path, watch, module=DigitModule(Gated()), max_epochs=2)
    assert finished.current_epoch == 2
    text = "\n".join(str(w.message) for w in seen)
    assert all(len(re.findall(start, text)) == 1 for start in noticed)


def unreachable(*arguments: Any) -> Any:
    raise ConnectionError("no route to the loggers")


@pytest.fixture
def _interrupts() -> Iterator[None]:
    # Lightning ignores further interrupts after the first one.
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
def test_an_interrupt_in_an_explanation_ends_the_training(tmp_path: Path) -> None:
    stopped = trainer(tmp_path, monitor(methods={"it": Failing(KeyboardInterrupt)}))
    with pytest.raises(SystemExit):
        stopped.fit(DigitModule(), **loaders())
    assert stopped.interrupted


class NotANumber(Method):
    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        found = torch.ones_like(samples.inputs[0])
        found[0] = float("nan")
        return found


def test_samples_that_are_not_finite_are_counted_left_out_and_told_once(tmp_path: Path) -> None:
    watch = monitor(methods={"it": NotANumber()})
    with pytest.warns(RuntimeWarning, match="'it' has a map or score that is NaN") as told:
        finished = fit(tmp_path, watch, max_epochs=2)
    assert len(told_in(told)) == 1
    assert float(finished.callback_metrics["explain/nonfinite/it"]) == 1
    assert torch.isfinite(finished.callback_metrics["explain/infidelity/it"])


# -- a step that does not move -------------------------------------------------------------------------------------


class Manual(DigitModule):
    """Steps an optimizer of which the Trainer knows nothing, so that its step stays 0."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self._loss(batch))
        optimizer.step()


def test_where_the_step_does_not_move_each_epoch_keeps_its_files_and_a_resumed_one_replaces_its_own(
    tmp_path: Path,
) -> None:
    fit(tmp_path, monitor(), module=Manual(), max_epochs=2).save_checkpoint(tmp_path / "two.ckpt")
    third = trainer(tmp_path, monitor(), max_epochs=3)
    third.fit(Manual(), **loaders())
    resumed = trainer(tmp_path, monitor(), max_epochs=4)
    resumed.fit(Manual(), **loaders(), ckpt_path=tmp_path / "two.ckpt")
    folder = tmp_path / "explain"
    assert [(report.step, report.epoch) for report in load_reports(folder)] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    names = ["step=00000000", *(f"step=00000000-epoch=0000000{epoch}" for epoch in (1, 2, 3))]
    assert sorted(path.stem for path in (folder / "saliency").iterdir()) == sorted(names)


def test_a_schedule_by_steps_that_do_not_move_is_told_once(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="which did not move in a whole epoch: nothing will be explained") as told:
        fit(tmp_path, monitor(every_n_train_steps=2), module=Manual(), max_epochs=2)
    assert len(told_in(told)) == 1
