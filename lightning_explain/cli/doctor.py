"""``lightning-explain doctor``: a configuration, or the import path of a model, in; a verdict on each method, and an exit code, out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lightning_explain.cli.printing import Format, as_json, configured, markdown, table, wide_console

_MODEL = "A YAML file such as examples/doctor.yaml, or the import path of a model: torchvision.models:resnet18."
_OVERRIDES = "model.num_classes=5, monitor.target=predicted; for a YAML file as in Hydra: monitor=full."
_SHAPE = "The shape of one sample, such as 3,64,64; once for each input. The samples are random."
_COLORS = {"fine": "green", "canonized": "cyan", "warned": "yellow", "refused": "red"}


def doctor(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    overrides: Annotated[list[str] | None, typer.Argument(help=_OVERRIDES)] = None,
    input_shape: Annotated[list[str] | None, typer.Option(metavar="SIZES", help=_SHAPE)] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(exists=True, help="A checkpoint of the LightningModule, with its weights and hyperparameters."),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a checkpoint that may run code.")] = False,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """Check whether each method is correct on a model, and if not, why and what to do. The exit code is 1 if any is refused."""
    with configured():
        from lightning_explain.cli.from_config import configured_model, shapes_of, verdicts

        shapes = shapes_of(input_shape or ())
        found = verdicts(*configured_model(Path(model), overrides or (), True, shapes, checkpoint, not trust))
    columns = ("method", "verdict", "reason", "fix")
    lines = [(v.method, Text(v.state, _COLORS[v.state]), v.reason, v.fix) for v in found]
    if form is Format.json:
        typer.echo(as_json([asdict(verdict) for verdict in found]))
    elif form is Format.markdown:
        typer.echo(markdown("Model doctor", columns, lines))
    else:
        wide_console().print(table("Model doctor", columns, lines))
    if any(verdict.state == "refused" for verdict in found):
        raise typer.Exit(1)
