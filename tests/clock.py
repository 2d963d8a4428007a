"""A clock that only tests move, so that what is timed does not depend on what else the machine does."""

from __future__ import annotations

import threading
import time

import pytest


class Clock:
    """Stands still until it is told to go on; ``time.sleep`` of the test's thread moves it too.

    Args:
        monkeypatch: Puts it in the place of ``time.perf_counter`` and ``time.sleep`` until the test ends.
        computing: Whether the time that this process computes counts as well, without that of other processes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, computing: bool = False) -> None:
        self.slept, self._computing, self._thread, self._sleep = 0.0, computing, threading.get_ident(), time.sleep
        monkeypatch.setattr(time, "perf_counter", self.now)
        monkeypatch.setattr(time, "sleep", self.go_on)

    def now(self) -> float:
        """The reading, in seconds."""
        return self.slept + (time.process_time() if self._computing else 0.0)

    def go_on(self, seconds: float) -> None:
        """Moves the clock; another thread sleeps."""
        if threading.get_ident() == self._thread:
            self.slept += seconds
        else:
            self._sleep(seconds)
