"""The samples stay the same: over epochs, shuffled loaders, random transforms, checkpoints and moved data."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, random_split

from lightning_explain import ExplanationMonitor, Probe, ProbeSelection
from lightning_explain.core.report import Report
from lightning_explain.core.serialization import fingerprint
from networks import DigitNet, digits, samples, trained
from training import (
    QUIET,
    SAFE,
    Blind,
    DigitModule,
    fit,
    loader,
    loaders,
    monitor,
    monitor_of_digits,
    report_of,
    steps_in,
    trainer,
)

pytestmark = QUIET


# -- samples ----------------------------------------------------------------------------------------------------------


def test_without_a_validation_loader_training_samples_are_explained_and_that_is_said(tmp_path: Path) -> None:
    watch = monitor()
    with pytest.warns(UserWarning, match="There is no val loader; the probe samples come from the train loader"):
        trainer(tmp_path, watch).fit(Blind(), loader(0, 32))
    assert report_of(watch).ids.tolist() == sorted(random.Random(0).sample(range(32), 4))


def test_samples_come_from_the_validation_loader_even_if_it_is_not_run(tmp_path: Path) -> None:
    watch = monitor()
    fit(tmp_path, watch, limit_val_batches=0)
    assert watch.probe is not None
    assert torch.equal(watch.probe.inputs, digits()[0][100:124][watch.probe.sample_ids])


class WithoutData(DigitModule):
    """A module that has validation, but no data for it."""

    def val_dataloader(self) -> DataLoader[Any]:
        raise ValueError("no validation data")


def test_a_validation_loader_that_training_never_asks_for_may_fail(tmp_path: Path) -> None:
    watch = monitor()
    with (
        pytest.warns(UserWarning, match=r"its loader cannot be created \(ValueError: no validation data\)"),
        pytest.warns(UserWarning, match="There is no val loader; the probe samples come from the train loader"),
    ):
        trainer(tmp_path, watch, limit_val_batches=0).fit(WithoutData(), loader(0, 32))
    assert report_of(watch).ids.tolist() == sorted(random.Random(0).sample(range(32), 4))


def test_a_validation_loader_that_training_will_ask_for_may_not_fail(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no validation data"):
        trainer(tmp_path, monitor(), check_val_every_n_epoch=2).fit(WithoutData(), loader(0, 32))


@pytest.mark.parametrize("index", [0, 1])
def test_one_of_several_validation_loaders_is_chosen_by_its_index(index: int, tmp_path: Path) -> None:
    watch = monitor(probe=ProbeSelection(count=4, dataloader_idx=index))
    both = [loader(100, 24), loader(200, 24)]
    trainer(tmp_path, watch).fit(DigitModule(), loader(), both)
    assert watch.probe is not None
    first = (100, 200)[index]
    assert torch.equal(watch.probe.inputs, digits()[0][first : first + 24][watch.probe.sample_ids])


class DigitsData(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return loader(0, 32)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(100, 24)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]


def test_samples_of_a_datamodule_pass_through_its_transfer_hooks_once(tmp_path: Path) -> None:
    watch = monitor()
    trainer(tmp_path, watch, max_epochs=2).fit(DigitModule(), datamodule=DigitsData())
    assert watch.probe is not None
    assert torch.equal(watch.probe.inputs, 2 * digits()[0][100:124][watch.probe.sample_ids])


class Augmenting(DigitModule):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        return [batch[0] + (100 if self.trainer.training else 1 + 10 * dataloader_idx), batch[1]]


def test_augmentation_on_the_device_is_not_run_on_the_samples(tmp_path: Path) -> None:
    watch = monitor(probe=ProbeSelection(count=4, source="train"))
    fit(tmp_path, watch, module=Augmenting())
    assert watch.probe is not None
    assert torch.equal(watch.probe.inputs, digits()[0][watch.probe.sample_ids] + 1)


def test_transfer_hooks_are_told_from_which_loader_the_samples_are(tmp_path: Path) -> None:
    watch = monitor(probe=ProbeSelection(count=4, dataloader_idx=1))
    trainer(tmp_path, watch, limit_val_batches=0).fit(Augmenting(), loader(), [loader(100, 24), loader(200, 24)])
    assert watch.probe is not None
    assert torch.equal(watch.probe.inputs, digits()[0][200:][watch.probe.sample_ids] + 11)


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Digits with noise, other at each reading."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = digits()
        return x[index] + 0.1 * torch.randn(1, 8, 8), y[index]


class Fingerprints(Callback):
    """Notes the fingerprint of every report."""

    def __init__(self, watch: ExplanationMonitor) -> None:
        self.watch = watch
        self.seen: list[str] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append(report_of(self.watch).fingerprint)


def test_the_same_samples_are_explained_each_epoch_whatever_the_loader_does(tmp_path: Path) -> None:
    watch = monitor()
    seen = Fingerprints(watch)
    shuffled = DataLoader(Noisy(), batch_size=8, shuffle=True)
    trainer(tmp_path, watch, seen, max_epochs=3).fit(DigitModule(), loader(), shuffled)
    assert len(seen.seen) == 3
    assert len(set(seen.seen)) == 1


@pytest.mark.parametrize("arguments", [{}, {"hook": "validation_epoch_end"}, {"every_n_train_steps": 1}], ids=str)
def test_training_draws_the_same_numbers_with_and_without_the_monitor(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    def weights(*callbacks: Callback) -> list[Tensor]:
        pl.seed_everything(3, verbose=False)
        module = DigitModule()
        noisy = DataLoader(Noisy(), batch_size=8, shuffle=True)
        trainer(tmp_path, *callbacks, max_epochs=2).fit(module, noisy, DataLoader(Noisy(), batch_size=8))
        return [value.clone() for value in module.state_dict().values()]

    pairs = zip(weights(), weights(monitor(at_start=True, **arguments)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Dice(CSVLogger):
    """A logger that draws a number for each explanation, as one that makes ids does."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("explain/") for key in metrics):
            torch.rand(1)


class Splitting(DigitModule):
    """A module that splits its data anew whenever it is asked for a loader."""

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(random_split(loader(100, 24).dataset, [16, 8])[0], batch_size=8)  # type: ignore[arg-type]


def test_neither_loaders_nor_loggers_draw_training_randomness_for_the_monitor(tmp_path: Path) -> None:
    def weights(*callbacks: Callback) -> list[Tensor]:
        pl.seed_everything(3, verbose=False)
        module = Splitting()
        run = trainer(tmp_path, *callbacks, max_epochs=2, limit_val_batches=0, logger=Dice(tmp_path))
        run.fit(module, loader(0, 32, shuffle=True))
        return [value.clone() for value in module.state_dict().values()]

    pairs = zip(weights(), weights(monitor(every_n_train_steps=1)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# -- one monitor, several runs -------------------------------------------------------------------------------------


def are_of(watch: ExplanationMonitor, first: int, count: int) -> bool:
    """Whether the samples are those that a selection takes of these digits."""
    assert watch.probe is not None
    return watch.probe.sample_ids.tolist() == sorted(random.Random(0).sample(range(count), 4)) and torch.equal(
        watch.probe.inputs, digits()[0][first : first + count][watch.probe.sample_ids]
    )


@pytest.mark.parametrize("before", ["test", "validate"])
def test_a_training_chooses_its_own_samples_whatever_ran_before_it(before: str, tmp_path: Path) -> None:
    watch, module = monitor(), DigitModule()
    run = trainer(tmp_path, watch)
    getattr(run, before)(module, loader(300, 20), verbose=False)
    assert are_of(watch, 300, 20)
    run.fit(module, **loaders())
    assert are_of(watch, 100, 24)
    assert report_of(watch).fingerprint == fingerprint(watch.probe)  # type: ignore[arg-type]


def test_a_second_training_has_samples_of_its_own_data(tmp_path: Path) -> None:
    watch = monitor()
    fit(tmp_path / "one", watch)
    trainer(tmp_path / "two", watch).fit(DigitModule(), loader(), loader(300, 16))
    assert are_of(watch, 300, 16)


@pytest.mark.parametrize("after", ["test", "validate"])
def test_validation_and_test_after_training_explain_samples_of_their_own_loaders(after: str, tmp_path: Path) -> None:
    watch, module = monitor(), DigitModule()
    run = fit(tmp_path, watch, module=module)
    getattr(run, after)(module, loader(300, 20), verbose=False)
    assert are_of(watch, 300, 20)
    assert report_of(watch).ids.tolist() == sorted(random.Random(0).sample(range(20), 4))


def test_a_test_does_not_touch_the_samples_of_the_training_in_checkpoints(tmp_path: Path) -> None:
    watch, module = monitor(), DigitModule()
    run = fit(tmp_path / "one", watch, module=module)
    run.test(module, loader(300, 20), verbose=False)
    run.save_checkpoint(tmp_path / "it.ckpt")
    resumed(tmp_path / "two", watch, tmp_path / "it.ckpt", epochs=2)
    assert are_of(watch, 100, 24)


def test_a_training_that_goes_on_keeps_its_samples_and_tells_of_other_data(tmp_path: Path) -> None:
    watch, module = monitor(), DigitModule()
    run = fit(tmp_path, watch, module=module)
    run.test(module, loader(300, 20), verbose=False)
    for first in (100, 300):
        run.fit_loop.max_epochs = run.current_epoch + 1
        run.fit_loop.epoch_loop.val_loop._combined_loader = None
        told = pytest.warns(UserWarning, match="in the training so far, ") if first == 300 else nullcontext()
        with told:
            run.fit(module, loader(), loader(first, 24))
        assert are_of(watch, 100, 24)


def test_samples_that_the_test_loader_has_not_are_those_of_the_training_and_that_is_said(tmp_path: Path) -> None:
    watch, module = monitor(probe=[3, 23]), DigitModule()
    run = fit(tmp_path, watch, module=module)
    with pytest.warns(UserWarning, match=r"samples of the training are explained again.*has \[23\]"):
        run.test(module, loader(300, 20), verbose=False)
    assert torch.equal(watch.probe.inputs, digits()[0][[103, 123]])  # type: ignore[union-attr]


def test_given_samples_are_explained_in_every_run(tmp_path: Path) -> None:
    given = Probe(*samples(3))
    watch, module = monitor(probe=given), DigitModule()
    run = fit(tmp_path, watch, module=module)
    run.test(module, loader(300, 20), verbose=False)
    assert watch.probe is not None
    assert watch.probe.inputs is given.inputs
    assert watch.probe.targets is given.targets


# -- checkpoints and resuming --------------------------------------------------------------------------------------


def saved(root: Path, watch: ExplanationMonitor, epochs: int = 2, **data: Any) -> Path:
    """A checkpoint after some epochs."""
    run = trainer(root, watch, max_epochs=epochs)
    run.fit(DigitModule(), **{**loaders(), **data})
    run.save_checkpoint(root / "it.ckpt")
    return root / "it.ckpt"


def resumed(root: Path, watch: ExplanationMonitor, path: Path, epochs: int = 4, **data: Any) -> pl.Trainer:
    run = trainer(root, watch, max_epochs=epochs)
    run.fit(DigitModule(), **{**loaders(), **data}, ckpt_path=path)
    return run


@pytest.mark.parametrize("save_probe", [True, False])
def test_a_validation_of_a_checkpoint_explains_its_samples_at_its_step(save_probe: bool, tmp_path: Path) -> None:
    trained, watch = monitor(save_probe=save_probe, max_examples_per_pass=4), monitor(max_examples_per_pass=4)
    path = saved(tmp_path / "one", trained)
    run = trainer(tmp_path / "two", watch)
    changed = pytest.warns(UserWarning, match="The data has changed under the probe samples")
    with changed:
        run.validate(DigitModule(), loader(300, 24), ckpt_path=path, verbose=False, **SAFE)
    before, after = report_of(trained), report_of(watch)
    assert (after.step, after.epoch, after.stage) == (8, 2, "validate")
    assert after.ids.tolist() == before.ids.tolist()
    assert (after.fingerprint == before.fingerprint) is save_probe
    assert torch.equal(after.attributions["saliency"], before.attributions["saliency"]) is save_probe
    assert watch.state_dict()["ids"].tolist() == after.ids.tolist()
    run.validate(DigitModule(), loader(300, 20), verbose=False)
    assert report_of(watch).step == 0
    assert are_of(watch, 300, 20)


def test_a_validation_does_not_take_indices_of_other_data_for_its_own(tmp_path: Path) -> None:
    trained = monitor(save_probe=False, probe=ProbeSelection(source="train", count=4))
    path = saved(tmp_path / "one", trained)
    watch = monitor(probe=ProbeSelection(source="train", count=4))
    with pytest.warns(UserWarning, match="has indices of train samples, which a validation does not load"):
        trainer(tmp_path, watch).validate(DigitModule(), loader(100, 24), ckpt_path=path, verbose=False, **SAFE)
    assert are_of(watch, 100, 24)
    assert report_of(watch).step == 8


def test_a_checkpoint_of_weights_alone_has_a_step_too(tmp_path: Path) -> None:
    run, watch = trainer(tmp_path, max_epochs=2), monitor_of_digits()
    run.fit(DigitModule(), **loaders())
    run.save_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    trainer(tmp_path, watch).validate(
        DigitModule(), loader(100, 24), ckpt_path=tmp_path / "it.ckpt", verbose=False, **SAFE
    )
    assert (report_of(watch).step, report_of(watch).epoch) == (8, 2)


def test_a_test_of_a_checkpoint_explains_its_own_samples_at_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    path, watch = saved(tmp_path / "one", monitor()), monitor()
    trainer(tmp_path, watch).test(DigitModule(), loader(300, 20), ckpt_path=path, verbose=False, **SAFE)
    assert are_of(watch, 300, 20)
    assert (report_of(watch).step, report_of(watch).epoch) == (8, 2)


@pytest.mark.parametrize("save_probe", [True, False])
def test_the_state_loads_without_running_code(save_probe: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, monitor(save_probe=save_probe))
    state = torch.load(path, weights_only=True)["callbacks"]["ExplanationMonitor{'name': 'explain'}"]
    assert (state["probe"] is not None) == save_probe
    assert len(state["ids"]) == 4


def test_a_resumed_run_explains_the_very_same_samples_even_if_the_data_moved(tmp_path: Path) -> None:
    first, second = monitor(), monitor()
    path = saved(tmp_path / "one", first)
    with pytest.warns(UserWarning, match="The data has changed under the probe samples"):
        resumed(tmp_path / "two", second, path, val_dataloaders=loader(300, 24))
    assert report_of(first).fingerprint == report_of(second).fingerprint
    assert steps_in(tmp_path / "two") == [12, 16]


def test_without_saved_samples_a_resumed_run_reads_the_same_indices(tmp_path: Path) -> None:
    first, second = monitor(save_probe=False), monitor(save_probe=False, probe=ProbeSelection(count=4, seed=9))
    path = saved(tmp_path / "one", first)
    resumed(tmp_path / "two", second, path)
    assert report_of(first).fingerprint == report_of(second).fingerprint


def test_without_saved_samples_changed_data_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "one", monitor(save_probe=False))
    with pytest.warns(UserWarning, match=r"The data has changed under the probe samples .*save_probe=True"):
        resumed(tmp_path / "two", monitor(save_probe=False), path, val_dataloaders=loader(300, 24))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(13, [1, 8, 12]), (5, [1]), (1, [0])],
    ids=["some are left", "one is left", "none is left"],
)
@pytest.mark.filterwarnings("ignore:ProbeSelection.count=4")
def test_without_saved_samples_a_dataset_that_shrank_is_told_and_what_is_left_is_explained(
    count: int, expected: list[int], tmp_path: Path
) -> None:
    path = saved(tmp_path / "one", monitor(save_probe=False))
    before = torch.load(path, weights_only=True)["callbacks"]["ExplanationMonitor{'name': 'explain'}"]["ids"].tolist()
    watch = monitor(save_probe=False)
    match = rf"under the probe samples {re.escape(str(before))}: .* The curves continue with the samples {re.escape(str(expected))}"
    with pytest.warns(UserWarning, match=match):
        resumed(tmp_path / "two", watch, path, val_dataloaders=loader(100, count))
    assert report_of(watch).ids.tolist() == expected


def test_other_samples_than_those_of_the_checkpoint_are_not_taken_silently(tmp_path: Path) -> None:
    path = saved(tmp_path / "one", monitor())
    other = monitor(probe=Probe(*samples(3)))
    with pytest.warns(UserWarning, match="keeps the probe samples .* of the checkpoint, .* asks for other ones"):
        resumed(tmp_path / "two", other, path)
    assert len(report_of(other).ids) == 4


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part[100:124] for part in digits()), strict=True)


@pytest.mark.filterwarnings("ignore:The first 4 samples are explained")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`")
def test_a_run_on_a_stream_can_be_resumed_without_saved_samples(tmp_path: Path) -> None:
    data = {"val_dataloaders": DataLoader(Stream(), batch_size=8)}
    first, second = monitor(save_probe=False), monitor(save_probe=False)
    path = saved(tmp_path / "one", first, **data)
    resumed(tmp_path / "two", second, path, **data)
    assert report_of(first).fingerprint == report_of(second).fingerprint


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"every_n_epochs": 2}, [16]), ({"every_n_train_steps": 5}, [15]), ({"at_start": True}, [16])],
    ids=str,
)
def test_a_resumed_run_goes_on_with_its_schedule(
    arguments: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    path = saved(tmp_path / "one", monitor(**arguments), epochs=3)
    resumed(tmp_path / "two", monitor(**arguments), path)
    assert steps_in(tmp_path / "two") == expected


def test_fresh_and_resumed_runs_give_the_same_numbers(tmp_path: Path) -> None:
    def run(root: Path, epochs: int, path: Path | None) -> tuple[pl.Trainer, Report]:
        watch = monitor()
        going = trainer(root, watch, max_epochs=epochs)
        module = DigitModule(DigitNet())
        module.net.load_state_dict(trained().state_dict())
        module.net.dropout = nn.Identity()  # type: ignore[union-attr]
        going.fit(module, loader(0, 32), loader(100, 24), ckpt_path=path)
        return going, report_of(watch)

    half, _ = run(tmp_path, 1, None)
    half.save_checkpoint(tmp_path / "half.ckpt")
    (_, whole), (_, again) = run(tmp_path, 2, None), run(tmp_path, 2, tmp_path / "half.ckpt")
    assert torch.equal(whole.attributions["saliency"], again.attributions["saliency"])
    assert torch.equal(whole.scores["infidelity"]["saliency"], again.scores["infidelity"]["saliency"])
