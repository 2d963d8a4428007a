"""Argument checks: a value in, nothing or an error out that names the argument, what came, and what to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightning_explain.core.naming import unwritable

_RULES = ("riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre")


def check_integral(owner: str, n_steps: Any, method: Any) -> None:
    """Checks the arguments of a path integral: a number of steps of at least 1, and a known quadrature rule.

    Args:
        owner: Name of the method's class, for the error.
        n_steps: Number of points.
        method: Captum's name of the quadrature rule.

    Raises:
        ValueError: If ``n_steps`` is below 1, or the rule is unknown.
    """
    check_positive(f"{owner}(n_steps", n_steps)
    if method not in _RULES:
        raise ValueError(f"{owner}(method={method!r}); give one of {', '.join(_RULES)}.")


def check_callable(name: str, value: Any) -> None:
    """Checks for a callable or ``None``; ``name`` is the start of the error, such as ``"Lime(perturb_func"``.

    Raises:
        TypeError: If it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r}); give None or a callable (from Python only).")


def check_positive(name: str, value: Any, least: int = 1) -> None:
    """Checks for a whole number >= ``least``; ``name`` is the start of the error, such as ``"Lime(n_samples"``.

    Raises:
        ValueError: If the value is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}); give a whole number of at least {least}.")


def check_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """Checks that argument ``name`` of the class ``owner`` is a whole number of at least ``least``.

    Raises:
        ValueError: If the value is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{owner}({name}={value!r}); give a whole number of at least {least}.")


def check_size(owner: str, name: str, value: Any) -> None:
    """Checks that argument ``name`` of the class ``owner`` is a number above 0.

    Raises:
        ValueError: If the value is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{owner}({name}={value!r}); give a number above 0.")


def check_flag(owner: str, name: str, value: Any) -> None:
    """Checks that argument ``name`` of the class ``owner`` is ``True`` or ``False``.

    Raises:
        ValueError: If the value is anything else.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{owner}({name}={value!r}); give True or False.")


def check_methods(metric: Any) -> None:
    """Checks that ``metric.methods`` lists names of methods, or is ``None`` for all; turns a list into a tuple.

    Raises:
        TypeError: If ``metric.methods`` is anything else.
    """
    names = metric.methods
    if names is None:
        return
    if not isinstance(names, (tuple, list)) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{type(metric).__name__}(methods={names!r}); give None (all methods) or a list of names of methods."
        )
    object.__setattr__(metric, "methods", tuple(names))


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"ProbeSelection({name}=...) got {value!r} ({type(value).__name__}); give whole numbers.")
    if value < least:
        raise ValueError(f"ProbeSelection({name}=...) got {value}; give whole numbers of at least {least}.")
    return int(value)


_CHOICES = {"hook": ("train_epoch_end", "validation_epoch_end"), "on_error": ("warn", "raise")}


def check_choice(name: str, value: object) -> None:
    """Checks the value of the monitor's argument ``hook`` or ``on_error`` against its allowed words.

    Raises:
        ValueError: If the value is none of them.
    """
    if value not in _CHOICES[name]:
        raise ValueError(f"{name}={value!r}; give one of {', '.join(map(repr, _CHOICES[name]))}.")


def check_kinds(flags: Mapping[str, object], functions: Mapping[str, object]) -> None:
    """Checks that flags are ``True`` or ``False``, and that functions are callables or ``None``.

    Args:
        flags: Argument names to values that must be booleans.
        functions: Argument names to values that must be callables or ``None``.

    Raises:
        TypeError: If a value is anything else.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}; give True or False.")
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r}; give a function, or None.")


def check_name(name: object) -> None:
    """Checks that a monitor's name can be a tag prefix and the name of a folder.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(name, str) or not name or name != name.strip("/ ") or name in (".", ".."):
        raise ValueError(f"name={name!r}; give a word that can be a tag prefix and a folder, such as 'explain'.")
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
                f"ExplanationMonitor(name={name!r}) and ExplanationMonitor(name={alike[0]!r}) would write to the same folder; "
                "give them different names."
            )


def check_seed(value: object) -> None:
    """Checks that a seed is a whole number of at least 0.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"seed={value!r}; give a whole number of at least 0.")
