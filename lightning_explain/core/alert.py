"""Alert: a score's name and one bound in; whether a value of the score is out of bounds, out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_explain.core.validation import check_choice, check_whole, is_number, refused

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
            raise refused("Alert", "metric", self.metric, "a score's name, such as 'relevance_mass/ig'", TypeError)
        given = [name for name in _BOUNDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in given) or "none of them"
            raise ValueError(f"Alert({self.metric!r}) has {found}; give exactly one of {', '.join(_BOUNDS)}.")
        bound = getattr(self, given[0])
        if not is_number(bound) or not math.isfinite(bound):
            raise refused("Alert", given[0], bound, "a finite number", ValueError if is_number(bound) else TypeError)
        if self.times is not None and (self.times <= 0 or self.times == 1):
            raise refused("Alert", "times", self.times, "a number above 1, or one between 0 and 1")
        check_whole("Alert", "patience", self.patience)
        check_choice("Alert", "action", self.action, ("log", "wandb", "stop"))

    @property
    def key(self) -> str:
        """The alert's key in a checkpoint: metric, condition and patience, without the action."""
        return f"{self.metric} {self.condition} for {self.patience}"

    @property
    def condition(self) -> str:
        """The bound in words, such as ``above 0.3``."""
        return next(f"{name} {float(getattr(self, name)):g}" for name in _BOUNDS if getattr(self, name) is not None)

    def found(self, value: float, first: float) -> str:
        """A value that is out of bounds, in words: ``0.4, which is above 0.3``."""
        if self.times is None:
            return f"{value:.6g}, which is {self.condition}"
        return (
            f"{value:.6g}, which is {value / first:.3g} times its first value {first:.6g} (bound: {self.times:g} times)"
        )

    def out(self, value: float, first: float) -> bool:
        """Whether ``value`` is out of bounds; ``first`` is the score's first value in this run, used by ``times``."""
        if self.above is not None:
            return value > self.above
        if self.below is not None:
            return value < self.below
        assert self.times is not None
        return first > 0 and (value >= self.times * first if self.times > 1 else value <= self.times * first)
