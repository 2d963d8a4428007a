"""Turns verdicts into a table, warnings and errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning_explain.core.verdict import Verdict

if TYPE_CHECKING:
    from rich.table import Table

_COLORS = {"fine": "green", "canonized": "cyan", "warned": "yellow", "refused": "red"}


def table(verdicts: Iterable[Verdict]) -> Table:
    """Returns a rich table with one line for each method."""
    from rich.markup import escape
    from rich.table import Table

    found = Table("method", "verdict", "reason", "fix", title="Model doctor")
    for v in verdicts:
        found.add_row(escape(v.method), f"[{_COLORS[v.state]}]{v.state}[/]", escape(v.reason), escape(v.fix))
    return found


def acted_upon(verdicts: Iterable[Verdict]) -> None:
    """Acts on verdicts: raises for refused methods, and warns of methods of little use.

    Raises:
        ValueError: If a method is refused; the message lists all of them.
    """
    verdicts = list(verdicts)
    refused = [v for v in verdicts if v.state == "refused"]
    if refused:
        raise ValueError("\n".join(["On this model, these methods would give wrong maps:", *map(_line, refused)]))
    for verdict in verdicts:
        if verdict.state == "warned":
            warnings.warn(_line(verdict), stacklevel=3)


def _line(verdict: Verdict) -> str:
    fix = f" Fix: {verdict.fix}." if verdict.fix else ""
    return f"{verdict.method!r}: {verdict.reason}.{fix}"
