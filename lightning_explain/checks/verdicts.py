"""What becomes of verdicts: a table, warnings, a refusal."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lightning_explain.core.verdict import Canonizer, Verdict

if TYPE_CHECKING:
    from rich.table import Table

_COLORS = {"fine": "green", "canonized": "cyan", "warned": "yellow", "refused": "red"}


def table(verdicts: Iterable[Verdict]) -> Table:
    """One line for each method, to be printed with rich."""
    from rich.markup import escape
    from rich.table import Table

    found = Table("method", "verdict", "reason", "fix", title="Model doctor")
    for v in verdicts:
        found.add_row(escape(v.method), f"[{_COLORS[v.state]}]{v.state}[/]", escape(v.reason), escape(v.fix))
    return found


def acted_upon(verdicts: Iterable[Verdict]) -> Mapping[str, tuple[Canonizer, ...]]:
    """Warns of what is of little use, and returns the canonizers of each method.

    Raises:
        ValueError: If a method is refused; all of them are listed.
    """
    verdicts = list(verdicts)
    refused = [v for v in verdicts if v.state == "refused"]
    if refused:
        raise ValueError("\n".join(["On this model these methods would be wrong:", *map(_line, refused)]))
    for verdict in verdicts:
        if verdict.state == "warned":
            warnings.warn(_line(verdict), stacklevel=3)
    return {v.method: v.canonizers for v in verdicts if v.canonizers}


def _line(verdict: Verdict) -> str:
    fix = f" Way out: {verdict.fix}." if verdict.fix else ""
    return f"{verdict.method!r}: {verdict.reason}.{fix}"
