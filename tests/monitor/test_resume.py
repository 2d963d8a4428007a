"""What a checkpoint keeps of a monitor, and what is made of a checkpoint that is not as expected."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_explain import Alert, ExplanationMonitor, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import DigitNet, trained
from training import (
    QUIET,
    DigitModule,
    Failing,
    fit,
    loader,
    loaders,
    monitor,
    monitor_of_digits,
    report_of,
    steps_in,
    told_in,
    trainer,
)

pytestmark = QUIET
KEY = "ExplanationMonitor{'name': 'explain'}"
OFF = "'bad' failed 3 times in a row and is switched off"
State = dict[str, Any]


def resumed(root: Path, watch: Any, path: Path, epochs: int = 4, **data: Any) -> None:
    trainer(root, watch, max_epochs=epochs).fit(DigitModule(), **{**loaders(), **data}, ckpt_path=path)


def checkpoint(root: Path, change: Callable[[State], State] = lambda state: state, **arguments: Any) -> Path:
    """A checkpoint after two epochs, with the monitor's state changed."""
    run = fit(root, monitor(**arguments), max_epochs=2)
    run.save_checkpoint(root / "it.ckpt")
    return changed(root / "it.ckpt", root, change)


def changed(path: Path, root: Path, change: Callable[[State], State]) -> Path:
    """A copy of the checkpoint in this folder, with the monitor's state changed."""
    found = torch.load(path, weights_only=True)
    found["callbacks"][KEY] = change(found["callbacks"][KEY])
    torch.save(found, root / "it.ckpt")
    return root / "it.ckpt"


# -- what is kept --------------------------------------------------------------------------------------------------


def test_what_failed_before_a_checkpoint_counts_after_it(tmp_path: Path) -> None:
    methods = {"bad": Failing(), "good": m.Saliency(abs=False)}
    with pytest.warns(RuntimeWarning, match="'bad' failed and is left out"):
        path = checkpoint(tmp_path / "one", methods=methods)
    watch = monitor(methods=methods)
    with pytest.warns(RuntimeWarning) as told:
        resumed(tmp_path / "two", watch, path, epochs=3)
    assert OFF in told_in(told)[-1]
    assert watch.state_dict()["failures"] == {"bad": 3}


def test_what_is_switched_off_stays_off_in_a_resumed_run_and_is_said_again(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one", lambda state: {**state, "failures": {"bad": 3}})
    watch = monitor(methods={"bad": m.Saliency(abs=False), "good": m.InputXGradient()})
    with pytest.warns(RuntimeWarning, match=OFF):
        resumed(tmp_path / "two", watch, path)
    assert set(report_of(watch).attributions) == {"good"}


def test_a_new_training_begins_with_everything_switched_on(tmp_path: Path) -> None:
    watch = monitor()
    watch.load_state_dict({**watch.state_dict(), "failures": {"saliency": 3}})
    fit(tmp_path, watch)
    assert set(report_of(watch).attributions) == {"saliency"}


def test_a_resumed_run_goes_on_with_the_draws_of_the_checkpoint(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "one", seed=3)
    first, second = monitor(seed=3), monitor(seed=4)
    torch.manual_seed(0)
    resumed(tmp_path / "two", first, path, epochs=3)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="keeps the seed 3 of the checkpoint instead of 4"):
        resumed(tmp_path / "three", second, path, epochs=3)
    assert torch.equal(*(report_of(watch).scores["infidelity"]["saliency"] for watch in (first, second)))
    # Pictures over epochs go on, too, with the maps from before the checkpoint.
    before = torch.load(path, weights_only=True)["callbacks"][KEY]["pictures"]["kept"]
    after = [watch.state_dict()["pictures"]["kept"] for watch in (first, second)]
    assert [[past["epoch"] for past in kept] for kept in after] == [[0, 1, 2]] * 2
    for kept in after:
        assert all(
            torch.equal(now["weights"]["saliency"], then["weights"]["saliency"])
            for now, then in zip(kept, before, strict=False)
        )
    shown = [next(tmp_path.glob(f"{run}/**/history/saliency/*.png")).read_bytes() for run in ("two", "three")]
    assert shown[0] == shown[1]


# -- checkpoints of an epoch's last batch, before what is explained behind it ----------------------------------------


def plain() -> DigitModule:
    """A module whose training depends on nothing but its batches."""
    module = DigitModule(DigitNet())
    module.net.load_state_dict(trained().state_dict())
    module.net.dropout = nn.Identity()  # type: ignore[union-attr]
    return module


def run_of(root: Path, path: Path | None, *others: Callback, epochs: int = 4, **arguments: Any) -> ExplanationMonitor:
    """A training of four batches an epoch, with a checkpoint at every last one."""
    given = {"metrics": [q.Infidelity(n_perturb_samples=2), q.Drift()], **arguments}
    watch = monitor_of_digits(**given)
    saved = ModelCheckpoint(root, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    run = trainer(root, watch, saved, *others, max_epochs=epochs)
    run.fit(plain(), loader(), loader(100, 24), ckpt_path=path)
    return watch


def explained(root: Path) -> dict[int | None, tuple[int | None, dict[str, float]]]:
    """Epoch and scores of each explained step."""
    found = load_reports(root / "explain") if steps_in(root) else []
    return {report.step: (report.epoch, report.scalars()) for report in found}


EARLY: dict[str, dict[str, Any]] = {
    "each epoch": {},
    "after validation": {"hook": "validation_epoch_end"},
    "every second epoch": {"every_n_epochs": 2},
    "every second validation": {"hook": "validation_epoch_end", "every_n_epochs": 2},
    "every third epoch": {"every_n_epochs": 3},
    "at the start, too": {"at_start": True},
    "by steps": {"every_n_train_steps": 4},
    "with a limit that allows it": {"max_overhead": 1000.0},
}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a whole training of each kind."""

    @functools.cache
    def run(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        run_of(folder, None, **EARLY[kind])
        return folder

    return run


@pytest.mark.parametrize("kind", EARLY)
@pytest.mark.parametrize("step", [4, 8, 12, 16])
def test_an_explanation_for_which_the_checkpoint_came_too_early_is_made_on_resume(
    kind: str, step: int, whole_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments = EARLY[kind]
    run_of(tmp_path, whole_runs(kind) / f"step={step}.ckpt", **arguments)
    whole, again = explained(whole_runs(kind)), explained(tmp_path)
    # Explanations by steps come before the checkpoint of the same step.
    first = step + 1 if "every_n_train_steps" in arguments else step
    assert again == {at: found for at, found in whole.items() if at is not None and at >= first}


def test_a_limit_knows_of_the_training_before_a_checkpoint_that_came_too_early(tmp_path: Path) -> None:
    run_of(tmp_path / "whole", None, max_overhead=0.5, epochs=1)
    path = tmp_path / "whole" / "step=4.ckpt"
    assert torch.load(path, weights_only=True)["callbacks"][KEY]["schedule"]["train_seconds"] > 0


class Swapping(Callback):
    """A callback that may do anything before validation."""

    def on_validation_epoch_start(self, *arguments: Any) -> None:
        pass


def test_weights_that_may_be_swapped_for_validation_are_not_explained_unswapped(tmp_path: Path) -> None:
    run_of(tmp_path / "whole", None, hook="validation_epoch_end", epochs=2)
    path = tmp_path / "whole" / "step=4.ckpt"
    with pytest.warns(UserWarning, match=r"validation of epoch 0, which Lightning does not repeat.* is not explained"):
        run_of(tmp_path / "resumed", path, Swapping(), hook="validation_epoch_end", epochs=2)
    assert list(explained(tmp_path / "resumed")) == [8]


def test_an_epoch_without_validation_is_explained_after_the_next_one_as_ever(tmp_path: Path) -> None:
    def run(root: Path, path: Path | None) -> list[int | None]:
        saved = ModelCheckpoint(root, filename="{step}", every_n_train_steps=4, save_top_k=-1)
        watch = monitor(hook="validation_epoch_end")
        going = trainer(root, watch, saved, max_epochs=4, check_val_every_n_epoch=2)
        going.fit(plain(), loader(), loader(100, 24), ckpt_path=path)
        return steps_in(root)

    assert run(tmp_path / "whole", None) == [8, 16]
    assert run(tmp_path / "a", tmp_path / "whole" / "step=4.ckpt") == [8, 16]
    assert run(tmp_path / "b", tmp_path / "whole" / "step=8.ckpt") == [8, 16]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"enabled": False}, {"every_n_train_steps": 5}, [15, 20]),
        ({"every_n_epochs": 1}, {"every_n_train_steps": 5}, [15, 20]),
        ({"every_n_train_steps": 10}, {"every_n_train_steps": 5}, [15, 20]),
        ({"every_n_train_steps": 5}, {"every_n_epochs": 2}, [16]),
        ({"every_n_epochs": 2}, {"every_n_epochs": 1}, [16, 20]),
    ],
    ids=str,
)
def test_a_schedule_that_the_checkpoint_knows_nothing_of_begins_at_its_next_multiple(
    before: dict[str, Any], after: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    saved = fit(tmp_path / "one", monitor(**before), max_epochs=3)
    saved.save_checkpoint(tmp_path / "it.ckpt")
    found = torch.load(tmp_path / "it.ckpt", weights_only=True)
    found["callbacks"] = {} if "enabled" in before else found["callbacks"]
    torch.save(found, tmp_path / "it.ckpt")
    resumed(tmp_path / "two", monitor(**after), tmp_path / "it.ckpt", epochs=5)
    assert steps_in(tmp_path / "two") == expected


# -- other versions ------------------------------------------------------------------------------------------------


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key not in names}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it usually is."""
    return checkpoint(tmp_path_factory.mktemp("usual"))


ODD: dict[str, tuple[Callable[[State], State], str]] = {
    "newer": (
        lambda s: {**s, "version": 9, "mood": 1},
        r"\(version 9, this is 3\), it cannot restore what it does not",
    ),
    "version 1": (
        lambda s: without("seed", "failures", "alerts", "history")({**s, "version": 1}),
        r"\(version 1, this is 3\), it cannot restore seed \(lacks 'seed'\), failures \(lacks 'failures'\), alerts",
    ),
    "no schedule": (without("schedule"), r"cannot restore schedule \(lacks 'schedule'\)"),
    "no failures": (without("failures", "by_steps"), r"failures \(lacks 'failures'\), schedule \(lacks 'by_steps'\)"),
    "nearly empty": (lambda _: {"version": 3}, r"seed \(lacks 'seed'\), failures .*, schedule .*, alerts "),
    "probe of another version": (
        lambda s: {**s, "probe": {**s["probe"], "weights": torch.ones(4)}},
        r"probe \(invalid: a name in probe is 'weights' instead of one that is known",
    ),
    "no inputs": (
        lambda s: {**s, "probe": without("inputs")(s["probe"])},
        r"probe \(invalid: .*a dictionary with inputs",
    ),
    "foreign": (lambda _: ["state"], r"\(version None, this is 3\), it cannot restore seed \(lacks 'seed'\), failures"),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize(("change", "message"), ODD.values(), ids=ODD.keys())
def test_an_odd_state_is_told_and_the_rest_of_it_taken_up(
    change: Any, message: str, usual: Path, tmp_path: Path
) -> None:
    path = changed(usual, tmp_path, change)
    watch = monitor()
    with pytest.warns(UserWarning, match=message):
        resumed(tmp_path / "two", watch, path)
    assert steps_in(tmp_path / "two") == [12, 16]
    assert len(report_of(watch).ids) == 4


def test_all_that_cannot_be_in_a_state_begins_anew(tmp_path: Path) -> None:
    """Each kind alone: ``test_hostile_checkpoints.py``."""
    alert = Alert("drift_cosine_first/saliency", below=-2)
    given: dict[str, Any] = {"metrics": [q.Concentration(), q.Drift()], "alerts": [alert]}
    wrong = {
        "schedule": [1],
        "failures": ["saliency"],
        "history": {"first": 1},
        "alerts": {alert.key: {"count": "two"}},
    }
    path = checkpoint(tmp_path / "one", lambda state: {**state, **wrong, "probe": 7}, **given)
    watch = monitor(**given)
    with pytest.warns(UserWarning, match=r"restore failures \(invalid: .*, schedule, alerts, history, probe, which"):
        resumed(tmp_path / "two", watch, path)
    assert steps_in(tmp_path / "two") == [12, 16]
    assert len(report_of(watch).ids) == 4
    assert torch.isfinite(report_of(watch).scores["drift_cosine_previous"]["saliency"]).all()


# -- data that moved -----------------------------------------------------------------------------------------------


def test_saved_samples_are_explained_when_the_dataset_moved_and_both_fingerprints_are_named(
    usual: Path, tmp_path: Path
) -> None:
    path = usual
    saved = torch.load(path, weights_only=True)["callbacks"][KEY]
    watch = monitor()
    with pytest.warns(
        UserWarning, match=f"{saved['fingerprint'][:12]} in the checkpoint, [0-9a-f]{{12}} now. .* of the checkpoint"
    ):
        resumed(tmp_path / "two", watch, path, val_dataloaders=loader(300, 24))
    assert report_of(watch).fingerprint == saved["fingerprint"]


class Unreadable(Dataset[tuple[Tensor, Tensor]]):
    """A dataset whose disk is gone."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise OSError("no such device")


def test_saved_samples_are_explained_when_they_can_be_read_no_more(usual: Path, tmp_path: Path) -> None:
    watch = monitor()
    run = trainer(tmp_path / "two", watch, limit_val_batches=0, max_epochs=3)
    with pytest.warns(UserWarning, match=r"none \(OSError: no such device\) now"):
        run.fit(DigitModule(), loader(0, 32, shuffle=True), DataLoader(Unreadable(), batch_size=8), ckpt_path=usual)
    assert len(report_of(watch).ids) == 4


def test_samples_that_cannot_be_read_are_told_and_the_run_goes_on_without_explanations(tmp_path: Path) -> None:
    watch = monitor()
    run = trainer(tmp_path, watch, limit_val_batches=0, max_epochs=2)
    with pytest.warns(
        RuntimeWarning, match=r"could not be prepared \(rank 0\); nothing is explained(.|\n)*no such dev"
    ):
        run.fit(DigitModule(), loader(), DataLoader(Unreadable(), batch_size=8))
    assert run.current_epoch == 2
    assert watch.last_report is None


# -- validation and test -------------------------------------------------------------------------------------------


def test_a_test_after_training_keeps_the_report_of_training(tmp_path: Path) -> None:
    watch, module = monitor(), DigitModule()
    run = fit(tmp_path, watch, module=module)
    run.validate(module, loader(100, 24), verbose=False)
    run.test(module, loader(100, 24), verbose=False)
    folder = tmp_path / "explain"
    names = ["step=00000004", "step=00000004-test", "step=00000004-validate"]
    assert sorted(path.stem for path in folder.glob("step=*.safetensors")) == names
    assert sorted(path.stem for path in (folder / "saliency").glob("*.png")) == names
    assert steps_in(tmp_path) == [4, 4, 4]
