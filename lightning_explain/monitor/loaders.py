"""Takes a Trainer; returns its loaders, and what its batch-transfer hooks make of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset, Subset

from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.loggers.packages import in_both
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.monitor.lightning import overrides
from lightning_explain.probes.selection import Source

_ON_DEVICE = ("transfer_batch_to_device", "on_after_batch_transfer")


def find_loader(
    trainer: pl.Trainer, source: Source, index: int, say: Callable[[str], None] = rank_zero_warn_or_log
) -> tuple[Source, Any]:
    """The loader to choose samples from, behind its source, which is another one if the run has none of the source asked for.

    A validation loader that the loop has not loaded yet is created for this call alone: call it in a child process.

    Args:
        trainer: Inside fit, validate or test.
        source: ``"val"``, ``"train"`` or ``"test"``; if the run has no such loader, another one is taken, with a
            warning.
        index: Index among several loaders of that source.
        say: Receives what the user should know.

    Raises:
        ValueError: If the run has no loader at all, or none with that index.
    """
    given: dict[Source, Callable[[], Any]] = {
        "val": lambda: _val_loaders(trainer, say),
        "test": lambda: trainer.test_dataloaders,
        "train": lambda: _train_loaders(trainer),
    }
    order = sorted(given, key=lambda name: name != source)
    chosen, found = next(((name, part) for name in order if (part := listed(given[name]()))), (source, []))
    if not found:
        raise ValueError(
            f"No loader to choose probe samples from: looked for {', '.join(order)} loaders. Give one, or probe=Probe(...)."
        )
    if chosen != source:
        say(
            f"There is no {source} loader; the probe samples come from the {chosen} loader. To choose it yourself, use "
            f"ProbeSelection(source={chosen!r})."
        )
    if index >= len(found):
        raise ValueError(
            f"ProbeSelection(dataloader_idx={index}), but there are {len(found)} {chosen} loaders; use one below {len(found)}."
        )
    return chosen, found[index]


def _train_loaders(trainer: pl.Trainer) -> Any:
    """Loaded by every training; a replay of checkpoints has only their source."""
    source = trainer.fit_loop._data_source
    unloaded = trainer.train_dataloader is None and trainer.state.fn == "fit" and source.is_defined()
    return source.dataloader() if unloaded else trainer.train_dataloader


def _val_loaders(trainer: pl.Trainer, say: Callable[[str], None]) -> Any:
    if trainer.val_dataloaders is not None or trainer.state.fn != "fit":
        return trainer.val_dataloaders
    # Not loaded yet, because the first validation is some epochs away. Ask its source and not the loop, so that
    # the loop still loads it at its usual time.
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    try:
        return source.dataloader() if source.is_defined() else None
    except Exception as error:
        if trainer.enable_validation:
            raise
        # Training itself never needs this loader, so its failure is no reason to stop.
        say(
            f"Validation is off, and its loader cannot be created ({type(error).__name__}: {error}). "
            "To choose samples from the training data, use ProbeSelection(source='train')."
        )
        return None


def listed(loaders: Any) -> list[Any]:
    """All loaders in nested lists, mappings and combined loaders, as one flat list."""
    found = tree_leaves(loaders.iterables if isinstance(loaders, in_both(CombinedLoader)) else loaders)
    return [loader for loader in found if loader is not None]


def batch_size(trainer: pl.Trainer) -> int | None:
    """The batch size of the first loader of the run that declares one; ``None``: no loader does."""
    return _batch_size([trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders])


def batch_size_unloaded(trainer: pl.Trainer) -> int | None:
    """The same of a ``fit`` that has loaded nothing yet; creates its loaders for this call alone."""
    for source in (trainer.fit_loop._data_source, trainer.fit_loop.epoch_loop.val_loop._data_source):
        with suppress(Exception):
            if source.is_defined() and (size := _batch_size(source.dataloader())):
                return size
    return None


def _batch_size(loaders: Any) -> int | None:
    for loader in listed(loaders):
        sampler = getattr(loader, "batch_sampler", None)
        size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def feature_names(trainer: pl.Trainer) -> tuple[str, ...]:
    """The names that the first data set of the run which has any gives the columns of its table: ``feature_names`` or ``columns``."""
    for loader in listed([trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders]):
        dataset = getattr(loader, "dataset", None)
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        for attribute in ("feature_names", "columns"):
            with suppress(Exception):
                names = getattr(dataset, attribute)
                if not isinstance(names, (str, bytes)) and all(isinstance(name, str) for name in names):
                    return tuple(names)
    return ()


def samples_in_epoch(trainer: pl.Trainer) -> int | None:
    """Samples in the batches of a training epoch, of all ranks; ``None`` if that is not known beforehand."""
    batches, size = trainer.num_training_batches, batch_size(trainer)
    return int(batches * size * trainer.world_size) if size and math.isfinite(batches) else None


def is_stream(loader: Any) -> bool:
    """Whether a loader's samples have no index, as those of an ``IterableDataset``."""
    dataset = getattr(loader, "dataset", None)
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def transferred(
    trainer: pl.Trainer, module: pl.LightningModule, index: int, on_device: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """A function that applies the batch-transfer hooks as the Trainer does for that loader, wherever it is called.

    Args:
        trainer: The Trainer.
        module: Its module.
        index: Index of the loader.
        on_device: What :func:`after_transfer` returns, called where the device can be used; only if there is one, and a hook that
            may change the samples on it.
    """
    if trainer.strategy.root_device.type == "cpu":
        on_device = after_transfer(trainer, module, index)
    elif not has_hooks(trainer, module, _ON_DEVICE):
        on_device = _unchanged

    def transfer(batch: Any) -> Any:
        with _outside_training(trainer):
            batch = module._on_before_batch_transfer(batch, dataloader_idx=index)
        return on_device(batch)

    return transfer


def has_hooks(
    trainer: pl.Trainer, module: pl.LightningModule, hooks: Sequence[str] = ("on_before_batch_transfer", *_ON_DEVICE)
) -> bool:
    """Whether the module or the data module has any of the batch-transfer hooks itself."""
    parts = [part for part in (module, trainer.datamodule) if part is not None]  # type: ignore[attr-defined]
    return any(overrides(part, hook, pl.LightningModule, pl.LightningDataModule) for part in parts for hook in hooks)


def after_transfer(trainer: pl.Trainer, module: pl.LightningModule, index: int) -> Callable[[Any], Any]:
    """A function that moves a batch to the device, applies the hook for batches on it, and brings it back."""
    device = trainer.strategy.root_device

    def transfer(batch: Any) -> Any:
        with _outside_training(trainer), preserved_random_state(module, trainer.datamodule):  # type: ignore[attr-defined]
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=index)
        if device.type != "cpu":
            # What Lightning cannot move stays there, and can only be read here.
            with suppress(Exception):
                return move_data_to_device(batch, torch.device("cpu"))
        return batch

    return transfer


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def _outside_training(trainer: pl.Trainer) -> Iterator[None]:
    """Tells the hooks that this is a validation, so that they do not augment the samples."""
    stage = trainer.state.stage
    trainer.state.stage = type(stage).VALIDATING if stage == RunningStage.TRAINING else stage
    try:
        yield
    finally:
        trainer.state.stage = stage
