"""Turns verdicts into lines of text."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from lightning_explain.core.verdict import Verdict


def in_words(verdict: Verdict) -> str:
    """The reason and the fix; first the state, if it is more than fine."""
    state = "" if verdict.state in ("fine", "refused") else f"{verdict.state}: "
    return f"{state}{verdict.reason}.{f' Fix: {verdict.fix}.' if verdict.fix else ''}"


def lines_of(verdicts: Iterable[Verdict], owners: Mapping[str, object], then: str = ":") -> list[str]:
    """Says the verdicts, one line for all that have the same reason.

    Args:
        verdicts: On methods or metrics.
        owners: Those methods or metrics by name.
        then: What stands between their names and the reason.
    """
    names: dict[tuple[str, str], list[str]] = {}
    for v in verdicts:
        fix = f" Fix: {v.fix}." if v.fix else ""
        names.setdefault((v.reason, fix), []).append(f"{v.method!r} ({type(owners[v.method]).__name__})")
    return [f"{', '.join(named)}{then} {reason}.{fix}" for (reason, fix), named in names.items()]


def as_written(thing: Any) -> str:
    """A method or metric as the user writes it: its class and the arguments that differ from their defaults."""
    if not is_dataclass(thing):
        return f"{type(thing).__name__}()"
    given = ((field.name, getattr(thing, field.name), field.default) for field in fields(thing) if field.init)
    arguments = (
        f"{name}={as_written(value) if is_dataclass(value) else reprlib.repr(value)}"
        for name, value, default in given
        if value is not default and (isinstance(value, Tensor) or value != default)
    )
    return f"{type(thing).__name__}({', '.join(arguments)})"
