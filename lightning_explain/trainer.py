"""What a Trainer knows: its loaders, its run's directory, and who watches the scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn

from lightning_explain.naming import nearest


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuses strategies under which the module cannot be called by itself.

    Raises:
        ValueError: If the strategy is DeepSpeed.
    """
    if isinstance(trainer.strategy, DeepSpeedStrategy):
        raise ValueError(
            "ExplanationMonitor cannot explain under DeepSpeed: its engine owns the forward and the gradients. "
            'Use strategy="ddp" or FSDP2 (ModelParallelStrategy), or explain saved checkpoints with explain().'
        )


def find_loader(trainer: pl.Trainer, source: str, index: int) -> Any:
    """The loader rows are chosen from.

    Args:
        trainer: Inside fit, validate or test.
        source: ``"val"``, ``"train"`` or ``"test"``; where there is none, the one that the run has.
        index: Which one of several.

    Raises:
        ValueError: If the run has no loader at all, or none of that index.
    """
    loaders = {"val": _val_loaders(trainer), "train": trainer.train_dataloader, "test": trainer.test_dataloaders}
    order = [source, *(name for name in ("val", "test", "train") if name != source)]
    chosen = next((name for name in order if loaders[name] is not None and _listed(loaders[name])), None)
    if chosen is None:
        raise ValueError(
            f"No loader to choose probe rows from: looked for {', '.join(order)} loaders. "
            "Give one to the Trainer, or ExplanationMonitor(probe=Probe(inputs, targets))."
        )
    if chosen != source:
        rank_zero_warn(f"There is no {source} loader; the probe rows come from the {chosen} loader.")
    found = _listed(loaders[chosen])
    if index >= len(found):
        raise ValueError(f"ProbeSelection(dataloader_idx={index}), but there are {len(found)} {chosen} loaders.")
    return found[index]


def _val_loaders(trainer: pl.Trainer) -> Any:
    if trainer.val_dataloaders is not None or trainer.state.fn != "fit":
        return trainer.val_dataloaders
    # Not loaded yet, because the first validation is some epochs away. Asked of its source, not of the loop, so
    # that the loop loads it when it would have.
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    return source.dataloader() if source.is_defined() else None


def _listed(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def batch_size(trainer: pl.Trainer) -> int | None:
    """Rows in a batch of the first loader of the run, if it says."""
    for loaders in (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders):
        for loader in _listed(loaders) if loaders is not None else []:
            size = getattr(loader, "batch_size", None) or getattr(
                getattr(loader, "batch_sampler", None), "batch_size", None
            )
            if isinstance(size, int) and size > 0:
                return size
    return None


@contextmanager
def not_training(trainer: pl.Trainer) -> Iterator[None]:
    """``trainer.training`` is false inside, so that batch-transfer hooks do not augment."""
    stage = trainer.state.stage
    if stage == RunningStage.TRAINING:
        trainer.state.stage = RunningStage.VALIDATING
    try:
        yield
    finally:
        trainer.state.stage = stage


def transferred(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Any], Any]:
    """The module's (or data module's) own batch-transfer hooks, as the Trainer applies them."""

    def transfer(batch: Any) -> Any:
        with not_training(trainer):
            batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
            return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    return transfer


def run_directory(trainer: pl.Trainer) -> Path:
    """The directory of this run, the same on every rank. To be called on all of them."""
    if not trainer.loggers:
        path = trainer.default_root_dir
    elif isinstance(first := trainer.loggers[0], (TensorBoardLogger, CSVLogger)):
        path = first.log_dir
    else:
        version = first.version if isinstance(first.version, str) else f"version_{first.version}"
        path = os.path.join(first.save_dir or trainer.default_root_dir, str(first.name), version)
    return Path(trainer.strategy.broadcast(path))


def check_watchers(monitor: pl.Callback, trainer: pl.Trainer, prefix: str, keys: Iterable[str], first: str) -> None:
    """Tells a checkpoint or early stopping that would find no value, before it fails in the middle of training.

    Args:
        monitor: The callback that logs the scores.
        trainer: The Trainer.
        prefix: ``"explain/"``.
        keys: The scores that will be logged.
        first: When the first score is there: ``"start"``, ``"train_epoch_end"``, ``"validation_epoch_end"``, ``"later"``.

    Raises:
        ValueError: If one watches a score that does not exist, or that is not there when it first looks.
    """
    for watcher in trainer.callbacks:  # type: ignore[attr-defined]
        key = getattr(watcher, "monitor", None)
        if watcher is monitor or not isinstance(watcher, (ModelCheckpoint, EarlyStopping)):
            continue
        if isinstance(key, str) and key.startswith(prefix):
            owner = f"{type(watcher).__name__}(monitor={key!r})"
            if key not in keys:
                raise ValueError(f"{owner} watches a score that is not logged: {nearest(key, list(keys))}")
            _check_time(owner, watcher, monitor, trainer, first)


def _check_time(owner: str, watcher: pl.Callback, monitor: pl.Callback, trainer: pl.Trainer, first: str) -> None:
    way_out = "use ExplanationMonitor(at_start=True), which explains before the first step as well"
    if first == "start":
        return
    if first == "later":
        raise ValueError(f"{owner} may look before the first explanation is made; {way_out}, or explain every epoch.")
    looks_after_validation = not _looks_at_train_epoch_end(watcher, trainer)
    if first == "train_epoch_end" and looks_after_validation:
        raise ValueError(
            f'{owner} looks after validation, before the epoch\'s explanation; use hook="validation_epoch_end", or {way_out}.'
        )
    order = list(trainer.callbacks)  # type: ignore[attr-defined]
    if first == "train_epoch_end" and order.index(watcher) < order.index(monitor):
        raise ValueError(f"{owner} stands before the ExplanationMonitor in Trainer(callbacks=...); put it behind.")


def _looks_at_train_epoch_end(watcher: pl.Callback, trainer: pl.Trainer) -> bool:
    given = getattr(watcher, "_save_on_train_epoch_end", getattr(watcher, "_check_on_train_epoch_end", None))
    if given is not None:
        return bool(given)
    return trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
