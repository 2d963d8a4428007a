"""Names: conversion to snake case, the nearest valid name for an error message, and names that no file can have."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST = 200
"""The most bytes a name may have in UTF-8. File systems allow 255; loggers add a step and a digest to the name."""


_LISTED = 40


_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(name: str) -> str:
    """A class name in snake case: ``NoiseTunnel`` becomes ``noise_tunnel``, ``LRP`` becomes ``lrp``."""
    return _WORD_STARTS.sub("_", name).lower()


def score_name(metric: str, suffix: str) -> str:
    """The name of one of a metric's scores: ``relevance_mass_over_chance``; that of the metric for an empty suffix."""
    return f"{metric}_{suffix}" if suffix else metric


def nearest(word: str, options: Iterable[str]) -> str:
    """The end of an error about an unknown word: ``did you mean 'a' or 'b'? Use one of 'a', 'b', 'c'.``

    Case and underscores are ignored in the comparison. A list of more than 40 options is cut.

    Args:
        word: The word that the user wrote.
        options: The allowed words, in the order in which the message lists them.
    """
    allowed = list(options)
    if not allowed:
        return "there is nothing to choose from."
    plain: dict[str, str] = {}
    for option in allowed:
        plain.setdefault(_plain(option), option)
    # Longer words resemble none, and comparing takes the square of their length.
    compared = _plain(word[:LONGEST])
    close = [plain[key] for key in difflib.get_close_matches(compared, plain, n=3, cutoff=0.6)]
    more = f" and {len(allowed) - _LISTED} more" if len(allowed) > _LISTED else ""
    listed = ", ".join(map(repr, allowed[:_LISTED])) + more
    return f"did you mean {either(close)}? Use one of {listed}." if close else f"use one of {listed}."


def _plain(word: str) -> str:
    return word.lower().replace("_", "")


def either(words: Sequence[str]) -> str:
    """Words as a choice: ``'a', 'b' or 'c'``."""
    *head, last = map(repr, words)
    return f"{', '.join(head)} or {last}" if head else last


def target_of(name: str) -> str:
    """The target in the name of a map of one of several targets: ``age`` of ``ig@age``; empty for other names."""
    return name.rpartition("@")[2] if "@" in name else ""


def unlike(names: Iterable[str]) -> list[str]:
    """The names, with numbers where two are equal but for case: ``age``, ``Age (2)``.

    Example:
        >>> from lightning_explain.core.naming import unlike
        >>> unlike(["age", "Age", "age"])
        ['age', 'Age (2)', 'age (3)']
    """
    found, taken = list[str](), set[str]()
    for name in names:
        count, one = 1, name
        while one.casefold() in taken:
            count += 1
            one = f"{name} ({count})"
        taken.add(one.casefold())
        found.append(one)
    return found


def unwritable(name: str) -> str:
    """Why a name cannot be both a tag and part of a file name on every system; an empty string if it can."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "contains a control character or a lone surrogate"
    size = len(name.encode())
    return f"has {size} bytes in UTF-8, more than the {LONGEST} allowed" if size > LONGEST else ""
