"""Takes counts of epochs or steps and clock readings; returns whether an explanation is due within its time limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_explain.core.validation import elapsed

_SAVED = (
    "first",
    "last",
    "not_before",
    "explain_seconds",
    "train_seconds",
    "lengthened",
    "last_seconds",
    "next_seconds",
)

_NEVER = 1e15
"""A count that no training reaches."""


@dataclass
class Schedule:
    """Decides when an explanation is due.

    A count is the number of finished epochs or of optimizer steps, depending on the monitor.

    Args:
        every: Explain at every multiple of this count.
        max_overhead: Largest share of training time that explanations may take, e.g. 0.05; ``None``: no limit.
        first: Count at which the seconds below begin; more than 0 in a training that no saved schedule follows.
        last: Count at the last explanation.
        not_before: Count before which no explanation is due, because of ``max_overhead``.
        explain_seconds: Seconds spent explaining so far.
        train_seconds: Seconds spent training so far, without explaining.
        lengthened: Whether ``max_overhead`` has ever postponed an explanation.
        last_seconds: Seconds of the last explanation.
        next_seconds: Seconds that the next one is expected to take: those of the longer of the last two.
        later_seconds: Seconds of the last explanation after those that were given for it, because it was still being written.
        measured_at: Clock reading up to which those of the explanation in progress have been given.
        origin: Clock reading at which an uninterrupted training would have begun; ``None``: the clock is stopped.
    """

    every: int = 1
    max_overhead: float | None = None
    first: int = 0
    last: int = 0
    not_before: int = 0
    explain_seconds: float = 0.0
    train_seconds: float = 0.0
    lengthened: bool = False
    last_seconds: float = 0.0
    next_seconds: float = 0.0
    later_seconds: float = 0.0
    measured_at: float | None = None
    origin: float | None = None

    def start(self, now: float) -> None:
        """Starts the clock, also after a resume. ``now`` is in seconds."""
        self.origin = now - self.train_seconds - self.explain_seconds

    def trained(self, now: float) -> float:
        """Seconds spent training until ``now``, without explaining."""
        return self.train_seconds if self.origin is None else elapsed(self.explain_seconds, now - self.origin)

    def stop(self, now: float) -> None:
        """Stops the clock at the end of training. ``now`` is in seconds."""
        self.train_seconds, self.origin = self.trained(now), None

    def pass_over(self, count: int) -> None:
        """Skips every explanation due up to this count."""
        self.last = max(self.last, count)

    def begin_at(self, count: int) -> None:
        """Begins in the middle of a training: skips what was due before, and knows no seconds of it."""
        self.pass_over(count)
        if self.train_seconds == 0:
            self.first = count

    def due(self, count: int) -> bool:
        """Whether to explain at this count; a count is explained only once."""
        return self.reached(count) and not self.put_off(count)

    def reached(self, count: int) -> bool:
        """Whether an explanation is due at this count, if nothing puts it off."""
        return count // self.every > self.last // self.every

    def put_off(self, count: int) -> bool:
        """Whether nothing is explained at this count because of ``max_overhead``."""
        # A checkpoint may hold ``not_before`` from a run with a limit that this run does not have.
        return self.max_overhead is not None and count < self.not_before

    def has_room(self, now: float) -> bool:
        """Whether the seconds that the next explanation is expected to take are an allowed share of the training until ``now``.

        The first after which a time limit is kept has none to keep.
        """
        if self.max_overhead is None or not self.not_before:
            return True
        return self.explain_seconds + self.next_seconds <= self.max_overhead * self.trained(now)

    def done(self, count: int, started: float, now: float, reached: int | None = None) -> None:
        """Records an explanation, and postpones the next one as far as ``max_overhead`` requires.

        Args:
            count: Count at which it was made.
            started: Clock reading when it began, in seconds.
            now: Clock reading now, in seconds.
            reached: Count by now, if training went on meanwhile.
        """
        seconds = elapsed(started, now)
        self.last = max(self.last, count)
        self.train_seconds = self.trained(started)
        self.explain_seconds += seconds
        self.last_seconds, self.next_seconds = seconds, max(seconds, self.last_seconds)
        if self.measured_at is not None:
            self.later_seconds, self.measured_at = elapsed(self.measured_at, now), None
        count = count if reached is None else max(count, reached)
        trained = count - self.first
        if self.max_overhead is None or trained < 1:
            return
        # By the next one, its time must fit into the allowed share.
        self.not_before = self._fits(self.explain_seconds + self.next_seconds, trained)
        self.lengthened = self.lengthened or self.not_before > count + self.every

    def _fits(self, seconds: float, trained: int) -> int:
        """The first multiple of ``every`` by which so many seconds are an allowed share of the training."""
        assert self.max_overhead is not None
        allowed = max(self.max_overhead * max(self.train_seconds, 1e-9) / trained, 1e-300)
        return math.ceil(min(self.first + seconds / allowed, _NEVER) / self.every) * self.every

    def take_up(self, count: int) -> None:
        """Goes on from a saved schedule; puts nothing off for longer than the limit of this run asks for.

        The last explanation cannot have taken longer than all of them.
        """
        self.last_seconds, self.next_seconds = (
            min(seconds, self.explain_seconds) for seconds in (self.last_seconds, self.next_seconds)
        )
        if self.put_off(count):
            self.not_before = min(self.not_before, self._fits(2 * self.explain_seconds, max(count - self.first, 1)))

    def overhead(self, started: float, now: float) -> float | None:
        """Time explaining over time training, with the explanation in progress; ``None`` before any training."""
        trained = self.trained(started)
        return (self.explain_seconds + elapsed(started, now)) / trained if trained > 0 else None

    def measured(self, started: float, now: float) -> dict[str, float]:
        """What is given for the explanation in progress: its ``seconds`` until now, and its ``overhead`` if there is one.

        The seconds are with those of the last explanation that were not given with it, so that their sum is right.
        """
        self.measured_at, overhead = now, self.overhead(started, now)
        seconds = {"seconds": elapsed(started, now) + self.later_seconds}
        return seconds if overhead is None else {**seconds, "overhead": overhead}

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint."""
        return {name: getattr(self, name) for name in _SAVED}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state; entries that are missing keep their values."""
        vars(self).update({name: value for name, value in state.items() if name in _SAVED})
