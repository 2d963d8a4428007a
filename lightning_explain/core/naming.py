"""Names: snake case, the nearest valid one for errors, and which cannot be written everywhere."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

LONGEST = 200
"""Bytes of a name; file systems take 255, in which loggers write a step and a digest as well."""


_LISTED = 40


_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(name: str) -> str:
    """The name in lower case with underscores: ``NoiseTunnel`` becomes ``noise_tunnel``, ``LRP`` becomes ``lrp``."""
    return _WORD_STARTS.sub("_", name).lower()


def nearest(word: str, options: Iterable[str]) -> str:
    """What an error says after an unknown word: ``did you mean 'a' or 'b'? Allowed: 'a', 'b', 'c'.``

    Case and underscores do not count. A long list of options is cut.

    Args:
        word: What the user wrote.
        options: What is allowed, in the order in which it is listed.
    """
    allowed = list(options)
    if not allowed:
        return "there is nothing to choose from."
    plain: dict[str, str] = {}
    for option in allowed:
        plain.setdefault(_plain(option), option)
    close = [plain[key] for key in difflib.get_close_matches(_plain(word), plain, n=3, cutoff=0.6)]
    more = f" and {len(allowed) - _LISTED} more" if len(allowed) > _LISTED else ""
    listed = ", ".join(map(repr, allowed[:_LISTED])) + more
    return f"did you mean {_either(close)}? Allowed: {listed}." if close else f"allowed: {listed}."


def _plain(word: str) -> str:
    return word.lower().replace("_", "")


def _either(words: Sequence[str]) -> str:
    *head, last = map(repr, words)
    return f"{', '.join(head)} or {last}" if head else last


def unwritable(name: str) -> str:
    """Why a name cannot be a tag and a part of files' names everywhere; empty if it can."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "holds a control character or half of a character"
    size = len(name.encode())
    return f"has {size} bytes in UTF-8, and {LONGEST} are the most" if size > LONGEST else ""
