"""``lightning-explain compare``: two stored runs in, tables of what differs out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightning_explain.cli.printing import Format, as_json, failing_with_2, markdown, table, wide_console

if TYPE_CHECKING:
    from lightning_explain.core.report import Report
    from lightning_explain.report.comparison import Comparison

Run = Annotated[Path, typer.Argument(help="The folder <run>/<name>, or <run> if it has one monitor.")]
_WHAT = "Change is the mean over samples of b - a. Its error is from how samples vary; its drawing_error from random draws alone."
_APART = "The two do not explain the same, or not in the same way, so differences below come of that, too:"


def compare(
    a: Run,
    b: Run,
    step: Annotated[int | None, typer.Option(help="Compare the reports of this step instead of the last ones.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
    most: Annotated[int, typer.Option(min=0, help="How many of the most changed samples to list for each method.")] = 5,
) -> None:
    """Compare two runs of the same samples: whether they explain the same, how scores differ, and which samples changed most."""
    with failing_with_2():
        from lightning_explain.report.comparison import compare as compared
        from lightning_explain.report.runs import moment, report_at

        reports = report_at(a, step), report_at(b, step)
        found = compared(*reports)
        columns, lines = found.score_table()
        tables = {"differences": ([*columns, "better"], [[*line, _better(reports, line[0])] for line in lines])}
        tables["most_changed"] = _most_changed(found, most)
        about = {name: {"run": str(path), "at": moment(r)} for name, path, r in zip("ab", (a, b), reports, strict=True)}
    if form is Format.json:
        content: dict[str, Any] = {
            name: [dict(zip(columns, line, strict=True)) for line in lines] for name, (columns, lines) in tables.items()
        }
        differing = {name: dict(zip("ab", pair, strict=True)) for name, pair in found.differing.items()}
        typer.echo(as_json({**about, "differing": differing, **content, "left_out": dict(found.left_out)}))
        return
    heads = [f"{name}: {one['run']} ({one['at']})" for name, one in about.items()]
    apart = [f"{name}: {x} in a, {y} in b" for name, (x, y) in found.differing.items()]
    notes = [_WHAT, *(f"{method} is not compared: {why}" for method, why in found.left_out.items())]
    titles = {"differences": "Scores", "most_changed": "Samples whose maps changed most"}
    if form is Format.markdown:
        heads += [_APART + "".join(f"\n  - {line}" for line in apart)] if apart else []
        typer.echo("\n".join([*(f"- {line}" for line in (*heads, *notes)), ""]))
        typer.echo("\n".join(markdown(titles[name], *tables[name]) for name in titles))
        return
    console = wide_console()
    for line in [*heads, *([_APART, *(f"  {line}" for line in apart)] if apart else [])]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name, title in titles.items():
        console.print(table(title, *tables[name]))
    for line in notes:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _better(reports: tuple[Report, Report], score: str) -> str:
    """Which end of a score is better, as far as the runs know, and whether it can be compared at all."""
    runs = [report.run for report in reports if report.run is not None]
    if any(score in run.incomparable for run in runs):
        return "not comparable between runs"
    ends = {run.higher_is_better[score] for run in runs if score in run.higher_is_better}
    return "higher" if ends == {True} else "lower" if ends == {False} else ""


def _most_changed(found: Comparison, count: int) -> tuple[list[str], list[list[Any]]]:
    """The lines of :meth:`Comparison.table` of the samples that changed most, by method."""
    columns, lines = found.table()
    methods = list(found.similarity["cosine"])
    places = {method: found.order(method)[:count].tolist() for method in methods}
    # The lines of a sample are together.
    return columns, [lines[i * len(methods) + k] for k, method in enumerate(methods) for i in places[method]]
