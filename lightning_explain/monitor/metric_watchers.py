"""Takes a Trainer, and checks that its checkpoints, early stopping and schedulers watch scores that are logged."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_explain.core.naming import nearest
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
    callbacks = [c for c in trainer.callbacks if isinstance(c, (ModelCheckpoint, EarlyStopping))]  # type: ignore[attr-defined]
    found: Watchers = [(callback, str(callback.monitor)) for callback in callbacks]
    found += [(c.scheduler, str(c.monitor)) for c in trainer.lr_scheduler_configs if c.reduce_on_plateau]
    owners = {key: [other for other in names if key.startswith(f"{other}/")] for _, key in found}
    return [(watcher, key) for watcher, key in found if max(owners[key], key=len, default=None) == name]


def check_keys(watchers: Watchers, keys: Collection[str]) -> None:
    """Refuses what watches a score that is never logged.

    Raises:
        ValueError: If a watched key is not among ``keys``.
    """
    for watcher, key in watchers:
        if key not in keys:
            raise ValueError(f"{_called(watcher, key)} watches a score that is not logged: {nearest(key, keys)}")


def warn_of_times(watchers: Watchers, schedule: Schedule, by_steps: bool) -> None:
    """Warns of what does not run once in every so many explanations: it may find a value of earlier weights, or none."""
    for watcher, key in watchers:
        every = getattr(watcher, "_every_n_train_steps", 0) if by_steps else getattr(watcher, "_every_n_epochs", 1)
        if not every or every % schedule.every or schedule.max_overhead is not None:
            rank_zero_warn_or_log(
                f"{_called(watcher, key)} runs more often than ExplanationMonitor explains, or at other times: before "
                "the first explanation it finds no value, unless at_start=True, and between explanations a value of "
                "earlier weights. Explain as often as it runs, or let it run less often."
            )


def warn_if_never(trainer: pl.Trainer, name: str, schedule: Schedule, by_steps: bool) -> None:
    """Warns if the training ends before the monitor's first explanation."""
    last = trainer.max_steps if by_steps else trainer.max_epochs
    if last is not None and 0 < last < schedule.every:
        unit = "steps" if by_steps else "epochs"
        rank_zero_warn_or_log(
            f"ExplanationMonitor {name!r} explains after every {schedule.every} {unit}, but this training ends after "
            f"{last}: nothing will be explained. Explain more often, or pass at_start=True."
        )


def missing(watchers: Watchers) -> list[str]:
    """The keys that are NaN when an explanation fails to give their scores.

    Without a value a ModelCheckpoint would end the training, and with the value of earlier weights it would keep the
    wrong ones; it treats NaN as the worst score. A score that anything else watches gets no NaN, which would stop the
    training: the ``strict`` argument of EarlyStopping and schedulers decides what a missing value does.
    """
    others = {key for watcher, key in watchers if not isinstance(watcher, ModelCheckpoint)}
    return [key for _, key in watchers if key not in others]


def _called(watcher: Any, key: str) -> str:
    return f"{type(watcher).__name__}(monitor={key!r})"
