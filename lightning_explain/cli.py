"""The command ``lightning-explain``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
def doctor(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A YAML file; see examples/doctor.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As in Hydra: monitor=full, model.num_classes=5.")
    ] = None,
) -> None:
    """Say of each method whether it is right on a model, why not, and the way out; exit code 1 if any is refused."""
    from lightning_explain.consultation import patient
    from lightning_explain.doctor import table

    try:
        with _importable(Path.cwd()):
            verdicts = patient(config, overrides or ()).verdicts()
    except (ImportError, TypeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
    Console().print(table(verdicts))
    if any(verdict.state == "refused" for verdict in verdicts):
        raise typer.Exit(1)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Import paths are looked up in this folder as well, as ``python -m`` does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


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
