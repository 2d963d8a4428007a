"""Checkpoints and early stopping that watch the monitor's scores: whether they will find a value, and a new one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_explain.core.naming import nearest

Moment: TypeAlias = Literal["step", "validation", "train epoch", "any time"]
_FIX = "use ExplanationMonitor(at_start=True), which explains before the first step as well"


@dataclass(frozen=True)
class Trigger:
    """When something happens again and again.

    Args:
        moment: After which event.
        every: After how many optimiser steps (``"step"``) or epochs (otherwise).
        at_start: Whether it happens before the first step as well.
        steady: Whether it never skips one of these moments.
    """

    moment: Moment
    every: int
    at_start: bool = False
    steady: bool = True


def check_keys(trainer: pl.Trainer, name: str, names: Iterable[str], keys: Iterable[str]) -> None:
    """Refuses a watcher of a score that will never exist.

    Args:
        trainer: The Trainer.
        name: The monitor's name.
        names: The names of all monitors.
        keys: The scores that this one will log.

    Raises:
        ValueError: If one watches another score under this name.
    """
    for watcher, key in _watchers(trainer, name, names):
        if key not in keys:
            raise ValueError(f"{_called(watcher, key)} watches a score that is not logged: {nearest(key, keys)}")


def check_times(
    trainer: pl.Trainer,
    monitor: pl.Callback,
    name: str,
    names: Iterable[str],
    explains: Trigger,
    later: Collection[str] = (),
) -> None:
    """Refuses a watcher that looks before there is a value, and tells of one that sees values more than once.

    Args:
        trainer: The Trainer.
        monitor: The callback that logs the scores.
        name: Its name.
        names: The names of all monitors.
        explains: When it explains.
        later: The scores that the first explanation has not.

    Raises:
        ValueError: If one looks too early.
    """
    order = list(trainer.callbacks)  # type: ignore[attr-defined]
    for watcher, key in _watchers(trainer, name, names):
        watches = _trigger_of(watcher, trainer)
        explained = _comparable(explains, watches, trainer)
        # Only after a step and at the end of a training epoch both act in the same hook, and their order decides.
        same_hook = watches.moment == explains.moment != "validation"
        behind = not same_hook or order.index(watcher) > order.index(monitor)
        if key in later:
            _refuse_before_second(_called(watcher, key), watches, explained, explains, behind)
        elif not explains.at_start:
            _refuse_early(_called(watcher, key), watches, explained, explains, behind)
        again = watches.moment == explains.moment == "validation" and trainer.val_check_interval != 1.0
        if explained is None or watches.every % explained.every or not explains.steady or not behind or again:
            rank_zero_warn(
                f"{_called(watcher, key)} looks more often than ExplanationMonitor explains, or not at the same time: "
                "between explanations it sees the last value again, which is of other weights. "
                "Explain as often as it looks, or let it look less often."
            )


def missing(trainer: pl.Trainer, name: str, names: Iterable[str]) -> dict[str, float]:
    """What stands for scores that an explanation did not give, without the monitor's name: NaN, which is the worst to a checkpoint.

    A ModelCheckpoint that finds no value, or the one of other weights, would end the training or keep the wrong weights. Where
    an EarlyStopping watches as well nothing is put in: NaN would stop it, and what it does without is its own ``strict``.
    """
    watched = list(_watchers(trainer, name, names)) if trainer.state.fn == "fit" else []
    stopping = {key for watcher, key in watched if not isinstance(watcher, ModelCheckpoint)}
    return {key.removeprefix(f"{name}/"): math.nan for _, key in watched if key not in stopping}


def _refuse_early(owner: str, watches: Trigger, explained: Trigger | None, explains: Trigger, behind: bool) -> None:
    if explained is None and (watches.moment, explains.moment) == ("validation", "train epoch"):
        raise ValueError(
            f"{owner} looks after validation, before the epoch's explanation; use "
            f'hook="validation_epoch_end", or {_FIX}.'
        )
    if explained is None or explained.every > watches.every:
        raise ValueError(f"{owner} may look before the first explanation is made; {_FIX}, or explain more often.")
    if explained.every == watches.every and watches.moment == explains.moment and not behind:
        raise ValueError(f"{owner} stands before the ExplanationMonitor in Trainer(callbacks=...); put it behind.")


def _refuse_before_second(
    owner: str, watches: Trigger, explained: Trigger | None, explains: Trigger, behind: bool
) -> None:
    """Refuses a watcher that may look before the second explanation, for the first has nothing to look back on."""
    count = 1 if explains.at_start else 2
    second = None if explained is None else replace(explained, every=count * explained.every)
    same = watches.moment == explains.moment
    if second is None or second.every > watches.every or (second.every == watches.every and same and not behind):
        raise ValueError(
            f"{owner} may look before the second explanation, and the first has nothing to look back on; {_FIX}, at the "
            "same moments as it looks, and put it behind the ExplanationMonitor in Trainer(callbacks=...)."
        )


def _watchers(trainer: pl.Trainer, name: str, names: Iterable[str]) -> Iterator[tuple[pl.Callback, str]]:
    for watcher in trainer.callbacks:  # type: ignore[attr-defined]
        key = getattr(watcher, "monitor", None)
        if isinstance(watcher, (ModelCheckpoint, EarlyStopping)) and isinstance(key, str):
            # Of monitors named "explain" and "explain/late", a key belongs to the one with the longest name.
            owners = [other for other in names if key.startswith(f"{other}/")]
            if max(owners, key=len, default=None) == name:
                yield watcher, key


def _called(watcher: pl.Callback, key: str) -> str:
    return f"{type(watcher).__name__}(monitor={key!r})"


def _comparable(explains: Trigger, watches: Trigger, trainer: pl.Trainer) -> Trigger | None:
    """The monitor's rhythm as the watcher meets it; ``None`` where the two have no common measure."""
    if explains.moment == watches.moment:
        return explains
    if (explains.moment, watches.moment) == ("validation", "train epoch"):
        # Validation of an epoch comes before the end of its training epoch.
        return Trigger("train epoch", math.lcm(explains.every, trainer.check_val_every_n_epoch or 1))
    return None


def _trigger_of(watcher: pl.Callback, trainer: pl.Trainer) -> Trigger:
    """When a watcher looks. Its private attributes are all there is to tell."""
    if getattr(watcher, "_train_time_interval", None) is not None:
        return Trigger("any time", 1)
    if getattr(watcher, "_every_n_train_steps", 0):
        return Trigger("step", watcher._every_n_train_steps)  # type: ignore[attr-defined]
    every = getattr(watcher, "_every_n_epochs", 1) or 1
    if _acts_at_train_epoch_end(watcher, trainer):
        return Trigger("train epoch", every)
    return Trigger("validation", math.lcm(every, trainer.check_val_every_n_epoch or 1))


def _acts_at_train_epoch_end(watcher: pl.Callback, trainer: pl.Trainer) -> bool:
    given = getattr(watcher, "_save_on_train_epoch_end", getattr(watcher, "_check_on_train_epoch_end", None))
    if given is not None:
        return bool(given)
    if trainer.check_val_every_n_epoch != 1:
        return False
    never = isinstance(watcher, ModelCheckpoint) and not trainer.enable_validation
    return never or trainer.val_check_interval == 1.0
