"""Takes the arguments of ``lightning-explain``, and prints tables. Heavy imports wait until a command needs them."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_explain.cli.check import check
from lightning_explain.cli.compare import compare
from lightning_explain.cli.report import report
from lightning_explain.core.version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


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
    """Explain what a model relies on while it trains."""


@app.command()
def methods(
    plan: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A YAML file, as for doctor: print passes and cost."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="With --plan, as in Hydra: monitor=full.")] = None,
) -> None:
    """List all methods and metrics with arguments and defaults; with --plan, print the cost of a configuration."""
    from lightning_explain.explainer.registry import METHODS, METRICS

    console = Console()
    if plan is None:
        if overrides:
            raise typer.BadParameter(f"{overrides[0]!r} overrides a configuration; give one with --plan CONFIG.")
        console.print(_table("Method", METHODS))
        console.print(_table("Metric", METRICS))
        return
    from lightning_explain.cli.from_config import configured_model, forecast

    with _configured():
        found = forecast(*configured_model(plan, overrides or (), examined=False))
    console.print(found.table())
    for line in (str(found), *found.hints):
        console.print(Text(line))


@app.command()
def doctor(
    config: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A YAML file; see examples/doctor.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides as in Hydra: monitor=full, model.num_classes=5.")
    ] = None,
) -> None:
    """Check each method on a model: whether it is right, why not, and the fix. The exit code is 1 if any is refused."""
    from lightning_explain.checks.verdicts import table
    from lightning_explain.cli.from_config import configured_model, verdicts

    with _configured():
        found = verdicts(*configured_model(config, overrides or ()))
    Console().print(table(found))
    if any(verdict.state == "refused" for verdict in found):
        raise typer.Exit(1)


@app.command()
def replay(
    checkpoints: Annotated[Path, typer.Argument(exists=True, help="A folder with *.ckpt files, or one of them.")],
    config: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A YAML file with model, data and monitor.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides as in Hydra: monitor.seed=1, model.num_classes=5.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="The run's folder, for reports and loggers.")
    ] = None,
    part: Annotated[str, typer.Option(help="i/n: what the i-th of n jobs explains, counted from 0.")] = "0/1",
    trust: Annotated[bool, typer.Option("--trust", help="Load checkpoints that may run code.")] = False,
) -> None:
    """Explain the checkpoints of a finished training. The exit code is 1 if some are left out, 2 if nothing can be explained."""
    from lightning_explain.cli.replay import replay_configured

    with _configured():
        done = replay_configured([checkpoints], config, overrides or (), output, part, not trust)
    counts = f"{len(done.explained)} checkpoints explained, {len(done.stored)} explained before"
    # torchrun sets both, Lightning's own launcher one of them.
    if all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK")):
        for path, why in done.left_out.items():
            typer.echo(f"Left out '{path}': {why}.", err=True)
        typer.echo(f"{counts}, {len(done.left_out)} left out; reports in {done.folder}")
    if done.left_out:
        raise typer.Exit(1)


@contextmanager
def _configured() -> Iterator[None]:
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


class _Modality(str, Enum):
    image = "image"
    text = "text"
    tabular = "tabular"
    series = "series"


@app.command()
def demo(
    modality: Annotated[_Modality, typer.Option(help="What the network takes.")] = _Modality.image,
    clean: Annotated[
        bool | None, typer.Option("--clean/--marked", help="Train only without, or only with, the shortcut.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs.")] = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for logs and pictures.")] = Path("demo_runs"),
) -> None:
    """Train on data with a shortcut that gives the class away, and without it, and see the network rely on it."""
    from lightning_explain.demo.training import run

    run(output, epochs, clean, modality.value)


app.command()(compare)
app.command()(check)
app.command()(report)


def _table(title: str, classes: Mapping[str, type]) -> Table:
    table = Table(show_lines=True)
    table.add_column(title)
    # Arguments are copied, so they stay whole; the descriptions wrap instead.
    table.add_column("Arguments and defaults", no_wrap=True, overflow="fold")
    for name, cls in classes.items():
        table.add_row(Text.assemble((name, "bold"), "\n", _first_sentence(cls)), Text(_arguments(cls)))
    return table


def _arguments(cls: type) -> str:
    parameters = inspect.signature(cls).parameters.values()
    return "\n".join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)


def _first_sentence(cls: type) -> str:
    """The first line of the docstring, without references."""
    line = (inspect.getdoc(cls) or "").partition("\n")[0]
    return line.partition(" (")[0].rstrip(".")
