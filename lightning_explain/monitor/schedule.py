"""When to explain: a plain counter of epochs or steps, and a limit on the time it may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_SAVED = ("last", "not_before", "explain_seconds", "train_seconds", "lengthened")


@dataclass
class Schedule:
    """Says when an explanation is due.

    Counts are epochs finished or optimiser steps taken, whichever the monitor goes by.

    Args:
        every: Explain whenever another multiple of this count is reached.
        max_overhead: Largest share of training time the explanations may take, e.g. 0.05; ``None``: no limit.
        last: Count at the last explanation.
        not_before: Count before which none is due, for the limit's sake.
        explain_seconds: Time spent explaining so far.
        train_seconds: Time spent training so far, without explaining.
        lengthened: Whether the limit has ever put an explanation off.
        origin: Reading of the clock at which training would have begun, had it never been interrupted; ``None``: the clock stands.
    """

    every: int = 1
    max_overhead: float | None = None
    last: int = 0
    not_before: int = 0
    explain_seconds: float = 0.0
    train_seconds: float = 0.0
    lengthened: bool = False
    origin: float | None = None

    def start(self, now: float) -> None:
        """Starts the clock, or starts it again after a resume. ``now`` is in seconds."""
        self.origin = now - self.train_seconds - self.explain_seconds

    def trained(self, now: float) -> float:
        """Seconds spent training until now, without explaining."""
        return self.train_seconds if self.origin is None else now - self.origin - self.explain_seconds

    def stop(self, now: float) -> None:
        """Stops the clock, for training ends. ``now`` is in seconds."""
        self.train_seconds, self.origin = self.trained(now), None

    def pass_over(self, count: int) -> None:
        """Goes on behind this count: what was due until then is not made up for."""
        self.last = max(self.last, count)

    def due(self, count: int) -> bool:
        """Whether to explain at this count; a count that has been explained is not due again."""
        # A checkpoint may come from a run with a limit that this one does not have.
        put_off = self.max_overhead is not None and count < self.not_before
        return count // self.every > self.last // self.every and not put_off

    def done(self, count: int, started: float, now: float) -> None:
        """Notes an explanation and puts the next one off as far as the limit asks.

        Args:
            count: Count at which it was made.
            started: Reading of the clock when it began.
            now: Reading of the clock now.
        """
        seconds = now - started
        self.last = max(self.last, count)
        self.train_seconds = self.trained(started)
        self.explain_seconds += seconds
        if self.max_overhead is None or count < 1:
            return
        # Another explanation like this one must fit into the share of the time trained by then.
        wanted = (self.explain_seconds + seconds) / (self.max_overhead * max(self.train_seconds, 1e-9) / count)
        self.not_before = math.ceil(wanted / self.every) * self.every
        self.lengthened = self.lengthened or self.not_before > count + self.every

    def overhead(self, started: float, now: float) -> float | None:
        """Time spent explaining over time spent training, with an explanation under way; ``None`` before any training."""
        trained = self.trained(started)
        return (self.explain_seconds + now - started) / trained if trained > 0 else None

    def state(self) -> dict[str, Any]:
        """What must survive in a checkpoint."""
        return {name: getattr(self, name) for name in _SAVED}

    def load(self, state: dict[str, Any]) -> None:
        """Takes up a saved state, or what there is of it."""
        for name in _SAVED:
            setattr(self, name, state.get(name, getattr(self, name)))
