"""Failures that must not end a training run: told once, with their traceback."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Teller:
    """Tells everything once, and survives failures if it may.

    Args:
        name: The monitor's name.
        raising: Whether failures are raised instead.
    """

    def __init__(self, name: str, raising: bool) -> None:
        self.raising = raising
        self._name = name
        self._told: set[str] = set()

    def tell_once(self, key: str, text: str) -> None:
        """Warns, unless it has warned about this key before."""
        if key not in self._told:
            self._told.add(key)
            warnings.warn(f"ExplanationMonitor {self._name!r}: {text}", RuntimeWarning, stacklevel=2)

    def survive(self, work: Callable[[], T], what: str) -> T | None:
        """The result of the work; ``None`` if it fails, which is told."""
        try:
            return work()
        except Exception as error:
            if self.raising:
                raise
            self.tell_once(what, f"{what} failed; training goes on:\n{text_of(error)}")
            return None


def text_of(error: BaseException) -> str:
    """An error with its traceback."""
    return "".join(traceback.format_exception(error))
