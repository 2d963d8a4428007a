"""Columns and lines in; tables for a terminal, a pipe, JSON or Markdown, out; errors as one line and an exit code."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_FULL_WIDTH = 10_000


class Format(str, Enum):
    """How tables are printed."""

    table = "table"
    json = "json"
    markdown = "markdown"


def wide_console() -> Console:
    """The console; as wide as its tables if the output is piped, unless ``COLUMNS`` says otherwise."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_FULL_WIDTH if piped else None)


def shown(value: Any) -> str:
    """A cell: numbers with four digits, nothing for what is missing."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def table(title: str, columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> Table:
    """A table for the console; numbers to the right, and cells that are rich text as they are."""
    found = Table(title=Text(title), title_justify="left")
    for i, name in enumerate(columns):
        numbers = any(isinstance(line[i], (int, float)) and not isinstance(line[i], bool) for line in lines)
        found.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
    for line in lines:
        found.add_row(*(value if isinstance(value, Text) else Text(shown(value)) for value in line))
    return found


def markdown(title: str, columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """The same in Markdown."""
    cells = [list(columns), ["---"] * len(columns), *([shown(value) for value in line] for line in lines)]
    escaped = ([cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in cells)
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in escaped), ""])


def as_json(content: Any) -> str:
    """Plain values as JSON; ``null`` for what is not finite."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def failing_with_2() -> Iterator[None]:
    """A section whose errors become one line and exit code 2."""
    try:
        yield
    # Whatever it is, a broken file too: a traceback would exit with 1, which means something else.
    except Exception as error:
        from lightning_explain.core.schema import one_line

        typer.echo(f"Error: {one_line(str(error) or type(error).__name__, 500)}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def configured() -> Iterator[None]:
    """Resolves import paths from the current folder too, like ``python -m``; errors become one line and exit code 2."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    except (FileNotFoundError, ImportError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    finally:
        sys.path.remove(folder)
