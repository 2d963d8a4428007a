"""``lightning-explain report``: finished runs in, the path of a page that shows them out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightning_explain.cli.printing import failing_with_2


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders <run>/<name>, or <run> if it has one monitor. The others are compared with the first.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="The page.")] = Path("page.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: the names of the runs.")] = None,
) -> None:
    """Write one HTML page of finished runs: maps over the epochs side by side, curves, tables, findings. Opens without a network."""
    with failing_with_2():
        from lightning_explain.report.page import write_page

        path = write_page(runs, output, title)
    typer.echo(f"page: {path}")
