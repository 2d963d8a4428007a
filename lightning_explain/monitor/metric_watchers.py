"""Takes a Trainer, and checks that its checkpoints, early stopping and schedulers watch scores that are logged."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from lightning_explain.core.naming import nearest
from lightning_explain.loggers.packages import in_both
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.monitor.schedule import Schedule

Watchers: TypeAlias = "list[tuple[Any, str]]"
"""Callbacks and schedulers, each with the key of the score that it watches."""


def watchers_of(trainer: pl.Trainer, name: str, names: Sequence[str]) -> Watchers:
    """What watches a score of this monitor.

    Args:
        trainer: The Trainer.
        name: The monitor's name.
        names: The names of all monitors. With monitors named ``"explain"`` and ``"explain/late"``, a key belongs to the
            longest name that it starts with.
    """
    found: Watchers = [(callback, str(callback.monitor)) for callback in _callbacks(trainer)]
    found += [(c.scheduler, str(c.monitor)) for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
    owners = {key: [other for other in names if key.startswith(f"{other}/")] for _, key in found}
    return [(watcher, key) for watcher, key in found if max(owners[key], key=len, default=None) == name]


def objectives(trainer: pl.Trainer) -> tuple[str, ...]:
    """The keys that the ModelCheckpoints and EarlyStoppings of a Trainer monitor."""
    return tuple(dict.fromkeys(str(callback.monitor) for callback in _callbacks(trainer) if callback.monitor))


def _callbacks(trainer: pl.Trainer) -> list[Any]:
    return [c for c in trainer.callbacks if isinstance(c, in_both(ModelCheckpoint, EarlyStopping))]  # type: ignore[attr-defined]


def check_keys(watchers: Watchers, keys: Collection[str]) -> None:
    """Refuses what watches a score that is never logged.

    Raises:
        ValueError: If a watched key is not among ``keys``.
    """
    for watcher, key in watchers:
        if key not in keys:
            raise ValueError(f"{called(watcher, key)} monitors a score that is not logged: {nearest(key, keys)}")


def refuse_late(watchers: Watchers) -> None:
    """Refuses what reads a score at once, which an explanation beside the training gives later.

    Raises:
        ValueError: If there is any.
    """
    for watcher, key in watchers:
        raise ValueError(
            f"{called(watcher, key)} reads the score when the explanation is due, but with beside=... it arrives later. Use beside=False, "
            "or let it watch a value that the module logs."
        )


def note_units(watched: Mapping[str, str], tags: Collection[str]) -> None:
    """Logs what monitors a score in units of the output, which rises as the network becomes confident.

    Args:
        watched: What watches, in words, to the key of the score.
        tags: The keys of such scores.
    """
    for what, key in watched.items():
        if key in tags:
            rank_zero_info(
                f"ExplanationMonitor: {what} monitors a score in units of the output, which changes with the confidence of any network, "
                "so its values cannot be compared between epochs; a score without a unit, such as infidelity_relative, can."
            )


def warn_of_times(watchers: Watchers, schedule: Schedule, by_steps: bool) -> None:
    """Warns of what does not run once in every so many explanations: it may find a value of earlier weights, or none."""
    for watcher, key in watchers:
        every = getattr(watcher, "_every_n_train_steps", 0) if by_steps else getattr(watcher, "_every_n_epochs", 1)
        if not every or every % schedule.every or schedule.max_overhead is not None:
            rank_zero_warn_or_log(
                f"{called(watcher, key)} runs more often than ExplanationMonitor explains, or at other times: before "
                "the first explanation it finds no value, unless at_start=True, and between explanations a value of "
                "earlier weights. Explain as often as it runs, or let it run less often."
            )


def announce_end(trainer: pl.Trainer, name: str, schedule: Schedule, by_steps: bool, hook: str, at_start: bool) -> None:
    """Says before the training if its end will not be explained, so that scores read there are of earlier weights, or missing.

    Args:
        trainer: The Trainer, at the start of a training.
        name: The monitor's name.
        schedule: When the monitor explains.
        by_steps: Whether it counts optimizer steps.
        hook: The hook in which it explains.
        at_start: Whether it also explains before the first step.
    """
    end, unit = _end_of(trainer, by_steps), "step" if by_steps else "epoch"
    between = trainer.check_val_every_n_epoch if hook == "validation_epoch_end" else 1
    if end is None or between is None:
        return
    last = last_due(end, schedule.every, schedule.every if by_steps else between)
    what = f"ExplanationMonitor {name!r} explains after every {schedule.every} {unit}s"
    if last == 0 and not at_start:
        rank_zero_warn_or_log(
            f"{what}, but this training ends after {end}: nothing will be explained. Explain more often, or pass at_start=True."
        )
    elif last < end:
        rank_zero_info(
            f"{what}, so this training, which ends after {unit} {end}, is explained for the last time after {unit} {last}; scores "
            f"that are read at its end are of that {unit}."
        )


def last_due(end: int, every: int, between: int) -> int:
    """The last of the counts 0, ``between``, 2 * ``between``, ... up to ``end`` at which another ``every`` is full; 0: none is."""
    full = end // between * between // every
    return -(-full * every // between) * between


def _end_of(trainer: pl.Trainer, by_steps: bool) -> int | None:
    """How many epochs or optimizer steps the training has in all; ``None`` if that is not known."""
    end: float | None = trainer.max_epochs
    if by_steps:
        automatic = trainer.lightning_module.automatic_optimization and len(trainer.optimizers) == 1
        end = trainer.estimated_stepping_batches if automatic else trainer.max_steps
    return int(end) if end is not None and 0 < end < math.inf else None


def missing(watchers: Watchers) -> list[str]:
    """The keys that are NaN when an explanation fails to give their scores.

    Without a value a ModelCheckpoint would end the training, and with the value of earlier weights it would keep the
    wrong ones; it treats NaN as the worst score. A score that anything else watches gets no NaN, which would stop the
    training: the ``strict`` argument of EarlyStopping and schedulers decides what a missing value does.
    """
    others = {key for watcher, key in watchers if not isinstance(watcher, in_both(ModelCheckpoint))}
    return [key for _, key in watchers if key not in others]


def called(watcher: Any, key: str) -> str:
    """What watches, in words: ``ModelCheckpoint(monitor='explain/infidelity/ig')``."""
    return f"{type(watcher).__name__}(monitor={key!r})"
