"""Takes a Trainer, and checks that its checkpoints and early stopping find a fresh value of each score they watch."""

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
_FIX = "use ExplanationMonitor(at_start=True), which also explains before the first step"


@dataclass(frozen=True)
class Trigger:
    """When a callback acts.

    Args:
        moment: The event after which it acts.
        every: Number of optimizer steps (``"step"``) or epochs (otherwise) between actions.
        at_start: Whether it also acts before the first step.
        steady: Whether it never skips one of these moments.
    """

    moment: Moment
    every: int
    at_start: bool = False
    steady: bool = True


def check_keys(trainer: pl.Trainer, name: str, names: Iterable[str], keys: Iterable[str]) -> None:
    """Refuses a callback that watches a score that is never logged.

    Args:
        trainer: The Trainer.
        name: The monitor's name.
        names: The names of all monitors.
        keys: The scores that this monitor will log.

    Raises:
        ValueError: If a callback watches a key under this name that is not among ``keys``.
    """
    for watcher, key in _watchers(trainer, name, names):
        if key not in keys:
            raise ValueError(f"{_called(watcher, key)} watches a score that is not logged: {nearest(key, keys)}")


def warn_if_never(trainer: pl.Trainer, name: str, explains: Trigger) -> None:
    """Warns if the training ends before the monitor's first explanation."""
    by_steps, last = explains.moment == "step", trainer.max_epochs
    if by_steps:
        last = trainer.max_steps if trainer.max_steps > 0 else None
    if last is not None and 0 < last < explains.every and not explains.at_start:
        unit = "steps" if by_steps else "epochs"
        rank_zero_warn(
            f"ExplanationMonitor {name!r} explains after every {explains.every} {unit}, but this training ends after "
            f"{last}: nothing will be explained. Explain more often, or pass at_start=True."
        )


def check_times(
    trainer: pl.Trainer,
    monitor: pl.Callback,
    name: str,
    names: Iterable[str],
    explains: Trigger,
    later: Collection[str] = (),
) -> None:
    """Refuses a callback that reads a score before it exists, and warns of one that reads the same value twice.

    Args:
        trainer: The Trainer.
        monitor: The callback that logs the scores.
        name: Its name.
        names: The names of all monitors.
        explains: When it explains.
        later: The scores that the first explanation does not have yet.

    Raises:
        ValueError: If a callback reads a score too early.
    """
    order = list(trainer.callbacks)  # type: ignore[attr-defined]
    for watcher, key in _watchers(trainer, name, names):
        watches = _trigger_of(watcher, trainer)
        explained = _comparable(explains, watches, trainer)
        # After a step and after a training epoch both callbacks act in the same hook, so their order in the list
        # decides.
        same_hook = watches.moment == explains.moment != "validation"
        behind = not same_hook or order.index(watcher) > order.index(monitor)
        if key in later:
            _refuse_before_second(_called(watcher, key), watches, explained, explains, behind)
        elif not explains.at_start:
            _refuse_early(_called(watcher, key), watches, explained, explains, behind)
        again = watches.moment == explains.moment == "validation" and trainer.val_check_interval != 1.0
        if explained is None or watches.every % explained.every or not explains.steady or not behind or again:
            rank_zero_warn(
                f"{_called(watcher, key)} runs more often than ExplanationMonitor explains, or at other times: "
                "between explanations it reads the last value again, which belongs to earlier weights. "
                "Explain as often as it runs, or let it run less often."
            )


def missing(trainer: pl.Trainer, name: str, names: Iterable[str]) -> dict[str, float]:
    """NaN for each watched score that an explanation may fail to give, by key without the monitor's name.

    Without a value a ModelCheckpoint would end the training, and with the value of earlier weights it would keep the
    wrong ones; it treats NaN as the worst score. A score that an EarlyStopping watches too gets no NaN, which would
    stop the training: the ``strict`` argument of EarlyStopping decides what a missing value does.
    """
    watched = list(_watchers(trainer, name, names)) if trainer.state.fn == "fit" else []
    stopping = {key for watcher, key in watched if not isinstance(watcher, ModelCheckpoint)}
    return {key.removeprefix(f"{name}/"): math.nan for _, key in watched if key not in stopping}


def _refuse_early(owner: str, watches: Trigger, explained: Trigger | None, explains: Trigger, behind: bool) -> None:
    if explained is None and (watches.moment, explains.moment) == ("validation", "train epoch"):
        raise ValueError(
            f"{owner} runs after validation, before the epoch's explanation; use "
            f'hook="validation_epoch_end", or {_FIX}.'
        )
    if explained is None or explained.every > watches.every:
        raise ValueError(f"{owner} may run before the first explanation; {_FIX}, or explain more often.")
    if explained.every == watches.every and watches.moment == explains.moment and not behind:
        raise ValueError(f"{owner} comes before the ExplanationMonitor in Trainer(callbacks=...); put it after.")


def _refuse_before_second(
    owner: str, watches: Trigger, explained: Trigger | None, explains: Trigger, behind: bool
) -> None:
    """Refuses a callback that may run before the second explanation: the first has no earlier maps to compare with."""
    count = 1 if explains.at_start else 2
    second = None if explained is None else replace(explained, every=count * explained.every)
    same = watches.moment == explains.moment
    if second is None or second.every > watches.every or (second.every == watches.every and same and not behind):
        raise ValueError(
            f"{owner} may run before the second explanation, and the first has no earlier maps to compare with; "
            f"{_FIX}, explain whenever it runs, and put it after the ExplanationMonitor in Trainer(callbacks=...)."
        )


def _watchers(trainer: pl.Trainer, name: str, names: Iterable[str]) -> Iterator[tuple[pl.Callback, str]]:
    for watcher in trainer.callbacks:  # type: ignore[attr-defined]
        key = getattr(watcher, "monitor", None)
        if isinstance(watcher, (ModelCheckpoint, EarlyStopping)) and isinstance(key, str):
            # With monitors named "explain" and "explain/late", a key belongs to the longest name that it starts with.
            owners = [other for other in names if key.startswith(f"{other}/")]
            if max(owners, key=len, default=None) == name:
                yield watcher, key


def _called(watcher: pl.Callback, key: str) -> str:
    return f"{type(watcher).__name__}(monitor={key!r})"


def _comparable(explains: Trigger, watches: Trigger, trainer: pl.Trainer) -> Trigger | None:
    """When the monitor explains, in the watcher's unit (steps or epochs); ``None`` where the two cannot be compared."""
    if explains.moment == watches.moment:
        return explains
    if (explains.moment, watches.moment) == ("validation", "train epoch"):
        # In each epoch Lightning validates before it ends the training epoch.
        return Trigger("train epoch", math.lcm(explains.every, trainer.check_val_every_n_epoch or 1))
    return None


def _trigger_of(watcher: pl.Callback, trainer: pl.Trainer) -> Trigger:
    """When a watching callback runs, read from its private attributes, because it has no public ones."""
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
