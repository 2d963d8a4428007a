"""Alert: a score's name and one bound in, or both as an expression; whether a value of the score is out of bounds, out."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from lightning_explain.core.schema import brief
from lightning_explain.core.validation import MANY, check_choice, check_whole, is_number, refused

_OPERATORS = {">": "above", "<": "below", ">=": "at_least", "<=": "at_most"}
_BOUNDS = (*_OPERATORS.values(), "times")
_OPERATOR = re.compile("[<>]=?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FORM = "write <metric>/<method> > 0.3, with >, >=, < or <=, followed by 'for 2' for two explanations in a row"


@dataclass(frozen=True)
class Alert:
    """Takes a score's name and one bound; the monitor warns, or stops training, when the score goes out of bounds.

    Name, bound and patience may be written as one expression, ``"relevance_mass/ig > 0.3 for 2"``, with ``>`` (above), ``<`` (below),
    ``>=`` (at_least) or ``<=`` (at_most); ``for 2`` is the patience. ``lightning-explain check`` takes the same expressions.

    An alert fires once. It fires again only after the score has been back within its bound, or after a resume: a run
    that an alert stopped stops again when resumed if the score is still out of bounds. An explanation that lacks the
    score (the metric failed, or no sample was finite) is skipped.

    Args:
        metric: The score's name without the monitor's prefix, such as ``"relevance_mass/ig"``, or an expression.
        above: Fires when the score is larger than this.
        below: Fires when the score is smaller than this.
        times: Fires when the score reaches this multiple of its first value: 2.0 when it has doubled, 0.5 when it has
            halved. If the first value is not above 0 the alert never fires, and the monitor warns about it.
        patience: How many consecutive explanations must be out of bounds before the alert fires.
        action: ``"log"``: warn; ``"wandb"``: also send an alert of the W&B run; ``"stop"``: warn and end the training.
        at_least: Fires when the score is this or larger.
        at_most: Fires when the score is this or smaller.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, not exactly one bound is given, or an expression is none.

    Example:
        >>> from lightning_explain import Alert
        >>> alert = Alert("relevance_mass/ig", below=0.3, patience=2, action="stop")
        >>> alert.condition
        'below 0.3'
        >>> alert.out(0.25, first=0.8)
        True
        >>> alert == Alert("relevance_mass/ig < 0.3 for 2", action="stop")
        True
    """

    metric: str
    above: float | None = None
    below: float | None = None
    times: float | None = None
    patience: int = 1
    action: str = "log"
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise refused("Alert", "metric", self.metric, "a score's name, such as 'relevance_mass/ig'", TypeError)
        given = [name for name in _BOUNDS if getattr(self, name) is not None]
        if not given and _OPERATOR.search(self.metric):
            given = self._take(parsed(self.metric))
        if len(given) != 1:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in given) or "no bound"
            fix = f"give exactly one of {', '.join(_BOUNDS)}, or an expression such as 'relevance_mass/ig > 0.3 for 2'"
            raise ValueError(f"Alert({brief(self.metric)}) has {found}; {fix}.")
        bound = getattr(self, given[0])
        if not is_number(bound) or not math.isfinite(bound):
            raise refused("Alert", given[0], bound, "a finite number", ValueError if is_number(bound) else TypeError)
        if self.times is not None and (self.times <= 0 or self.times == 1):
            raise refused("Alert", "times", self.times, "a number above 1, or one between 0 and 1")
        check_whole("Alert", "patience", self.patience)
        check_choice("Alert", "action", self.action, ("log", "wandb", "stop"))

    def _take(self, found: dict[str, Any]) -> list[str]:
        """Takes over what an expression says, and returns the name of its bound."""
        if "patience" in found and self.patience != 1:
            raise ValueError(
                f"Alert({brief(self.metric)}, patience={brief(self.patience)}) gives the patience twice; keep one of them."
            )
        for name, value in found.items():
            object.__setattr__(self, name, value)
        return [name for name in _BOUNDS if name in found]

    @property
    def key(self) -> str:
        """The alert's key in a checkpoint: metric, condition and patience, without the action."""
        return f"{self.metric} {self.condition} for {self.patience}"

    @property
    def condition(self) -> str:
        """The bound in words, such as ``above 0.3``."""
        name = next(name for name in _BOUNDS if getattr(self, name) is not None)
        return f"{name.replace('_', ' ')} {float(getattr(self, name)):g}"

    def found(self, value: float, first: float) -> str:
        """A value that is out of bounds, in words: ``0.4, which is above 0.3``."""
        if self.times is None:
            return f"{value:.6g}, which is {self.condition}"
        return (
            f"{value:.6g}, which is {value / first:.4g} times its first value {first:.6g} (bound: {self.times:g} times)"
        )

    def out(self, value: float, first: float) -> bool:
        """Whether ``value`` is out of bounds; ``first`` is the score's first value in this run, used by ``times``."""
        if self.above is not None:
            return value > self.above
        if self.below is not None:
            return value < self.below
        if self.at_least is not None:
            return value >= self.at_least
        if self.at_most is not None:
            return value <= self.at_most
        assert self.times is not None
        return first > 0 and (value >= self.times * first if self.times > 1 else value <= self.times * first)


def parsed(expression: str) -> dict[str, Any]:
    """The arguments of :class:`Alert` that an expression stands for.

    Names of scores may have slashes, spaces and any other signs; the last comparison counts.

    Raises:
        ValueError: If it is no expression.

    Example:
        >>> from lightning_explain.core.alert import parsed
        >>> parsed("infidelity_relative/ig@other >= 0.9 for 2")
        {'metric': 'infidelity_relative/ig@other', 'at_least': 0.9, 'patience': 2}
    """
    operators = list(_OPERATOR.finditer(expression))
    if not operators:
        raise ValueError(f"{brief(expression)} compares nothing; {_FORM}.")
    last = operators[-1]
    metric, words = expression[: last.start()].strip(), expression[last.end() :].split()
    if not metric:
        raise ValueError(f"{brief(expression)} has no score before {last[0]!r}; {_FORM}.")
    if not words or not _NUMBER.fullmatch(words[0]) or not math.isfinite(float(words[0])):
        raise ValueError(f"{brief(expression)} has no finite number after {last[0]!r}; {_FORM}.")
    found = {"metric": metric, _OPERATORS[last[0]]: float(words[0])}
    if len(words) == 1:
        return found
    if words[1] != "for" or len(words) != 3:
        raise ValueError(f"{brief(expression)} continues after its number; {_FORM}.")
    if not re.fullmatch("[0-9]{1,7}", words[2]) or not 1 <= int(words[2]) <= MANY:
        raise ValueError(f"{brief(expression)} has no whole number from 1 to {MANY} after 'for'; {_FORM}.")
    return found | {"patience": int(words[2])}
