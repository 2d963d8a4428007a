"""Checkpoints of a finished training are explained as a monitor would have explained them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from forked import on_ranks
from lightning_explain import ExplanationMonitor, Report, load_reports, replay
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.monitor.checkpoints import find
from states import assert_equal
from training import QUIET, loader, points, trainer

pytestmark = QUIET


class Net(pl.LightningModule):
    """Reads digits, whatever the shape of its layer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv, self.norm, self.head = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Linear(width * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx), batch_size=8)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


def watch(**arguments: Any) -> ExplanationMonitor:
    """Everything that looks back, or draws at random."""
    given: dict[str, Any] = {
        "methods": {"ig": m.IntegratedGradients(n_steps=4), "shap": m.GradientShap(n_samples=2)},
        "metrics": [q.Infidelity(n_perturb_samples=16), q.Drift()],
        "probe": [1, 5, 9],
        "max_examples_per_pass": 8,
    }
    return ExplanationMonitor(**{**given, **arguments})


def data() -> Any:
    return loader(100, 24)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A training with a monitor, its checkpoints, and its reports."""
    root = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    every = ModelCheckpoint(root / "checkpoints", filename="{epoch}", monitor="val_loss", save_top_k=-1, save_last=True)
    training = trainer(root, watch(), every, max_epochs=3)
    training.fit(Net(), loader(0, 32), data())
    yield SimpleNamespace(checkpoints=root / "checkpoints", reports=load_reports(root / "explain"), root=root)
    torch.set_num_threads(threads)


def numbers(report: Report) -> dict[str, Any]:
    """All that a report says, but for seconds."""
    left = ("seconds", "run", "probe", "modalities")
    return {f.name: getattr(report, f.name) for f in fields(Report) if f.name not in left}


def assert_same(folder: Path, expected: list[Report]) -> None:
    """All numbers are the same, bit for bit."""
    assert_equal([numbers(report) for report in load_reports(folder)], [numbers(report) for report in expected])


def lines_in(folder: Path) -> dict[int, Any]:
    """The scalars of each step, but for seconds; of two lines of one step the later one is valid."""
    lines = map(json.loads, (folder / "scalars.jsonl").read_text().splitlines())
    timed = ("explain/seconds", "explain/overhead")
    return {line["step"]: {k: v for k, v in line["scalars"].items() if k not in timed} for line in lines}


def pictures_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


# -- the same numbers -------------------------------------------------------------------------------------------------


def test_a_replay_gives_the_numbers_and_files_of_the_monitored_training(run: SimpleNamespace, tmp_path: Path) -> None:
    done = replay(run.checkpoints, Net(), data(), watch(), output=tmp_path, logger=False)
    assert done.folder == tmp_path / "explain"
    assert ([one.step for one in done.explained], done.stored, done.left_out) == ([4, 8, 12], [], {})
    assert_same(done.folder, run.reports)
    theirs = run.root / "explain"
    assert {p.relative_to(theirs) for p in theirs.rglob("*")} == {
        p.relative_to(done.folder) for p in done.folder.rglob("*")
    }
    assert lines_in(done.folder) == lines_in(theirs)
    assert pictures_in(done.folder) == pictures_in(theirs)
    assert "history/ig/step=00000012.png" in pictures_in(theirs)


class Deadly(Sink):
    """Ends the process as nothing can prevent it, before or after a step is written."""

    def __init__(self, prepares: int | None = None, writes: int | None = None) -> None:
        self.prepares, self.writes = prepares, writes

    def prepare(self, publication: Publication) -> None:
        if publication.step == self.prepares:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, publication: Publication) -> None:
        if publication.step == self.writes:
            os.kill(os.getpid(), signal.SIGKILL)


def replay_and_die(run: SimpleNamespace, folder: Path, **when: int) -> None:
    replay(run.checkpoints, Net(), data(), watch(sinks=[Deadly(**when)]), output=folder, logger=False)


def test_a_replay_that_was_killed_goes_on_and_gives_the_same_files(run: SimpleNamespace, tmp_path: Path) -> None:
    for when in ({"prepares": 8}, {"writes": 12}):
        process = get_context("fork").Process(target=replay_and_die, args=(run, tmp_path), kwargs=when)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    done = replay(run.checkpoints, Net(), data(), watch(), output=tmp_path, logger=False)
    assert ([one.step for one in done.stored], [one.step for one in done.explained]) == ([4, 8], [12])
    assert_same(done.folder, run.reports)
    assert lines_in(done.folder) == lines_in(run.root / "explain")
    assert pictures_in(done.folder) == pictures_in(run.root / "explain")
    assert not list(done.folder.rglob(".*"))


def on_rank(run: SimpleNamespace, folder: Path, rank: int) -> list[int]:
    """What a process that ``torchrun --nproc-per-node 2`` started does."""
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in launched.items()} | {"TORCHELASTIC_RUN_ID": "test"})
    given = {"accelerator": "cpu", "max_steps": 3}
    done = replay(run.checkpoints, Net(), data(), watch(), output=folder, logger=False, trainer=given)
    return [one.step for one in done.explained]


@pytest.mark.ddp
def test_two_ranks_divide_the_samples_and_give_the_same_numbers(run: SimpleNamespace, tmp_path: Path) -> None:
    assert on_ranks(2, partial(on_rank, run, tmp_path), tmp_path) == [[4, 8, 12]] * 2
    for report, alone in zip(load_reports(tmp_path / "explain"), run.reports, strict=True):
        assert (report.step, report.epoch, report.fingerprint) == (alone.step, alone.epoch, alone.fingerprint)
        for name, value in alone.attributions.items():
            torch.testing.assert_close(report.attributions[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))
        assert report.scalars() == pytest.approx(alone.scalars(), rel=3e-4, nan_ok=True)


def cheap(**arguments: Any) -> ExplanationMonitor:
    """One map, one picture."""
    return watch(**{"methods": ["Saliency"], "metrics": [], "probe": [1], **arguments})


def test_jobs_divide_the_checkpoints_and_give_the_numbers_of_one(run: SimpleNamespace, tmp_path: Path) -> None:
    for number, steps in ((1, [8]), (0, [4, 12])):
        done = replay(run.checkpoints, Net(), data(), cheap(), output=tmp_path / "two", logger=False, part=(number, 2))
        assert [one.step for one in done.explained] == steps
    whole = replay(run.checkpoints, Net(), data(), cheap(), output=tmp_path / "one", logger=False)
    assert_same(done.folder, load_reports(whole.folder))
    assert len(json.loads((done.folder / "run.json").read_text())["runs"]) == 1
    with pytest.raises(ValueError, match=r"'drift' compares each checkpoint with the one before, which another job"):
        replay(run.checkpoints, Net(), data(), watch(), output=tmp_path, part=(0, 2))


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_only_what_is_stored_at_equal_settings_is_kept(run: SimpleNamespace, tmp_path: Path) -> None:
    again = partial(replay, run.checkpoints, Net(), data(), output=tmp_path, logger=False)
    again(monitor=cheap(max_examples_per_pass=3))
    before = pictures_in(tmp_path)
    torch.set_num_threads(2)
    done = again(monitor=cheap(max_examples_per_pass="auto", keep_last=1, cmap="viridis"))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert ([one.step for one in done.stored], done.explained) == ([4, 8, 12], [])
    assert load_reports(tmp_path)[0].run.pass_size == 3  # type: ignore[union-attr]
    assert pictures_in(tmp_path) == before
    with pytest.warns(UserWarning, match=r"because they have other fingerprint, .*seed: steps \[4, 8, 12\]"):
        done = again(monitor=cheap(probe=[2], seed=1))
    assert len(done.explained) == 3
    os.utime(tmp_path / "explain" / "step=00000008.safetensors", (0, 0))
    with pytest.warns(UserWarning, match=r"computed again, because their checkpoints are newer: steps \[8\]"):
        done = again(monitor=cheap(probe=[2], seed=1))
    assert [one.step for one in done.explained] == [8]


def test_reports_lie_beside_the_folder_of_checkpoints_with_curves_for_tensorboard(
    run: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(run.checkpoints / "epoch=1.ckpt", tmp_path / "checkpoints" / "only.ckpt")
    done = replay(tmp_path / "checkpoints", Net(), data(), {"methods": ["Saliency"], "metrics": [], "probe": [1]})
    assert done.folder == tmp_path / "explain"
    assert {step for tag, steps in points(tmp_path).items() if "seconds" in tag for step in steps} == {8}


# -- which checkpoints ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that were damaged, copied, or are of something else."""
    folder = tmp_path_factory.mktemp("mixed")
    content = torch.load(run.checkpoints / "epoch=0.ckpt", weights_only=True)
    (folder / "b").mkdir()
    for name in ("z.ckpt", "last.ckpt", "b/a.ckpt"):
        torch.save({**content, "global_step": 7}, folder / name)
    torch.save({**content, "global_step": 7, "epoch": 5}, folder / "after.ckpt")
    other = {name: value + 1 for name, value in content["state_dict"].items()}
    torch.save({**content, "global_step": 7, "state_dict": other}, folder / "other.ckpt")
    torch.save({**content, "global_step": 7, "epoch": 5, "state_dict": other}, folder / "later.ckpt")
    torch.save({**content, "global_step": 3}, folder / "first.ckpt")
    torch.save({**content, "global_step": 9, "state_dict": Net(3).state_dict()}, folder / "wide.ckpt")
    torch.save(content["state_dict"], folder / "weights.ckpt")
    torch.save({"state_dict": {}}, folder / "timeless.ckpt")
    torch.save({**content, "code": PurePosixPath("x")}, folder / "code.ckpt")
    (folder / "cut.ckpt").write_bytes((folder / "z.ckpt").read_bytes()[:9000])
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "sharded.ckpt").mkdir()
    return folder


def test_checkpoints_are_found_once_in_the_order_of_steps_and_others_are_named(mixed: Path) -> None:
    found, left_out = find(mixed)
    names = [str(one.path.relative_to(mixed)) for one in found]
    assert names == ["first.ckpt", "b/a.ckpt", "later.ckpt", "wide.ckpt"]
    assert [(one.step, one.epoch) for one in found] == [(3, 0), (7, 0), (7, 5), (9, 0)]
    why = {str(path.relative_to(mixed)): text for path, text in left_out.items()}
    assert {name: text[:30] for name, text in why.items()} == {
        "code.ckpt": "it holds more than tensors and",
        "cut.ckpt": "it cannot be loaded (OSError: ",
        "other.ckpt": "it has the step and the epoch ",
        "sharded.ckpt": "it is a folder, as sharded mod",
        "text.ckpt": "it cannot be loaded (torch.sav",
        "timeless.ckpt": "it has no epoch, so it is not ",
        "weights.ckpt": "it has no state_dict, so it is",
    }
    assert "of 'a.ckpt', but other weights: keep runs apart" in why["other.ckpt"]
    assert "(pathlib.PurePosixPath)" in why["code.ckpt"]
    assert all(len(text) < 300 for text in why.values())
    found, left_out = find([mixed / "code.ckpt", mixed / "code.ckpt"], weights_only=False)
    assert ([one.step for one in found], left_out) == ([4], {})
    with pytest.raises(FileNotFoundError, match=r"No checkpoints \(\*\.ckpt\) in .*give their folder"):
        find([])


def test_what_does_not_fit_is_named_and_the_others_are_explained(mixed: Path, tmp_path: Path) -> None:
    given = [mixed / name for name in ("first.ckpt", "wide.ckpt", "later.ckpt")]
    done = replay(given, Net(), data(), cheap(), output=tmp_path, logger=False)
    assert [(one.step, one.epoch) for one in done.explained] == [(3, 0), (7, 5)]
    ((path, why),) = done.left_out.items()
    assert path.name == "wide.ckpt"
    assert why.startswith("it does not fit the model: Error(s) in loading state_dict for Net: size mismatch for conv")
    assert len(why) <= 300
    with pytest.raises(ValueError, match=r"None of the checkpoints can be explained: 'wide.ckpt': it does not fit"):
        replay(mixed / "wide.ckpt", Net(), data(), cheap(), output=tmp_path, logger=False)


class Loose(Net):
    """Its head is not in checkpoints."""

    strict_loading = False  # type: ignore[assignment]


def test_what_a_checkpoint_lacks_is_that_of_the_module_and_not_that_of_the_checkpoint_before(
    run: SimpleNamespace, tmp_path: Path
) -> None:
    content = torch.load(run.checkpoints / "epoch=1.ckpt", weights_only=True)
    weights = {name: value for name, value in content["state_dict"].items() if "head" not in name}
    torch.save({**content, "state_dict": weights}, tmp_path / "part.ckpt")
    model = Loose()
    expected = model.head.weight.detach().clone()
    replay([run.checkpoints / "epoch=0.ckpt", tmp_path], model, data(), cheap(), output=tmp_path, logger=False)
    assert torch.equal(model.head.weight, expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": nn.Linear(2, 2)}, TypeError, "model is a Linear; give the LightningModule that was trained"),
        ({"monitor": {"enabled": False}}, ValueError, "enabled=False, so there is nothing to replay"),
        ({"part": (2, 2)}, ValueError, r"part\[0\]=2"),
        ({"part": 3}, ValueError, r"part=3; give two numbers \(i, n\)"),
        ({"checkpoints": "nowhere"}, ValueError, "None of the checkpoints can be explained: 'nowhere': it cannot be"),
        (
            {"trainer": {"strategy": ModelParallelStrategy()}},
            ValueError,
            "ModelParallelStrategy shards the model, and a replay",
        ),
        ({"monitor": {"methods": {"cam": {"name": "LayerGradCam", "layer": "none"}}}}, ValueError, "none"),
    ],
)
def test_what_cannot_be_replayed_is_refused(
    change: dict[str, Any], error: type[Exception], text: str, run: SimpleNamespace, tmp_path: Path
) -> None:
    given = {"checkpoints": run.checkpoints, "model": Net(), "data": data(), "output": tmp_path, "logger": False}
    with pytest.raises(error, match=text):
        replay(**{**given, **change})
