"""Checks of arguments, each with an error that says what came and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_explain.core.naming import unwritable

_RULES = ("riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre")


def check_integral(owner: str, n_steps: Any, method: Any) -> None:
    """Refuses what cannot be a quadrature along a line.

    Raises:
        ValueError: If there is no step, or the rule is unknown.
    """
    check_positive(f"{owner}(n_steps", n_steps)
    if method not in _RULES:
        raise ValueError(f"{owner}(method={method!r}); allowed: {', '.join(_RULES)}.")


def check_callable(name: str, value: Any) -> None:
    """Refuses anything but a callable or ``None``.

    Raises:
        TypeError: If it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r}); allowed: None or a callable (from Python only).")


def check_positive(name: str, value: Any, least: int = 1) -> None:
    """Refuses anything but a whole number of at least 1, or of what is needed for more than zeros.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}); allowed: a whole number of at least {least}.")


def check_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """Refuses anything but a whole number of at least ``least``.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}({name}={value!r}); allowed: a whole number of at least {least}.")


def check_size(owner: str, name: str, value: Any) -> None:
    """Refuses anything but a number above 0.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{owner}({name}={value!r}); allowed: a number above 0.")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Refuses anything but ``True`` and ``False``.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{owner}({name}={value!r}); allowed: True or False.")


def check_methods(metric: Any) -> None:
    """Refuses anything but names of methods, or ``None`` for all; a list becomes a tuple.

    Raises:
        TypeError: If it is something else.
    """
    names = metric.methods
    if names is None:
        return
    if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{type(metric).__name__}(methods={names!r}); allowed: None (all) or a list of the names that methods have."
        )
    object.__setattr__(metric, "methods", tuple(names))


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"ProbeSelection({name}=...) takes whole numbers, got {value!r} ({type(value).__name__}).")
    if value < least:
        raise ValueError(f"ProbeSelection({name}=...) takes whole numbers of at least {least}, got {value}.")
    return int(value)


_CHOICES = {"hook": ("train_epoch_end", "validation_epoch_end"), "on_error": ("warn", "raise")}


def check_choice(name: str, value: object) -> None:
    """Refuses what is not among the words allowed for ``hook`` or ``on_error``.

    Raises:
        ValueError: If it is not.
    """
    if value not in _CHOICES[name]:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, _CHOICES[name]))}.")


def check_kinds(flags: Mapping[str, object], functions: Mapping[str, object]) -> None:
    """Refuses flags that are not ``True`` or ``False``, and functions that cannot be called.

    Raises:
        TypeError: If there is one.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}; allowed: True or False.")
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r}; allowed: a function, or None.")


def check_name(name: object) -> None:
    """Refuses what cannot be a tag prefix and a folder.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(name, str) or not name or name != name.strip("/ ") or name in (".", ".."):
        raise ValueError(f"name={name!r}; allowed: a word that can be a tag prefix and a folder, such as 'explain'.")
    if fault := unwritable(name):
        raise ValueError(f"name={name[:40]!r} {fault}; give a shorter or plainer one, such as 'explain'.")


def check_monitor_names(names: Sequence[str]) -> None:
    """Refuses monitors whose folders are one where cases are not told apart.

    Raises:
        ValueError: If there are two.
    """
    for i, name in enumerate(names):
        alike = [other for other in names[:i] if other.casefold() == name.casefold()]
        if alike:
            raise ValueError(
                f"ExplanationMonitor(name={name!r}) and ExplanationMonitor(name={alike[0]!r}) would write to one place; give "
                "them different names."
            )


def check_seed(value: object) -> None:
    """Refuses what is no seed.

    Raises:
        ValueError: If it is no whole number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"seed={value!r}; allowed: a whole number of at least 0.")
