"""Takes failures that must not end a training; reports each once, and switches off what keeps failing."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_explain.core.warn import warn_or_log
from lightning_explain.store.disk import is_full

T = TypeVar("T")

IN_A_ROW = 3
"""Consecutive failures after which a method, a metric or a sink is switched off."""

rank_zero_warn_or_log = rank_zero_only(warn_or_log)


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
            self.report_once(what, f"{what} failed; training continues (rank 0). Fix the cause:\n{text_of(error)}")
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


def text_of(error: BaseException) -> str:
    """An error with its traceback."""
    return "".join(traceback.format_exception(error))
