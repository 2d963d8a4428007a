"""Explanations by a process beside the training: the same numbers, a training that does not wait, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import threading
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.compile import from_compiled
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from clock import Clock
from lightning_explain import ExplanationMonitor, Report, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.outcome import Outcome
from lightning_explain.core.shared_memory import Layout, SharedMemory
from lightning_explain.core.torch_settings import compute_on
from lightning_explain.loggers import tensorboard
from lightning_explain.loggers.event_file import EventFile
from lightning_explain.monitor import beside
from lightning_explain.monitor import worker as process
from lightning_explain.monitor.beside import WorkerError
from lightning_explain.monitor.lightning import eager, forward_context
from networks import DigitNet
from states import Recorder, assert_equal
from training import QUIET, SAFE, DigitModule, Failing, loaders, monitor_of_digits, points, told_in, trainer
from workers import Here

pytestmark = QUIET


class Annealed(DigitModule):
    """Its output depends on a plain attribute that training changes, and on a hidden random number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.scale = DigitNet(), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.scale *= 0.9
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@dataclass
class Trained:
    """A finished training."""

    watch: ExplanationMonitor | None
    finished: pl.Trainer
    states: list[dict[str, Any]]
    root: Path

    @property
    def reports(self) -> list[Report]:
        return load_reports(self.root / "run" / "explain")


def trained(root: Path, watch: ExplanationMonitor | None, *behind: pl.Callback, **arguments: Any) -> Trained:
    """Two epochs of four steps each, with the state of the training after each of them."""
    torch.manual_seed(0)
    recorder = Recorder()
    logger = pl.loggers.TensorBoardLogger(root, name="", version="run")
    callbacks = [*([] if watch is None else [watch]), *behind, recorder]
    finished = trainer(root, *callbacks, max_epochs=2, logger=logger, **arguments)
    finished.fit(Annealed(), **loaders())
    return Trained(watch, finished, recorder.states, root)


def pictures(root: Path) -> dict[str, list[tuple[int, bytes]]]:
    """The steps and PNG files of all pictures in TensorBoard, by tag."""
    read = EventAccumulator(str(root / "run"), size_guidance={"images": 0}).Reload()
    return {tag: [(one.step, one.encoded_image_string) for one in read.Images(tag)] for tag in read.Tags()["images"]}


def watching(**arguments: Any) -> ExplanationMonitor:
    methods = {
        "ig": m.IntegratedGradients(n_steps=3),
        "shap": m.GradientShap(n_samples=2),
        "cam": m.LayerGradCam(layer="net.block"),
    }
    metrics = [q.Infidelity(n_perturb_samples=16), q.Drift()]
    settings: dict[str, Any] = {"every_n_train_steps": 2, "at_start": True, "max_examples_per_pass": 8}
    return monitor_of_digits(**{"methods": methods, "metrics": metrics, **settings, **arguments})


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """The same training without a monitor, with one that it waits for, and with one beside it."""
    root = tmp_path_factory.mktemp("beside")
    # The process has the paths of this one, where the working directory is none of them.
    (root / "lightning_explain.py").write_text("raise ImportError('from the working directory')")
    former = Path.cwd()
    os.chdir(root)
    worker = watching(beside=True, when_busy="wait", alerts=["infidelity_relative/ig > -1 for 5"])
    try:
        found = {"plain": trained(root / "plain", None), "inline": trained(root / "inline", watching())}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(tensorboard, "picture_records", None)  # This process makes none.
            return {**found, "beside": trained(root / "beside", worker)}
    finally:
        os.chdir(former)


def test_the_training_is_the_same_after_every_step(trainings: dict[str, Trained]) -> None:
    assert_equal(trainings["beside"].states, trainings["plain"].states)


def test_maps_scores_and_what_was_logged_are_those_of_an_explanation_that_training_waits_for(
    trainings: dict[str, Trained],
) -> None:
    ours, theirs = trainings["beside"].reports, trainings["inline"].reports
    assert [report.step for report in ours] == [report.step for report in theirs] == [0, 2, 4, 6, 8]
    for a, b in zip(ours, theirs, strict=True):
        assert (a.epoch, a.stage, a.logged, a.fingerprint) == (b.epoch, b.stage, b.logged, b.fingerprint)
        for part in ("attributions", "maps", "outputs", "values", "targets", "standard_errors"):
            assert_equal(getattr(a, part), getattr(b, part), part)
        for score, by_method in b.scores.items():
            for method, values in by_method.items():
                assert torch.equal(a.scores[score][method].nan_to_num(7), values.nan_to_num(7)), (score, method)
        assert a.run is not None
        assert b.run is not None
        assert (a.run.pass_size, a.run.threads, a.run.memory_format) == (
            b.run.pass_size,
            b.run.threads,
            b.run.memory_format,
        )


def test_curves_have_the_steps_of_the_explanations(trainings: dict[str, Trained]) -> None:
    ours, theirs = (points(trainings[name].root) for name in ("beside", "inline"))
    assert {tag: steps for tag, steps in ours.items() if "overhead" not in tag} == {
        tag: steps for tag, steps in theirs.items() if "overhead" not in tag
    }
    assert ours["explain/infidelity_relative/ig"] == [0, 2, 4, 6, 8]


def test_the_pictures_are_written_by_the_process_behind_what_the_training_wrote(trainings: dict[str, Trained]) -> None:
    ours, theirs = (pictures(trainings[name].root) for name in ("beside", "inline"))
    assert {tag: [step for step, _ in found] for tag, found in ours.items()} == {
        tag: [step for step, _ in found] for tag, found in theirs.items()
    }
    assert ours["explain_maps/ig"] == theirs["explain_maps/ig"]
    (file,) = (trainings["beside"].root / "run").glob("events.*.explain")
    assert file.stat().st_size > 100_000


def test_the_trainer_has_the_last_scores_at_the_end(trainings: dict[str, Trained]) -> None:
    ours, theirs = (trainings[name].finished.callback_metrics for name in ("beside", "inline"))
    assert ours.keys() == theirs.keys()
    assert ours["explain/drift_cosine_first/ig"] == theirs["explain/drift_cosine_first/ig"]


def test_the_state_for_checkpoints_is_the_same(trainings: dict[str, Trained]) -> None:
    ours, theirs = (trainings[name].watch.state_dict() for name in ("beside", "inline"))  # type: ignore[union-attr]
    assert ours.keys() == theirs.keys()
    assert_equal(ours["history"], theirs["history"])
    assert_equal(ours["pictures"], theirs["pictures"])
    assert ours["schedule"]["last"] == theirs["schedule"]["last"] == 8


class Asking:
    """The other end of the pipe, in this process."""

    def __init__(self, kind: str, device: str | None) -> None:
        self.memory, self.said = SharedMemory(), list[str]()
        self._asked = kind, device

    def receive(self) -> tuple[str, SharedMemory, Layout, str | None]:
        kind, device = self._asked
        return kind, self.memory, self.memory.write([torch.ones(2)] if kind == "known" else NoJob()), device

    def say(self, kind: str, *rest: Any) -> None:
        self.said.append(kind)


class NoJob:
    """Fails when it begins."""

    def begin(self, device: str | None) -> None:
        raise ArithmeticError("not today")


@pytest.mark.parametrize("kind", ["known", "explain"])
def test_the_process_reads_on_its_device_and_gives_memory_of_a_gpu_back_also_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    events, read = list[Any](), SharedMemory.read
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", events.append)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("given back"))
    monkeypatch.setattr(SharedMemory, "read", lambda *given: events.append("read") or read(*given))
    other = Asking(kind, "cuda:1")
    process._served(other, Outcome(()))  # type: ignore[arg-type]
    assert events == [torch.device("cuda:1"), "read", "given back"]
    assert other.said == ([] if kind == "known" else ["failed"])
    assert other.memory.descriptor == -1


def test_only_a_gpu_becomes_the_current_device(monkeypatch: pytest.MonkeyPatch) -> None:
    current = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name in ("cpu", "meta", "cuda:1", "cuda"):
        compute_on(torch.device(name))
    assert current == [torch.device("cuda:1")]


@pytest.mark.usefixtures("no_process")
def test_the_device_of_the_module_is_the_current_one_while_it_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = list[torch.device]()
    monkeypatch.setattr("lightning_explain.monitor.job.compute_on", current.append)
    monkeypatch.setattr(Here, "begins", True)
    fitted(tmp_path, monitor_of_digits(beside=True, when_busy="wait"))
    assert current
    assert set(current) == {torch.device("cpu")}


class OnGpu(MixedPrecision):
    """Autocast as a training on a GPU has it, without the scaler, which looks for that GPU."""

    def __init__(self, precision: str) -> None:
        super().__init__("bf16-mixed", "cuda")
        self.precision: Any = precision


def test_autocast_is_that_of_the_device_on_which_the_process_computes(tmp_path: Path) -> None:
    layer, x = torch.nn.Linear(3, 2), torch.rand(4, 3)
    dtypes = dict[tuple[str, str | None], torch.dtype]()
    for precision in ("bf16-mixed", "16-mixed"):
        mine = trainer(tmp_path)
        mine.strategy.precision_plugin = OnGpu(precision)
        for device in ("cpu", "cuda:1"):
            context, differs = forward_context(mine, device)
            assert bool(differs) == ((precision, device) == ("16-mixed", "cpu"))
        context, differs = forward_context(mine, "cpu")
        with pickle.loads(pickle.dumps(context))():
            dtypes[precision, differs] = layer(x).dtype
    assert dtypes == {
        ("bf16-mixed", ""): torch.bfloat16,
        ("16-mixed", "float32 on cpu, not 16-mixed as in the training"): torch.float32,
    }


@pytest.mark.usefixtures("no_process")
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'", "ignore:CUDA is not available")
def test_another_precision_than_that_of_the_training_is_announced_and_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = monitor_of_digits(beside="cpu", when_busy="wait")
    fitted(tmp_path, watch, plugins=[OnGpu("16-mixed")], max_epochs=1)
    told = [line for line in caplog.messages if "float32 on cpu, not 16-mixed as in the training" in line]
    assert len(told) == 1
    (report,) = load_reports(tmp_path / "explain")
    assert report.run is not None
    assert report.run.precision == "float32 on cpu, not 16-mixed as in the training"
    assert Here.contexts[-1] is nullcontext


# -- what cannot be ----------------------------------------------------------------------------------------------------


class Locked(DigitModule):
    """Holds what cannot be pickled, two attributes deep."""

    def __init__(self) -> None:
        super().__init__()
        self.net.cache = {"lock": threading.Lock()}  # type: ignore[assignment]


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> list[Here]:
    """In the place of the worker process one that does its jobs here, when it is asked whether they are done."""
    monkeypatch.setattr(Here, "workers", [])
    monkeypatch.setattr(beside, "Worker", Here)
    return Here.workers


def fitted(root: Path, *callbacks: pl.Callback, module: pl.LightningModule | None = None, **arguments: Any) -> Any:
    finished = trainer(root, *callbacks, **{"max_epochs": 2, **arguments})
    finished.fit(DigitModule() if module is None else module, **loaders())
    return finished


def steps(watch: ExplanationMonitor, root: Path) -> list[int | None]:
    folder = root / "explain"
    return [report.step for report in load_reports(folder)] if folder.exists() else []


@pytest.mark.usefixtures("no_process")
def test_what_cannot_be_pickled_is_refused_before_training_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"the module.net.cache.lock cannot be pickled .*use beside=False"):
        fitted(tmp_path, monitor_of_digits(beside=True), module=Locked())
    assert Here.workers[-1].closed


class Compiler:
    """Counts the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def test_a_module_that_is_compiled_as_a_whole_is_explained_as_it_is_and_stays_compiled(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"metrics": [], "methods": ["Saliency"], "every_n_train_steps": 2, "at_start": True}
    watches = {"plain": None, "beside": monitor_of_digits(beside=True, when_busy="wait", **arguments)}
    states, graphs = list[Any](), list[int]()
    for name, watch in watches.items():
        torch.manual_seed(0)
        module, compiler, recorder = DigitModule(), Compiler(), Recorder()
        compiled: Any = torch.compile(module, backend=compiler)
        fitted(tmp_path / name, *filter(None, [watch]), recorder, module=compiled, max_epochs=1)
        states.append(recorder.states)
        graphs.append(compiler.graphs)
        torch._dynamo.reset()
        assert vars(module).keys() >= {"forward", "training_step"}
    assert_equal(states[1], states[0])
    assert graphs[1] >= graphs[0] > 0
    torch.manual_seed(0)
    fitted(tmp_path / "inline", monitor_of_digits(**arguments), module=DigitModule(), max_epochs=1)
    ours, theirs = (load_reports(tmp_path / name / "explain") for name in ("beside", "inline"))
    assert [report.step for report in ours] == [report.step for report in theirs] == [0, 2, 4]
    for a, b in zip(ours, theirs, strict=True):
        assert_equal(a.attributions, b.attributions)


def test_only_what_lightning_put_into_a_compiled_module_is_not_sent() -> None:
    module, own = DigitModule(), lambda x: x
    assert eager(module, vars(module)) == vars(module)
    module.predict_step = own  # type: ignore[method-assign]
    before = dict(vars(module))
    from_compiled(torch.compile(module, backend="eager"))  # type: ignore[arg-type]
    assert vars(module).keys() - before.keys() >= {"forward", "training_step", "validation_step", "test_step"}
    sent = eager(module, vars(module))
    assert {name: sent[name] for name in before} == before
    assert sent.keys() - before.keys() <= {"_is_torch_compile"}
    assert eager(module.net, vars(module.net)) == vars(module.net)


class Untrained(DigitModule):
    """A module that must not be trained."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("a batch")


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("at_start", [False, True])
def test_what_the_process_cannot_read_is_refused_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_start: bool
) -> None:
    monkeypatch.setattr(Here, "trial", ModuleNotFoundError("No module named 'mine'"))
    with pytest.raises(
        TypeError, match=r"cannot read the model \(ModuleNotFoundError: No module named 'mine'\).*beside=False"
    ):
        fitted(tmp_path, monitor_of_digits(beside=True, at_start=at_start), module=Untrained())
    assert Here.workers[-1].closed


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    "watcher",
    [
        pl.callbacks.ModelCheckpoint(monitor="explain/infidelity/saliency", mode="min"),
        pl.callbacks.EarlyStopping("explain/infidelity/saliency"),
    ],
    ids=lambda watcher: type(watcher).__name__,
)
def test_what_reads_a_score_at_once_is_refused(tmp_path: Path, watcher: pl.Callback) -> None:
    with pytest.raises(ValueError, match=r"'explain/infidelity/saliency'.* it arrives later. Use beside=False"):
        fitted(tmp_path, monitor_of_digits(beside=True), watcher)


@pytest.mark.usefixtures("no_process")
def test_an_alert_that_would_stop_too_late_is_refused(tmp_path: Path) -> None:
    alerts = [{"metric": "infidelity/saliency", "above": 0.0, "action": "stop"}]
    with pytest.raises(ValueError, match=r'action="stop"\) would stop the training too late.* action="log"'):
        fitted(tmp_path, monitor_of_digits(beside=True, alerts=alerts))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beside": "gpu?"}, 'beside=\'gpu\\?\'.*"cpu" or "cuda:1"'),
        ({"beside": 1.0}, "beside=1.0"),
        ({"when_busy": "queue"}, "when_busy='queue'.*'skip'.*'wait'"),
    ],
)
def test_wrong_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        monitor_of_digits(**given)


@pytest.mark.usefixtures("no_process")
def test_the_pass_size_is_measured_with_the_first_explanation_and_what_stays_the_same_is_sent_once(
    tmp_path: Path,
) -> None:
    arguments: dict[str, Any] = {"when_busy": "wait", "every_n_train_steps": 2, "max_examples_per_pass": "auto"}
    watch = monitor_of_digits(beside=True, **arguments)
    fitted(tmp_path, watch)
    sizes = {report.run.pass_size for report in load_reports(tmp_path / "explain") if report.run is not None}
    assert sizes == {watch.state_dict()["pace"]}
    # The second time with the size.
    assert Here.workers[-1].sent == ["known", "try", "explain", "known", "explain", "explain", "explain"]


# -- when the worker is busy, fails or is slow -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_process")
def test_an_explanation_that_is_due_while_one_is_made_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Looked at after steps 3, 4 and 4 again, because another is due then.
    monkeypatch.setattr(Here, "plan", [None, None, None])
    watch = monitor_of_digits(beside=True, every_n_train_steps=2)
    fitted(tmp_path, watch)
    assert steps(watch, tmp_path) == [2, 6, 8]
    assert "1 explanations were skipped, because the one before was not done" in caplog.text


@pytest.mark.usefixtures("no_process")
def test_pictures_are_written_by_the_training_where_the_process_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(self: EventFile, *parts: bytes) -> None:
        if any("_encoded" in frame.name for frame in traceback.extract_stack()):
            raise OSError("no room")
        written(self, *parts)

    written = EventFile.append
    monkeypatch.setattr(EventFile, "append", append)
    trained(tmp_path, watching(beside=True, metrics=[], methods=["Saliency"]))
    assert [step for step, _ in pictures(tmp_path)["explain_maps/saliency"]] == [0, 2, 4, 6, 8]


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(("news", "taken"), [([False, True], 5), ([False, False, False], 6)], ids=str)
def test_an_explanation_is_taken_after_the_first_batch_with_news_of_it_or_when_the_next_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, news: list[bool], taken: int
) -> None:
    class Noting(pl.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            reports.append(watch.last_report)

    # Asked once after each batch from step 4 on; the next explanation is due at step 6.
    left, reports = list(news), list[Report | None]()
    monkeypatch.setattr(Here, "has_news", lambda self: left.pop(0) if left else False)
    watch = watching(beside=True, metrics=[], methods=["Saliency"], every_n_train_steps=3, at_start=False)
    trained(tmp_path, watch, Noting())
    assert [report is not None for report in reports] == [step >= taken for step in range(1, 9)]


def test_the_end_of_the_process_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_LOOK_EVERY", 0.0)
    worker = beside.Worker()
    assert not worker.has_news()
    worker.process.kill()
    worker.process.wait()
    assert worker.has_news()
    worker.close()


def test_a_process_that_says_nothing_for_long_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_LOOK_EVERY", 0.0)
    worker = beside.Worker()
    assert not worker.has_news()
    monkeypatch.setattr(beside, "PATIENCE", 0.0)
    assert worker.has_news()
    worker.close()


@pytest.mark.parametrize("computed", [None, 0.0, 9.0])
def test_a_process_hangs_if_it_says_nothing_and_is_known_not_to_compute(
    monkeypatch: pytest.MonkeyPatch, computed: float | None
) -> None:
    monkeypatch.setattr(beside, "PATIENCE", 1e-9)
    monkeypatch.setattr(beside, "seconds_of", lambda process: computed)
    worker = beside.Worker()
    worker._computed = 0.0
    if computed == 0:
        with pytest.raises(WorkerError, match="it did nothing for 0 seconds"):
            worker.message(0.0)
    else:
        assert worker.message(0.0) is None
    worker.close()


def test_a_process_that_survives_being_killed_is_left_behind_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that waits for a device; training does not wait with it."""

    class Uninterruptible(subprocess.Popen[bytes]):
        killed = False

        def kill(self) -> None:
            Uninterruptible.killed = True

        def wait(self, timeout: float | None = None) -> int:
            assert timeout is not None, "for ever"
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Uninterruptible)
    worker = beside.Worker()
    with pytest.warns(RuntimeWarning, match=rf"process {worker.process.pid} .* does not end although it was killed"):
        worker.close()
    assert Uninterruptible.killed
    os.kill(worker.process.pid, signal.SIGKILL)
    os.waitpid(worker.process.pid, 0)
    worker.process.returncode = -signal.SIGKILL


@pytest.mark.usefixtures("no_process")
def test_or_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Here, "plan", [None, None, None, None])
    watch = monitor_of_digits(beside=True, every_n_train_steps=2, when_busy="wait")
    fitted(tmp_path, watch)
    assert steps(watch, tmp_path) == [2, 4, 6, 8]


def test_the_wait_for_an_explanation_counts_before_the_next_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process: list[Here]
) -> None:
    class Slow(Here):
        """It is done after ten seconds of waiting."""

        def message(self, seconds: float) -> tuple[Any, ...] | None:
            if seconds and self.plan and self._todo[0][0] == "explain":
                clock.go_on(10.0)
            return super().message(seconds)

    class Batches(pl.Callback):
        def on_train_batch_start(self, *arguments: Any) -> None:
            clock.go_on(1.0)

    clock = Clock(monkeypatch)
    # At the look after step 2, and where it is waited for because the next is due.
    monkeypatch.setattr(Here, "plan", [None, None])
    monkeypatch.setattr(beside, "Worker", Slow)
    watch = monitor_of_digits(beside=True, every_n_train_steps=1, when_busy="wait", max_overhead=0.5)
    fitted(tmp_path, watch, Batches())
    assert steps(watch, tmp_path) == [1]
    schedule = watch.state_dict()["schedule"]
    assert schedule["explain_seconds"] == pytest.approx(10.0)
    assert schedule["not_before"] == 40, "20 seconds of explaining are half of 40 steps of a second"


@pytest.mark.usefixtures("no_process")
def test_a_worker_that_fails_is_started_once_more_with_the_same_job_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_process: list[Here]
) -> None:
    monkeypatch.setattr(Here, "plan", [WorkerError("it was ended by signal 9"), None, None, None])
    watch = monitor_of_digits(beside=True, every_n_train_steps=2, when_busy="wait")
    with pytest.warns(RuntimeWarning, match=r"failed: it was ended by signal 9. It is started once more"):
        fitted(tmp_path, watch)
    assert steps(watch, tmp_path) == [2, 4, 6, 8]
    monkeypatch.setattr(Here, "plan", [WorkerError("it died"), WorkerError("it died again")])
    with pytest.warns(RuntimeWarning) as record:
        fitted(tmp_path / "second", watch)
    assert any(
        "is given up: it died again. Nothing more is explained in this training" in text for text in told_in(record)
    )
    assert steps(watch, tmp_path / "second") == []
    assert all(worker.closed for worker in Here.workers)


@pytest.mark.usefixtures("no_process")
def test_a_worker_that_cannot_be_started_once_more_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> Here:
        if Here.workers:
            refused.append(len(Here.workers))
            raise OSError("Cannot allocate memory")
        return Here()

    refused = list[int]()
    monkeypatch.setattr(beside, "Worker", start)
    monkeypatch.setattr(Here, "plan", [WorkerError("it died")])
    watch = monitor_of_digits(beside=True, every_n_train_steps=2)
    with pytest.warns(RuntimeWarning) as record:
        fitted(tmp_path, watch)
    given_up = "is given up: it died, and no other could be started: Cannot allocate memory. Nothing more is explained"
    assert any(given_up in text for text in told_in(record))
    assert refused == [1]
    assert steps(watch, tmp_path) == []


@pytest.mark.usefixtures("no_process")
def test_training_waits_no_longer_than_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "DEADLINE", 0.3)
    monkeypatch.setattr(Here, "plan", [None] * 10**6)
    watch, started = monitor_of_digits(beside=True, every_n_train_steps=2), time.monotonic()
    with pytest.warns(RuntimeWarning, match=r"is given up: it was not done after 0 seconds"):
        fitted(tmp_path, watch)
    assert time.monotonic() - started < 20
    assert steps(watch, tmp_path) == []


@pytest.mark.usefixtures("no_process")
def test_what_fails_there_is_counted_as_if_it_failed_here(tmp_path: Path) -> None:
    methods = {"saliency": m.Saliency(abs=False), "none": Failing()}
    watch = monitor_of_digits(beside=True, methods=methods, metrics=[], every_n_train_steps=1)
    with pytest.warns(RuntimeWarning) as record:
        fitted(tmp_path, watch)
    told = told_in(record)
    assert [text.splitlines()[0][:60] for text in told] == [
        "ExplanationMonitor 'explain': 'none' failed and is left out ",
        "ExplanationMonitor 'explain': 'none' failed 3 times in a row",
    ]
    assert "no map today" in told[0]


@pytest.mark.usefixtures("no_process")
def test_a_checkpoint_that_is_saved_meanwhile_does_not_count_the_explanation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is resumed from it makes the explanation again, with the same numbers."""
    monkeypatch.setattr(Here, "plan", [None] * 3)
    save = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    watch = monitor_of_digits(beside=True, every_n_train_steps=4)
    fitted(tmp_path, watch, save)
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["callbacks"][watch.state_key]
    assert saved["schedule"]["last"] == 0
    again = monitor_of_digits(beside=True, every_n_train_steps=4)
    resumed = trainer(tmp_path / "resumed", again, save, max_epochs=2)
    resumed.fit(DigitModule(), **loaders(), ckpt_path=tmp_path / "step=4.ckpt", **SAFE)
    ours, theirs = load_reports(tmp_path / "resumed" / "explain"), load_reports(tmp_path / "explain")
    assert [report.step for report in ours] == [report.step for report in theirs] == [4, 8]
    assert_equal(ours[0].attributions, theirs[0].attributions)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("schedule", [{"every_n_epochs": 1}, {"every_n_train_steps": 4}], ids=["epochs", "steps"])
def test_an_explanation_that_training_has_overtaken_when_a_checkpoint_is_saved_is_missed_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: dict[str, int]
) -> None:
    """Never made of the later weights, with the epoch of the earlier ones."""
    monkeypatch.setattr(Here, "plan", [None] * 3)
    save = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=6, filename="{step}")
    first = monitor_of_digits(beside=True, **schedule)
    fitted(tmp_path, first, save)
    assert steps(first, tmp_path) == [4, 8]
    resumed = trainer(tmp_path / "resumed", monitor_of_digits(beside=True, **schedule), save, max_epochs=2)
    with pytest.warns(UserWarning, match=r"the explanation of step 4 was still being made .*It is not made again"):
        resumed.fit(DigitModule(), **loaders(), ckpt_path=tmp_path / "step=6.ckpt", **SAFE)
    assert [(report.epoch, report.step) for report in load_reports(tmp_path / "resumed" / "explain")] == [(1, 8)]


@pytest.mark.filterwarnings("ignore:.*lazy layers without weights")
@pytest.mark.usefixtures("no_process")
def test_a_lazy_model_is_explained_once_its_first_batch_has_given_it_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    watch = monitor_of_digits(beside=True, every_n_train_steps=2)
    fitted(tmp_path, watch, module=DigitModule(net), max_epochs=1)
    assert steps(watch, tmp_path) == [2, 4]
    assert Here.workers[-1].sent == ["known", "try", "explain", "known", "explain"]


@pytest.mark.usefixtures("no_process")
def test_an_error_of_the_training_ends_the_worker(tmp_path: Path) -> None:
    class Broken(DigitModule):
        def on_train_epoch_end(self) -> None:
            raise ArithmeticError("of the training")

    with pytest.raises(ArithmeticError, match="of the training"):
        fitted(tmp_path, monitor_of_digits(beside=True), module=Broken())
    assert Here.workers[-1].closed


@pytest.mark.usefixtures("no_process")
def test_outside_of_fit_and_switched_off_there_is_no_worker(tmp_path: Path) -> None:
    watch = monitor_of_digits(beside=True)
    trainer(tmp_path, watch).validate(DigitModule(), loaders()["val_dataloaders"], verbose=False)
    assert watch.last_report is not None
    fitted(tmp_path, monitor_of_digits(beside=True, enabled=False))
    assert Here.workers == []
