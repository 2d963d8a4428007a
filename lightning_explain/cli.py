"""The command ``lightning-explain``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_explain import __version__

app = typer.Typer(
    help="Watches why a model decides what it decides, while it trains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lightning-explain {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    """Watches why a model decides what it decides, while it trains."""


@app.command()
def methods() -> None:
    """List all methods and metrics, with their arguments and defaults."""
    from lightning_explain.requests import METHODS, METRICS

    console = Console()
    console.print(_table("Method", METHODS))
    console.print(_table("Metric", METRICS))


@app.command()
def demo(
    clean: Annotated[bool, typer.Option("--clean", help="Train without the mark, to compare.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train.")] = 4,
    output: Annotated[Path, typer.Option(file_okay=False, help="Where logs and pictures go.")] = Path("demo_runs"),
) -> None:
    """Train on digits with a mark that gives the class away, and watch the network fall for it."""
    from lightning_explain.demo_run import run

    run(output, epochs, clean)


def _table(title: str, classes: Mapping[str, type]) -> Table:
    table = Table(show_lines=True)
    table.add_column(title)
    # What a user copies is not broken while the description can give way.
    table.add_column("Arguments and defaults", no_wrap=True, overflow="fold")
    for name, cls in classes.items():
        table.add_row(Text.assemble((name, "bold"), "\n", _first_sentence(cls)), Text(_arguments(cls)))
    return table


def _arguments(cls: Any) -> str:
    return "\n".join(field.name + _default(field) for field in fields(cls) if field.init)


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return f"={field.default_factory()!r}"
    return "" if field.default is MISSING else f"={field.default!r}"


def _first_sentence(cls: type) -> str:
    """The first line of the docstring, without its references."""
    line = (inspect.getdoc(cls) or "").partition("\n")[0]
    return line.partition(" (")[0].rstrip(".")
