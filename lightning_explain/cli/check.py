"""``lightning-explain check``: a stored run and expressions in, what was read and an exit code out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightning_explain.cli.printing import failing_with_2

_EXPRESSION = (
    "Such as 'relevance_mass/ig > 0.3', or 'infidelity_relative/ig >= 0.9 for 2': in each of the last 2 reports."
)


def check(
    run: Annotated[Path, typer.Argument(help="The folder <run>/<name>, or <run> if it has one monitor.")],
    fail_if: Annotated[list[str], typer.Option(metavar="EXPRESSION", help=_EXPRESSION)],
    stage: Annotated[
        str | None, typer.Option(help="fit, validate or test. Default: fit, or the only stage that the run has.")
    ] = None,
) -> None:
    """Check scores of a run, for CI. The exit code is 0 if all is well, 1 if an expression is true, 2 if that cannot be determined."""
    with failing_with_2():
        from lightning_explain.core.schema import one_line
        from lightning_explain.report.gate import findings

        found = findings(run, fail_if, stage)
        for one in found:
            typer.echo(one_line(str(one), 600), err=one.state == "not read")
    states = {one.state for one in found}
    if states != {"passed"}:
        raise typer.Exit(2 if "not read" in states else 1)
