"""Argument checks: a value in, nothing or an error out that names the argument, what came, and what to give.

``owner`` is the class whose argument is checked; an empty string for arguments of the monitor and of ``explain``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from lightning_explain.core.naming import unwritable
from lightning_explain.core.schema import brief

MANY = 10**6
"""The most that any count of steps, samples or draws may be."""


def is_whole(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Whether a value is an int of at least ``least``, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an int or a float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def refused(owner: str, name: str, value: object, allowed: str, error: type[Exception] = ValueError) -> Exception:
    """The error for an argument with a value that is not allowed: ``OWNER(NAME=VALUE); give ALLOWED.``"""
    given = f"{name}={brief(value)}"
    return error(f"{f'{owner}({given})' if owner else given}; give {allowed}.")


def check_whole(
    owner: str,
    name: str,
    value: object,
    least: int = 1,
    also: Sequence[str | None] = (),
    wrong_type: type[Exception] = ValueError,
    most: int = MANY,
) -> None:
    """Checks for a whole number from ``least`` to ``most``, or one of the values ``also``.

    Raises:
        ValueError: If the number is smaller or larger.
        wrong_type: If the value is anything else.
    """
    if is_whole(value, least) and value > most:
        raise refused(owner, name, value, f"a whole number of at most {most}")
    if is_whole(value, least) or ((value is None or isinstance(value, str)) and value in also):
        return
    allowed = ", or ".join([f"a whole number of at least {least}", *map(repr, also)])
    raise refused(owner, name, value, allowed, ValueError if is_whole(value) else wrong_type)


def check_number(owner: str, name: str, value: object, example: str = "") -> None:
    """Checks for a number above 0.

    Raises:
        ValueError: If the value is anything else.
    """
    if not (is_number(value) and value > 0):
        raise refused(owner, name, value, f"a number above 0{example and f', such as {example}'}")


def check_range(owner: str, name: str, value: object, high: float) -> None:
    """Checks for a number from 0 to ``high``.

    Raises:
        ValueError: If the value is anything else.
    """
    if not (is_number(value) and 0 <= value <= high):
        raise refused(owner, name, value, f"a number from 0 to {high}")


def check_flag(owner: str, name: str, value: object) -> None:
    """Checks for ``True`` or ``False``.

    Raises:
        TypeError: If the value is anything else.
    """
    if not isinstance(value, bool):
        raise refused(owner, name, value, "True or False", TypeError)


def check_callable(owner: str, name: str, value: object) -> None:
    """Checks for a callable or ``None``.

    Raises:
        TypeError: If the value is neither.
    """
    if value is not None and not callable(value):
        raise refused(owner, name, value, "None or a callable (from Python only)", TypeError)


def check_choice(owner: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Checks for one of some words.

    Raises:
        ValueError: If the value is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise refused(owner, name, value, f"one of {', '.join(map(repr, choices))}")


def one_for_each(name: str, given: Any, count: int) -> tuple[Any, ...]:
    """The values of an argument for each of ``count`` inputs: those of a tuple or list, else the same value for all.

    Raises:
        ValueError: If there are several values, but not one for each input.
    """
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,) * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} inputs; give one for each input.")
    return values


def check_name(name: object) -> None:
    """Checks that a monitor's name can be a tag prefix and the name of a folder.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(name, str) or not name or name != name.strip("/ ") or name in (".", ".."):
        raise refused("", "name", name, "a word that can be a tag prefix and a folder, such as 'explain'")
    if fault := unwritable(name):
        raise ValueError(f"name={name[:40]!r} {fault}; give a shorter or plainer one, such as 'explain'.")


def check_monitor_names(names: Sequence[str]) -> None:
    """Checks that no two monitors' names differ in upper and lower case only: some file systems ignore case.

    Raises:
        ValueError: If two names are equal apart from case.
    """
    for i, name in enumerate(names):
        alike = [other for other in names[:i] if other.casefold() == name.casefold()]
        if alike:
            raise ValueError(
                f"Monitors named {name!r} and {alike[0]!r} would write to the same folder; give other names."
            )


def elapsed(started: float, now: float) -> float:
    """Seconds between two readings of a clock; 0 if they are no time, as from a clock that goes back, stands still or gives NaN."""
    seconds = now - started
    return seconds if 0 <= seconds < math.inf else 0.0
