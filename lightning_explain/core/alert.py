"""Alert: a score's name and one bound in; whether a value of the score is out of bounds, out."""

from __future__ import annotations

import math
from dataclasses import dataclass

ACTIONS = ("log", "wandb", "stop")


_BOUNDS = ("above", "below", "times")


@dataclass(frozen=True)
class Alert:
    """Takes a score's name and one bound; the monitor warns, or stops training, when the score goes out of bounds.

    An alert fires once. It fires again only after the score has been back within its bound, or after a resume: a run
    that an alert stopped stops again when resumed if the score is still out of bounds. An explanation that lacks the
    score (the metric failed, or no sample was finite) is skipped.

    Args:
        metric: The score's name without the monitor's prefix, such as ``"relevance_mass/ig"``.
        above: Fires when the score is larger than this.
        below: Fires when the score is smaller than this.
        times: Fires when the score reaches this multiple of its first value: 2.0 when it has doubled, 0.5 when it has
            halved. If the first value is not above 0 the alert never fires, and the monitor warns about it.
        patience: How many consecutive explanations must be out of bounds before the alert fires.
        action: ``"log"``: warn; ``"wandb"``: also send an alert of the W&B run; ``"stop"``: warn and end the training.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or not exactly one of ``above``, ``below`` and ``times`` is given.

    Example:
        >>> from lightning_explain import Alert
        >>> alert = Alert("relevance_mass/ig", below=0.3, patience=2, action="stop")
        >>> alert.condition
        'below 0.3'
        >>> alert.out(0.25, first=0.8)
        True
    """

    metric: str
    above: float | None = None
    below: float | None = None
    times: float | None = None
    patience: int = 1
    action: str = "log"

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise TypeError(f"Alert(metric={self.metric!r}); give a score's name, such as 'relevance_mass/ig'.")
        given = [name for name in _BOUNDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in given) or "none of them"
            raise ValueError(f"Alert({self.metric!r}) has {found}; give exactly one of {', '.join(_BOUNDS)}.")
        bound = getattr(self, given[0])
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise TypeError(f"Alert({given[0]}={bound!r}); give a number.")
        if not math.isfinite(bound):
            raise ValueError(f"Alert({given[0]}={bound!r}); give a finite number.")
        if self.times is not None and (self.times <= 0 or self.times == 1):
            raise ValueError(f"Alert(times={self.times!r}); give a number above 1, or one between 0 and 1.")
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"Alert(patience={self.patience!r}); give a whole number of at least 1.")
        if self.action not in ACTIONS:
            raise ValueError(f"Alert(action={self.action!r}); give one of {', '.join(map(repr, ACTIONS))}.")

    @property
    def key(self) -> str:
        """The alert's key in a checkpoint: metric, condition and patience, without the action."""
        return f"{self.metric} {self.condition} for {self.patience}"

    @property
    def condition(self) -> str:
        """The bound in words, such as ``above 0.3``."""
        return next(f"{name} {float(getattr(self, name)):g}" for name in _BOUNDS if getattr(self, name) is not None)

    def out(self, value: float, first: float) -> bool:
        """Whether ``value`` is out of bounds; ``first`` is the score's first value in this run, used by ``times``."""
        if self.above is not None:
            return value > self.above
        if self.below is not None:
            return value < self.below
        assert self.times is not None
        return first > 0 and (value >= self.times * first if self.times > 1 else value <= self.times * first)
