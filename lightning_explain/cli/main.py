"""Takes the arguments of ``lightning-explain``, and prints tables. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from lightning_explain.cli.check import check
from lightning_explain.cli.compare import compare
from lightning_explain.cli.doctor import doctor
from lightning_explain.cli.examples import examples
from lightning_explain.cli.methods import methods
from lightning_explain.cli.printing import configured
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


app.command()(methods)
app.command()(doctor)


@app.command()
def replay(
    checkpoints: Annotated[Path, typer.Argument(exists=True, help="A folder with *.ckpt files, or a single one.")],
    config: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A YAML file with model, data and monitor.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides as in Hydra: monitor.seed=1, model.num_classes=5.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", file_okay=False, help="The run's folder, for reports and loggers.")
    ] = None,
    part: Annotated[str, typer.Option(help="i/n: explain the share of job i out of n, counted from 0.")] = "0/1",
    trust: Annotated[bool, typer.Option("--trust", help="Load checkpoints that may run code.")] = False,
) -> None:
    """Explain the checkpoints of a finished training. The exit code is 1 if some are left out, 2 if nothing can be explained."""
    from lightning_explain.cli.replay import replay_configured

    with configured():
        done = replay_configured([checkpoints], config, overrides or (), output, part, not trust)
    counts = f"{len(done.explained)} checkpoints explained, {len(done.stored)} explained before"
    # torchrun sets both, Lightning's own launcher one of them.
    if all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK")):
        for path, why in done.left_out.items():
            typer.echo(f"Left out '{path}': {why}.", err=True)
        typer.echo(f"{counts}, {len(done.left_out)} left out; reports in {done.folder}")
    if done.left_out:
        raise typer.Exit(1)


class _Modality(str, Enum):
    image = "image"
    text = "text"
    tabular = "tabular"
    series = "series"


@app.command()
def demo(
    modality: Annotated[_Modality, typer.Option(help="The kind of data.")] = _Modality.image,
    clean: Annotated[
        bool | None, typer.Option("--clean/--marked", help="Train only one network: without or with the shortcut.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs.")] = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder for logs and pictures.")] = Path("demo_runs"),
) -> None:
    """Train a network on data with a shortcut that gives the class away, and one without it, and show what each relies on."""
    from lightning_explain.demo.training import run

    run(output, epochs, clean, modality.value)


for command in (compare, check, report, examples):
    app.command()(command)
