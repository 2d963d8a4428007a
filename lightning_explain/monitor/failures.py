"""Failures that must not end a training run: told once, with their traceback, and counted."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

IN_A_ROW = 3
"""After so many failures in a row a method, a metric or a sink is switched off."""


class FailureLog:
    """Tells everything once, survives failures if it may, and switches off what fails again and again.

    Args:
        name: The monitor's name.
        raising: Whether failures are raised instead.
    """

    def __init__(self, name: str, raising: bool) -> None:
        self.raising = raising
        self.failures: dict[str, int] = {}
        self._name = name
        self._reported: set[str] = set()

    def report_once(self, key: str, text: str) -> None:
        """Warns, unless it has warned about this key before."""
        if key not in self._reported:
            self._reported.add(key)
            warnings.warn(f"ExplanationMonitor {self._name!r}: {text}", RuntimeWarning, stacklevel=2)

    def survive(self, work: Callable[[], T], what: str) -> T | None:
        """The result of the work; ``None`` if it fails, which is told and counted, or if it is switched off."""
        if self.is_off(what):
            return None
        try:
            found = work()
        except Exception as error:
            if self.raising:
                raise
            # Only rank zero writes, so only it can fail here.
            self.report_once(what, f"{what} failed; training goes on (rank 0):\n{text_of(error)}")
            self.count(what, failed=True)
            return None
        self.count(what, failed=False)
        return found

    def count(self, what: str, failed: bool, speaks: bool = True) -> None:
        """Counts a failure, or begins to count anew; the rank that ``speaks`` says if that switches it off."""
        if not failed:
            self.failures.pop(what, None)
            return
        self.failures[what] = self.failures.get(what, 0) + 1
        if speaks:
            self.report_switched_off(what)

    def is_off(self, what: str) -> bool:
        """Whether it has failed too often in a row."""
        return self.failures.get(what, 0) >= IN_A_ROW

    def report_switched_off(self, what: str) -> None:
        """Says how to get it back, if it is switched off."""
        if self.is_off(what):
            self.report_once(
                f"off/{what}",
                f"{what!r} failed {IN_A_ROW} times in a row and is switched off. Call "
                f"monitor.switch_on({what!r}) on all ranks to have it again, for instance before a resumed fit, or train "
                "anew from step 0.",
            )

    def switch_on(self, what: str | None = None) -> None:
        """Forgets the failures of one thing, or of all: what fails from now on is told again."""
        gone = [*self.failures] if what is None else [what]
        for key in gone:
            self.failures.pop(key, None)
        self._reported -= {*gone, *(f"off/{key}" for key in gone)}


def text_of(error: BaseException) -> str:
    """An error with its traceback."""
    return "".join(traceback.format_exception(error))
