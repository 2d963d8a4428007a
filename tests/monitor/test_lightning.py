"""Laws of what is read from a Trainer: its loaders, its run's directory, its strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_explain import ProbeSelection, load_reports
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor import loaders
from training import QUIET, Blind, DigitModule, loader, monitor, trainer
from training import loaders as training_loaders

pytestmark = QUIET


class Asks(Callback):
    """Asks something of a Trainer in the middle of its work."""

    def __init__(self, question: Callable[[pl.Trainer], Any]) -> None:
        self.question = question
        self.answers: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.answers.append(self.question(trainer))

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.answers.append(self.question(trainer))


def asked(root: Path, question: Callable[[pl.Trainer], Any], *data: Any, **arguments: Any) -> Any:
    """The answer at the start of a training."""
    asks = Asks(question)
    module = DigitModule() if len(data) > 1 else Blind()
    trainer(root, asks, limit_train_batches=1, **arguments).fit(module, *(data or (loader(),)))
    return asks.answers[0]


# -- loaders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sanity", [0, 2], ids=["not yet loaded", "loaded"])
def test_the_validation_loader_is_found_before_its_first_run(sanity: int, tmp_path: Path) -> None:
    val = loader(100, 24)
    source, found = asked(
        tmp_path, lambda t: loaders.find_loader(t, "val", 0), loader(), val, num_sanity_val_steps=sanity
    )
    assert source == "val"
    assert found.dataset is val.dataset


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_one_of_several_loaders_is_found_by_its_index(kind: type, tmp_path: Path) -> None:
    val = {"a": loader(100, 8), "b": loader(200, 8)}
    given = val if kind is dict else kind(val.values())
    source, found = asked(tmp_path, lambda t: loaders.find_loader(t, "val", 1), loader(), given)
    assert source == "val"
    assert found.dataset is val["b"].dataset


@pytest.mark.parametrize("arguments", [{}, {"limit_val_batches": 0}, {"check_val_every_n_epoch": 2}], ids=str)
@pytest.mark.parametrize("nest", [list, lambda both: {"a": both[0], "rest": [both[1]]}], ids=["flat", "nested"])
def test_a_combined_loader_is_as_many_loaders_as_it_holds(nest: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    both = [loader(100, 24), loader(200, 16)]
    for index, one in enumerate(both):
        watch = monitor(probe=ProbeSelection(count=4, dataloader_idx=index))
        run = trainer(tmp_path / str(index), watch, **arguments)
        run.fit(DigitModule(), loader(), CombinedLoader(nest(both), "sequential"))
        assert watch.probe is not None
        expected = [one.dataset[i][0] for i in watch.probe.sample_ids.tolist()]
        assert torch.equal(watch.probe.inputs, torch.stack(expected))


def test_a_loader_that_is_not_there_is_told_with_the_number_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataloader_idx=1\), but there are 1 val loaders; use one below 1"):
        asked(tmp_path, lambda t: loaders.find_loader(t, "val", 1), loader(), loader(100, 8))


def test_another_loader_is_taken_only_with_a_warning(tmp_path: Path) -> None:
    train = loader()
    with pytest.warns(UserWarning, match="There is no test loader; the probe samples come from the train loader"):
        source, found = asked(tmp_path, lambda t: loaders.find_loader(t, "test", 0), train)
    assert source == "train"
    assert found.dataset is train.dataset


def test_what_is_said_of_the_samples_names_the_loader_they_came_from(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="There is no val loader"),
        pytest.warns(UserWarning, match=r"count=32\), but the train loader has 24 samples"),
    ):
        trainer(tmp_path, monitor(probe=ProbeSelection(count=32)), limit_val_batches=0).fit(Blind(), loader(0, 24))


def test_no_loader_at_all_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"No loader to choose probe samples from: looked for val, test, train loaders"
    ):
        loaders.find_loader(pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), "val", 0)


def test_the_test_loader_is_found_in_a_test(tmp_path: Path) -> None:
    asks, test = Asks(lambda t: loaders.find_loader(t, "test", 0)), loader(300, 8)
    trainer(tmp_path, asks).test(DigitModule(), test, verbose=False)
    source, found = asks.answers[0]
    assert source == "test"
    assert found.dataset is test.dataset


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("given", "expected"),
    [(loader(), False), (DataLoader(Stream()), True), ([1, 2], True)],
    ids=["map", "stream", "list"],
)
def test_a_stream_is_told_from_a_dataset(given: Any, expected: bool) -> None:
    assert loaders.is_stream(given) is expected


def test_the_batch_size_is_that_of_the_training_loader(tmp_path: Path) -> None:
    assert asked(tmp_path, loaders.batch_size) == 8


class Batches:
    """Batches that come from nowhere."""

    def __iter__(self) -> Any:
        return iter(loader())


def test_a_loader_that_does_not_say_has_no_batch_size(tmp_path: Path) -> None:
    assert asked(tmp_path, loaders.batch_size, Batches()) is None


# -- states --------------------------------------------------------------------------------------------------------


def test_training_is_off_inside_and_on_again_after_an_error(tmp_path: Path) -> None:
    def question(trainer: pl.Trainer) -> list[bool]:
        found = [trainer.training]

        class Batch:
            def to(self, *arguments: Any, **more: Any) -> None:
                found.append(trainer.training)
                raise ArithmeticError

        with pytest.raises(ArithmeticError):
            loaders.transferred(trainer, trainer.lightning_module, 0, lambda batch: batch)(Batch())
        return [*found, trainer.training]

    assert asked(tmp_path, question) == [True, False, True]


# -- directories ---------------------------------------------------------------------------------------------------


def test_without_a_logger_the_run_lies_in_the_root(tmp_path: Path) -> None:
    assert asked(tmp_path, trainers.run_directory) == tmp_path


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_the_run_of_a_logger_lies_where_the_logger_writes(kind: Any, tmp_path: Path) -> None:
    logger = kind(tmp_path, name="runs", version="three")
    assert asked(tmp_path, trainers.run_directory, logger=logger) == tmp_path / "runs" / "three"


def test_the_first_of_several_loggers_names_the_run(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path / "first"), CSVLogger(tmp_path / "second")]
    assert (
        asked(tmp_path, trainers.run_directory, logger=loggers) == tmp_path / "first" / "lightning_logs" / "version_0"
    )


def test_the_run_of_wandb_is_named_by_its_id(tmp_path: Path) -> None:
    offline = WandbLogger(save_dir=tmp_path, offline=True, project="p", id="abc")
    assert asked(tmp_path, trainers.run_directory, logger=offline) == tmp_path / "p" / "abc"
    offline.experiment.finish()


@pytest.mark.parametrize("folder", ["memory://bucket/runs", "s3://bucket/runs", "gs://bucket/runs"])
def test_the_files_of_a_remote_run_are_in_a_local_folder_and_that_is_said_once(folder: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is remote") as told:
        trainer(folder, monitor(), max_epochs=2).fit(DigitModule(), **training_loaders())  # type: ignore[arg-type]
    said = [str(w.message) for w in told if "remote" in str(w.message)]
    local = tmp_path / "bucket" / "runs"
    assert said == [f"The folder of the run, {folder}, is remote; reports and picture files are written to {local}."]
    assert [report.step for report in load_reports(local / "explain")] == [4, 8]
    assert list((local / "explain").rglob("*.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["bucket"]


def test_a_second_trainer_is_another_run(tmp_path: Path) -> None:
    watch = monitor()
    for name in ("one", "two"):
        trainer(tmp_path / name, watch).fit(DigitModule(), loader(), loader(100, 24))
        assert (tmp_path / name / "explain" / "scalars.jsonl").exists()


# -- strategies ----------------------------------------------------------------------------------------------------


def test_deepspeed_is_refused_with_ways_out() -> None:
    # DeepSpeed is not installed where tests run, and its strategy cannot be made without it.
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    with pytest.raises(ValueError, match=r'cannot explain under DeepSpeed.*strategy="ddp" or FSDP2'):
        trainers.check_strategy(cast(pl.Trainer, SimpleNamespace(strategy=strategy)))


def test_pipelines_are_refused_with_ways_out() -> None:
    class PipelineParallelStrategy(SingleDeviceStrategy):
        pass

    strategy = PipelineParallelStrategy("cpu")
    match = r'under PipelineParallelStrategy: each rank of a pipeline holds only a part .*strategy="ddp" or FSDP2'
    with pytest.raises(ValueError, match=match):
        trainers.check_strategy(cast(pl.Trainer, SimpleNamespace(strategy=strategy)))


def test_under_fsdp1_the_wrapper_is_called() -> None:
    # FSDP1 needs GPUs: this is the route to its wrapper, not a run.
    found = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy), model=lambda x, y: (x, y))
    forward = trainers.forward_of(cast(pl.Trainer, found))
    assert callable(forward)
    assert forward(None, 1, 2) == (1, 2)
    assert (
        trainers.forward_of(cast(pl.Trainer, SimpleNamespace(strategy=SingleDeviceStrategy("cpu"), model=None))) is None
    )


@pytest.mark.parametrize("arguments", [{}, {"every_n_train_steps": 1}, {"hook": "validation_epoch_end"}], ids=str)
def test_numbers_are_there_for_callbacks_only(arguments: dict[str, Any], tmp_path: Path) -> None:
    finished = trainer(tmp_path, monitor(**arguments), logger=CSVLogger(tmp_path))
    finished.fit(DigitModule(), loader(), loader(100, 24))
    assert finished.callback_metrics["explain/infidelity/saliency"].isfinite()
    assert not any(key.startswith("explain/") for key in finished.logged_metrics)


# -- callbacks that swap weights -----------------------------------------------------------------------------------


class Plain(Callback):
    """Only called like the callback that averages weights."""


Plain.__name__ = "WeightAveraging"


def test_averaging_is_known_by_its_class_and_not_by_its_name(tmp_path: Path) -> None:
    assert not trainers.may_swap_weights(with_module(tmp_path, Plain()))
    averaging = getattr(pl.callbacks, "WeightAveraging", None)  # Lightning 2.5 has none.
    if averaging is not None:
        average = type("Mine", (averaging,), {"__module__": "lightning.pytorch.callbacks"})
        assert trainers.may_swap_weights(with_module(tmp_path, average()))


def with_module(root: Path, callback: Callback) -> pl.Trainer:
    found = trainer(root, callback)
    found.strategy.connect(DigitModule())
    return found


# -- what the run says of itself -----------------------------------------------------------------------------------


class Tuned(DigitModule):
    """Logs, with hyperparameters."""

    def __init__(self, lr: float = 0.1, layers: Any = (8, 4), name: str = "a<b") -> None:
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        self.log("endless", float("inf"))
        return loss


def test_a_report_keeps_what_the_module_logged_and_the_run_its_hyperparameters(tmp_path: Path) -> None:
    watches = [monitor(), monitor(name="other")]
    finished = trainer(tmp_path, *watches, limit_train_batches=1)
    finished.fit(Tuned(lr=0.5), **training_loaders())
    (report,) = load_reports(tmp_path / "other")
    expected = {name: float(finished.callback_metrics[name]) for name in ("train_loss", "val_loss")}
    assert report.logged == watches[1].last_report.logged == expected
    assert report.run is not None
    assert report.run.hyperparameters == {"lr": 0.5, "layers": "[8, 4]", "name": "a<b"}
