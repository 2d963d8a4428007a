"""Takes failures that must not end a training; reports each once, and switches off what keeps failing.

Every method that Lightning calls is a :func:`hook`. What it does on all ranks together is in sections of :meth:`FailureLog.guard`. Only
an error that such a section raises on all ranks, to refuse what the user asked for, comes out of a hook.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_explain.checks.preflight import UncheckedError
from lightning_explain.core.warn import shown_warnings, warn_or_log
from lightning_explain.distributed.collectives import LostRanksError
from lightning_explain.distributed.ranks import ELSEWHERE, Agreement, Ranks, Survives, anything, nothing
from lightning_explain.store.disk import is_full

T = TypeVar("T")
P = ParamSpec("P")

IN_A_ROW = 3
"""Consecutive failures after which a method, a metric or a sink is switched off."""
NOTHING = "nothing is explained in this run, and training continues"

rank_zero_warn_or_log = rank_zero_only(warn_or_log)

# Marks errors that a section has raised on all ranks.
_AGREED = "_raised_on_all_ranks"


def no_refusal(error: Exception) -> bool:
    """Whether the error is none that our checks raise, to refuse what the user asked for."""
    return not isinstance(error, (ValueError, TypeError))


def accident(error: Exception) -> bool:
    """Whether the error is a failure of the machine, which may pass, as opposed to a mistake in arguments or code."""
    return isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError, UncheckedError))


class _HasLog(Protocol):
    _failure_log: FailureLog


M = TypeVar("M", bound=_HasLog)


Hook: TypeAlias = Callable[Concatenate[M, P], None]


def hook(function: Hook[M, P]) -> Hook[M, P]:
    """Makes a method one that Lightning calls: its failures are reported once, and the training goes on.

    Warnings are no errors inside, whatever the user's filters. Raised are errors that a section raised on all ranks, all errors with
    ``on_error="raise"``, and the loss of the other ranks.
    """
    return _guarded(function, None)


def hook_unless(nothing_to_do: Callable[..., bool]) -> Callable[[Hook[M, P]], Hook[M, P]]:
    """The same for a method that Lightning calls for every batch, and that mostly has nothing to do.

    Args:
        nothing_to_do: Takes what the method takes, and says so in few microseconds; the method is not called then.
    """

    def made(function: Hook[M, P]) -> Hook[M, P]:
        return _guarded(function, nothing_to_do)

    return made


def _guarded(function: Hook[M, P], nothing_to_do: Callable[..., bool] | None) -> Hook[M, P]:
    @wraps(function)
    def guarded(monitor: M, /, *arguments: P.args, **named: P.kwargs) -> None:
        try:
            if nothing_to_do is not None and nothing_to_do(monitor, *arguments, **named):
                return
            with shown_warnings():
                function(monitor, *arguments, **named)
        except (LostRanksError, *ELSEWHERE):
            raise
        except Exception as error:
            log = monitor._failure_log
            if log.raising or hasattr(error, _AGREED):
                raise
            log.report_once(function.__name__, f"{function.__name__} failed; training continues. {_cause(error)}")

    return guarded


class FailureLog:
    """Reports each failure once, counts consecutive failures, and switches off what fails repeatedly.

    Args:
        name: The monitor's name.
        raising: Whether failures are raised instead of reported.
    """

    def __init__(self, name: str, raising: bool) -> None:
        self.raising = raising
        self.failures: dict[str, int] = {}
        self._name = name
        self._reported: set[str] = set()

    def report_once(self, key: str, text: str) -> None:
        """Warns with the text, unless it has already warned about this key; never raises."""
        if key not in self._reported:
            self._reported.add(key)
            warn_or_log(f"ExplanationMonitor {self._name!r}: {text}", RuntimeWarning)

    def note_once(self, key: str, text: str) -> None:
        """Logs the text, which tells of no failure, unless it has already done so for this key."""
        if key not in self._reported:
            self._reported.add(key)
            rank_zero_info(f"ExplanationMonitor {self._name!r}: {text}")

    @contextmanager
    def guard(self, what: str, ranks: Ranks, survives: Survives = anything) -> Iterator[Agreement]:
        """A section that all ranks leave together if it fails on any of them, which is reported once on the rank where it did.

        Args:
            what: What it means that the section failed, such as ``"No explanation"``.
            ranks: The processes that are in it.
            survives: The errors that end the section only; others are raised on all ranks.
        """
        with self._agreed(what, ranks, survives) as agreement:
            yield agreement
        if agreement.failed_rank == ranks.rank and agreement.error is not None:
            self.report_once(what, f"{what} (rank {ranks.rank}); training continues. {_cause(agreement.error)}")

    @contextmanager
    def preparing(self, what: str, ranks: Ranks, survives: Survives) -> Iterator[Agreement]:
        """The same for a section without which nothing can be explained; a refusal of what nobody asked for is reported by its text."""
        with self._agreed(what, ranks, survives) as agreement:
            yield agreement
        error = agreement.error
        if agreement.failed_rank == ranks.rank and error is not None:
            cause = _cause(error) if no_refusal(error) else str(error)
            self.report_once(what, f"{what} (rank {ranks.rank}); {NOTHING}. {cause}")

    @contextmanager
    def _agreed(self, what: str, ranks: Ranks, survives: Survives) -> Iterator[Agreement]:
        try:
            with ranks.agree(what, nothing if self.raising else survives) as agreement:
                yield agreement
        except Exception as error:
            setattr(error, _AGREED, True)
            raise

    def survive(self, work: Callable[[], T], what: str) -> T | None:
        """Returns the result of the work; ``None`` if it is switched off or fails, which is reported and counted."""
        if self.is_off(what):
            return None
        try:
            found = work()
        except Exception as error:
            if self.raising:
                raise
            # Only rank zero writes, so only rank zero can fail here.
            self.report_once(what, f"{what} failed; training continues (rank 0). {_cause(error)}")
            # What failed for lack of room is tried again, because there may be room again.
            self.count(what, failed=not is_full(error))
            return None
        self.count(what, failed=False)
        return found

    def count(self, what: str, failed: bool, speaks: bool = True) -> None:
        """Counts a failure, or resets the count; reports what is switched off, on the rank that ``speaks``."""
        if not failed:
            self.failures.pop(what, None)
            return
        self.failures[what] = self.failures.get(what, 0) + 1
        if speaks:
            self.report_switched_off(what)

    def is_off(self, what: str) -> bool:
        """Whether it is switched off because it failed too often in a row."""
        return self.failures.get(what, 0) >= IN_A_ROW

    def without_off(self, named: Mapping[str, T]) -> dict[str, T]:
        """The methods or metrics that are not switched off."""
        return {name: one for name, one in named.items() if not self.is_off(name)}

    def report_switched_off(self, what: str) -> None:
        """Warns once if it is switched off, and says how to switch it on again."""
        if self.is_off(what):
            self.report_once(
                f"off/{what}",
                f"{what!r} failed {IN_A_ROW} times in a row and is switched off. To switch it on again, call "
                f"monitor.switch_on({what!r}) on all ranks, or start a new training from step 0.",
            )

    def load(self, failures: Mapping[str, int]) -> None:
        """Restores saved counts."""
        self.failures = dict(failures)

    def switch_on(self, what: str | None = None) -> None:
        """Forgets the failures of one method, metric or sink, or of all, so that new failures are reported again."""
        gone = [*self.failures] if what is None else [what]
        for key in gone:
            self.failures.pop(key, None)
        self._reported -= {*gone, *(f"off/{key}" for key in gone)}


def _cause(error: BaseException) -> str:
    return f"Fix the cause:\n{text_of(error)}"


def text_of(error: BaseException) -> str:
    """An error with its traceback."""
    return "".join(traceback.format_exception(error))
