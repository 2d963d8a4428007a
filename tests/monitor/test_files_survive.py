"""Files are whole or absent after a crash or on a full disk, lie in the run's directory only, and hold no code."""

from __future__ import annotations

import ast
import multiprocessing
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

import lightning_explain
from disk import full_disk
from lightning_explain import ExplanationMonitor, ProbeSelection, Report, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.store import report_files
from lightning_explain.store.files import safe_name
from lightning_explain.store.report_files import save_report
from training import QUIET, DigitModule, fit, points, steps_in, told_in
from training import monitor_of_digits as monitor

pytestmark = QUIET

PACKAGE = Path(lightning_explain.__file__).parent


def report(step: int = 1, size: int = 100_000) -> Report:
    one = torch.zeros(1, dtype=torch.long)
    return Report({"it": torch.full((1, size), float(step))}, {}, {}, torch.ones(1), one, one, one, step=step)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_report_that_does_not_fit_on_the_disk_leaves_the_former_one(tmp_path: Path) -> None:
    path = save_report(report(), tmp_path)
    before = path.read_bytes()
    with full_disk(10_000), pytest.raises(Exception, match=r"(?i)file too large|os error 27"):
        save_report(report(), tmp_path)
    assert path.read_bytes() == before
    assert files(tmp_path) == {"step=00000001.safetensors"}


@pytest.mark.filterwarnings("ignore:.*has a map or score")
def test_training_goes_on_when_the_disk_is_full_and_again_when_it_is_not(tmp_path: Path) -> None:
    class Filling(ExplanationMonitor):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                with full_disk(300):
                    return super().on_train_epoch_end(trainer, pl_module)
            return super().on_train_epoch_end(trainer, pl_module)

    watch = Filling(methods={"saliency": m.Saliency(abs=False)}, metrics=[q.Concentration()], probe=[0, 1])
    with pytest.warns(
        RuntimeWarning, match=r"(?s)(Saving the report|FilesSink) failed; training continues.*(?i:large|27)"
    ):
        finished = fit(tmp_path, watch, max_epochs=3)
    assert finished.current_epoch == 3
    reports = load_reports(tmp_path / "explain")
    assert [r.step for r in reports] == [4, 12]
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]


def test_what_was_not_written_for_lack_of_room_is_not_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    class Filling(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            full = 1 <= trainer.current_epoch <= 4
            monkeypatch.setattr(
                shutil, "disk_usage", lambda path: usage(path)._replace(free=2**20) if full else usage(path)
            )

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    with pytest.warns(RuntimeWarning, match="are left to the training") as told:
        fit(tmp_path, Filling(), monitor(), logger=logger, max_epochs=6, limit_train_batches=1, limit_val_batches=0)
    assert [text.split(" failed")[0].split(": ")[1] for text in told_in(told)] == [
        "Saving the report",
        "TensorBoardSink",
    ]
    assert points(tmp_path)["explain_run/seconds"] == steps_in(tmp_path / "run") == [1, 6]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_a_training_on_a_disk_that_we_fill_reaches_its_end_with_the_weights_it_would_have_had(
    kind: Any, small_disk: Path, tmp_path: Path
) -> None:
    def trained_in(root: Path, *callbacks: pl.Callback) -> dict[str, torch.Tensor]:
        pl.seed_everything(0)
        module = DigitModule()
        few = {"limit_train_batches": 1, "limit_val_batches": 1, "max_epochs": 25}
        assert fit(root, *callbacks, module=module, logger=kind(root), **few).current_epoch == 25
        return module.state_dict()

    expected = trained_in(tmp_path / "alone")
    with pytest.warns(RuntimeWarning, match="are left to the training"):
        found = trained_in(small_disk, monitor(probe=ProbeSelection(count=4)))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def killed(root: Path, step: int) -> None:
    """Writes a report, and dies while it writes the one of ``step``."""

    def cut(tensors: Any, path: Any, metadata: Any) -> None:
        Path(path).write_bytes(b"half a fi")
        os.kill(os.getpid(), signal.SIGKILL)

    save_report(report(1), root)
    report_files.save_file = cut
    save_report(report(step), root)


@pytest.mark.parametrize("step", [1, 2])
def test_a_process_killed_while_it_writes_leaves_whole_files_only(step: int, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path, step))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (found,) = load_reports(tmp_path)
    assert torch.equal(found.attributions["it"], report(1).attributions["it"])  # type: ignore[arg-type]
    save_report(report(step), tmp_path)
    assert all(not name.endswith(".tmp") or step == 2 for name in files(tmp_path))


ESCAPES = ["../../up", "..", "/etc/passwd", "C:\\up", "a/../../b", "con", "nul.txt", "a\0b", "~", "%2F", "ä" * 300, " "]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_leaves_its_folder_or_is_too_long_for_one(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / f"{safe_name(name)}.png").write_text("x")
    assert [path.parent for path in tmp_path.rglob("*.png")] == [inside]


def test_long_names_stay_different() -> None:
    assert safe_name("a" * 300) != safe_name("a" * 301)
    assert len(safe_name("ä" * 300).encode()) < 255


def test_a_run_with_names_that_lead_elsewhere_writes_into_its_own_directory(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    fit(root, monitor(name="../out", methods={"../../up": m.Saliency(abs=False), "/abs": m.InputXGradient()}))
    assert files(tmp_path) == {f"run/{name}" for name in files(root)}
    assert any(name.endswith(".png") for name in files(root))


class Moving(pl.Callback):
    """Goes to another working directory when a hook is called."""

    def __init__(self, hook: str, folder: Path) -> None:
        setattr(self, hook, lambda *arguments: os.chdir(folder))


class Silent(Logger):
    """A logger of a type that nobody knows."""

    name, version, save_dir = "mine", "one", "runs"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *arguments: Any, **more: Any) -> None:
        pass


LOGGERS: dict[str, Any] = {
    "none": lambda: False,
    "unknown": Silent,
}


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_fit_start"])
@pytest.mark.parametrize("kind", LOGGERS)
def test_a_run_stays_in_one_tree_when_training_changes_the_working_directory(
    kind: str, hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    fit(Path("run"), monitor(at_start=True), Moving(hook, tmp_path / "second"), logger=LOGGERS[kind](), max_epochs=2)
    written = {name for name in files(tmp_path) if "hparams" not in name}
    assert [name for name in written if not name.startswith("first/")] == []
    assert len([name for name in written if "step=" in name and name.endswith(".safetensors")]) == 3


ALIKE: dict[str, tuple[dict[str, Any], str]] = {
    "cases": ({"methods": {"IG": m.Saliency(), "ig": m.Saliency()}}, "method 'ig' and the method 'IG'"),
    "a caption": ({"methods": {"caption": m.Saliency()}}, "the method 'caption' and what the monitor itself"),
    "a table": ({"methods": {"table": m.Saliency()}}, "'table'"),
    "seconds": ({"methods": {"seconds": m.Saliency()}}, "'seconds'"),
    "overhead": ({"methods": {"Overhead": m.Saliency()}}, "'overhead'"),
    "a score": (
        {"methods": {"it": m.Saliency(), "infidelity/it": m.Saliency()}},
        "score 'infidelity' of 'it' and the method 'infidelity/it'",
    ),
    "a count": ({"metrics": {"nonfinite": q.Concentration()}}, "'nonfinite/saliency'"),
    "a count of undefined scores": (
        {"metrics": {"gini": q.Concentration(), "undefined/gini": q.Concentration()}},
        "what the monitor itself writes as 'undefined/gini/saliency' and the score 'undefined/gini' of 'saliency'",
    ),
    "metrics in other cases": (
        {"metrics": {"Gini": q.Concentration(), "gini": q.Concentration()}},
        "score 'gini' of 'saliency' and the score 'Gini' of 'saliency'",
    ),
    "a metric's further score": (
        {"metrics": {"c": q.Concentration(), "c_entropy": q.Agreement()}},
        "the score 'c_entropy' of 'saliency' and",
    ),
}


@pytest.mark.parametrize(("given", "message"), ALIKE.values(), ids=ALIKE.keys())
@pytest.mark.filterwarnings("ignore:.*hold no evidence against")
def test_names_for_one_place_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*give methods=... or metrics=... other names"):
        monitor(**given)


def test_monitors_whose_folders_may_be_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Monitors named 'Late' and 'late' would write to the same folder"):
        fit(tmp_path, monitor(name="late"), monitor(name="Late"))


# -- no code in files ----------------------------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Exchanges objects with a child of its own through a pipe, and no files.
WITH_ITS_CHILD = PACKAGE / "probes" / "child.py"
# Exchanges objects with a process of its own through memory that has no name.
WITH_THE_WORKER = PACKAGE / "core" / "shared_memory.py"
# Reads checkpoints with weights_only=True, unless the user says that they may run code (test_replay.py).
OF_CHECKPOINTS = PACKAGE / "monitor" / "checkpoints.py"


def unpickles(source: str) -> list[str]:
    """What in a module's source can read or write pickles."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in [*names, *module] if name.split(".")[0] in PICKLES]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            loads = call.endswith(("torch.load", "checkpoint")) and not call.endswith(".on_load_checkpoint")
            if call in ("torch.save", "np.load", "numpy.load") or (loads and not safe):
                found.append(call)
    return found


@pytest.mark.parametrize(
    "path",
    sorted({*PACKAGE.rglob("*.py")} - {WITH_ITS_CHILD, WITH_THE_WORKER, OF_CHECKPOINTS}),
    ids=lambda p: p.relative_to(PACKAGE).as_posix(),
)
def test_no_module_pickles(path: Path) -> None:
    assert unpickles(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "torch.save(1, 'x')",
        "import joblib.x",
    ],
)
def test_the_check_sees_a_pickle(source: str) -> None:
    assert unpickles(source)
    assert unpickles("torch.load('x', weights_only=True)") == []


def test_the_state_of_a_monitor_loads_with_weights_only(tmp_path: Path) -> None:
    watch = monitor(metrics=[q.Drift()], alerts=[{"metric": "drift_cosine_first/saliency", "below": -2}])
    fit(tmp_path, watch).save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][watch.state_key]
    assert state["history"]["first"].keys() == {"saliency"}
    assert state["alerts"] == {"drift_cosine_first/saliency below -2 for 1": {"count": 0, "first": None}}
