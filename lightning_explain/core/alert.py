"""Alert: a bound on a score, and what to do when the score leaves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

ACTIONS = ("log", "wandb", "stop")


_BOUNDS = ("above", "below", "times")


@dataclass(frozen=True)
class Alert:
    """What to do when a score leaves its bounds.

    It fires once, and again only after the score has been within its bounds in between, or in a training that goes on: one that
    was stopped and is resumed stops again if the score is still out of bounds. An explanation without the score (it failed, or no
    sample was finite) is passed over.

    Args:
        metric: The score's name below the monitor's, such as ``"relevance_mass/ig"``.
        above: Fires when the score is larger.
        below: Fires when it is smaller.
        times: Fires when it has reached so many times its first value: 2.0 when it doubles, 0.5 when it halves. Never, if that
            value is not above 0, which is told.
        patience: After so many explanations in a row.
        action: ``"log"``: a warning; ``"wandb"``: also an alert of the W&B run; ``"stop"``: also the end of the training.

    Raises:
        TypeError: If an argument is of a kind that is not allowed.
        ValueError: If it is out of its range, or not exactly one of ``above``, ``below`` and ``times`` is given.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    times: float | None = None
    patience: int = 1
    action: str = "log"

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise TypeError(f"Alert(metric={self.metric!r}); allowed: a score's name, such as 'relevance_mass/ig'.")
        given = [name for name in _BOUNDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in given) or "none of them"
            raise ValueError(f"Alert({self.metric!r}) has {found}; give exactly one of {', '.join(_BOUNDS)}.")
        bound = getattr(self, given[0])
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise TypeError(f"Alert({given[0]}={bound!r}); allowed: a number.")
        if not math.isfinite(bound):
            raise ValueError(f"Alert({given[0]}={bound!r}); allowed: a finite number.")
        if self.times is not None and (self.times <= 0 or self.times == 1):
            raise ValueError(f"Alert(times={self.times!r}); allowed: a number above 1, or one between 0 and 1.")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"Alert(patience={self.patience!r}); allowed: a whole number of at least 1.")
        if self.action not in ACTIONS:
            raise ValueError(f"Alert(action={self.action!r}); allowed: {', '.join(map(repr, ACTIONS))}.")

    @property
    def key(self) -> str:
        """What names it in a checkpoint: the condition, whatever is done about it."""
        return f"{self.metric} {self.condition} for {self.patience}"

    @property
    def condition(self) -> str:
        """``above 0.3``."""
        return next(f"{name} {float(getattr(self, name)):g}" for name in _BOUNDS if getattr(self, name) is not None)

    def out(self, value: float, first: float) -> bool:
        """Whether a value is out of bounds, given the first one."""
        if self.above is not None:
            return value > self.above
        if self.below is not None:
            return value < self.below
        assert self.times is not None
        return first > 0 and (value >= self.times * first if self.times > 1 else value <= self.times * first)
