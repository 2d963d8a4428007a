"""``lightning-explain methods``: names of classes, or a configuration, in; their arguments and costs out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lightning_explain.cli.printing import Format, as_json, configured, failing_with_2, markdown, table, wide_console

_NAMES = "Names of classes to describe, such as IntegratedGradients or Infidelity; with --plan, overrides as in Hydra: monitor=full."
_COLUMNS = ("argument", "default", "meaning")


def methods(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help=_NAMES)] = None,
    plan: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A YAML file, as for doctor: print passes and cost."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """List all methods and metrics with arguments and defaults; describe those named; or, with --plan, print what a configuration costs."""
    if plan is not None:
        _print_plan(plan, names or (), form)
        return
    with failing_with_2():
        entries = {kind: [described(cls) for cls in classes] for kind, classes in _chosen(names or ()).items()}
    if form is Format.json:
        typer.echo(as_json(entries))
    elif names:
        _print_details(entries, form)
    else:
        _print_list(entries, form)


def _chosen(names: Sequence[str]) -> dict[str, list[type]]:
    """The methods and metrics with these names, which may be in snake case; all of them without names."""
    from lightning_explain.core.naming import nearest, snake_case
    from lightning_explain.explainer.registry import METHODS, METRICS

    found: dict[str, list[type]] = {"methods": [], "metrics": []}
    if not names:
        return {"methods": list(METHODS.values()), "metrics": list(METRICS.values())}
    known = {name: cls for cls_name, cls in {**METHODS, **METRICS}.items() for name in (cls_name, snake_case(cls_name))}
    for name in dict.fromkeys(names):
        if "=" in name:
            raise ValueError(f"{name!r} overrides a configuration; give one with --plan CONFIG.")
        if name not in known:
            raise ValueError(f"There is no method or metric {name!r}: {nearest(name, {**METHODS, **METRICS})}")
        found["methods" if known[name] in METHODS.values() else "metrics"].append(known[name])
    return found


def described(cls: Any) -> dict[str, Any]:
    """What the docstring of a method or metric says, as plain values."""
    from lightning_explain.cli.docstrings import entry
    from lightning_explain.core.contracts import Metric

    one = {name: _plain(value) for name, value in asdict(entry(cls)).items() if name not in ("example", "formula")}
    if issubclass(cls, Metric):
        one["signed"] = ""
        one["higher_is_better"] = cls.higher_is_better
    one["arguments"] = [dict(zip(_COLUMNS, argument, strict=True)) for argument in one["arguments"]]
    return one


def _plain(value: Any) -> Any:
    """Values without the markup of docstrings."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return re.sub(r":\w+:`([\w.]+)`", r"\1", value).replace("``", "")


# -- all of them ------------------------------------------------------------------------------------------------------


def _print_list(entries: dict[str, list[dict[str, Any]]], form: Format) -> None:
    console = wide_console()
    for kind, found in entries.items():
        if form is Format.markdown:
            lines = [(one["name"], one["summary"], ", ".join(_signature(one))) for one in found]
            typer.echo(markdown(kind.capitalize(), ("name", "computes", "arguments"), lines))
        else:
            console.print(_list(kind, found))


def _list(kind: str, entries: Sequence[dict[str, Any]]) -> Table:
    found = Table(show_lines=True)
    found.add_column(kind.capitalize())
    # Arguments are copied, so they stay whole; the descriptions wrap instead.
    found.add_column("Arguments and defaults", no_wrap=True, overflow="fold")
    for one in entries:
        about = Text.assemble((one["name"], "bold"), "\n", one["summary"].rstrip("."))
        found.add_row(about, Text("\n".join(_signature(one))))
    return found


def _signature(one: dict[str, Any]) -> list[str]:
    """Arguments as a call names them: ``n_steps=50``."""
    values = ((argument["argument"], argument["default"]) for argument in one["arguments"])
    return [name if default == "needed" else f"{name}={default}" for name, default in values]


# -- one of them ------------------------------------------------------------------------------------------------------


def _print_details(entries: dict[str, list[dict[str, Any]]], form: Format) -> None:
    console = wide_console()
    for one in (one for found in entries.values() for one in found):
        lines = [tuple(argument.values()) for argument in one["arguments"]]
        if form is Format.markdown:
            facts = [f"- **{name}:** {fact}" for name, fact in _facts(one).items()]
            typer.echo("\n".join([f"# {one['name']}", "", *_paragraphs(one), *facts, ""]))
            typer.echo(markdown("Arguments", _COLUMNS, lines) if lines else "")
            continue
        console.print(Text(one["name"], "bold"))
        for line in (*_paragraphs(one)[::2], *(f"{name}: {fact}" for name, fact in _facts(one).items())):
            console.print(Text(line))
        console.print(*[table("Arguments", _COLUMNS, lines)] if lines else [], "")


def _paragraphs(one: dict[str, Any]) -> list[str]:
    """The summary and the notes, an empty line behind each."""
    return [line for paragraph in (one["summary"], *one["notes"]) for line in (paragraph, "")]


def _facts(one: dict[str, Any]) -> dict[str, str]:
    cost = one["cost"]
    note = f"; {cost['note']}" if cost["note"] else ""
    facts = {
        "Returns": one["result"],
        "Chance": one["chance"],
        "Cost": f"{cost['forward']} forward, {cost['backward']} backward for each explained sample{note}.",
        "Signed": one["signed"],
        "Not for": one["not_for"],
        "Paper": one["paper"],
        "Same as": one["twin"],
    }
    return {name: fact for name, fact in facts.items() if fact}


# -- what a configuration costs ---------------------------------------------------------------------------------------


def _print_plan(plan: Path, overrides: Sequence[str], form: Format) -> None:
    with configured():
        from lightning_explain.cli.from_config import configured_model, forecast

        found = forecast(*configured_model(plan, overrides, examined=False))
    columns, lines = found.table()
    if form is Format.json:
        shares = [dict(zip(columns, line, strict=True)) for line in lines]
        typer.echo(as_json({"samples": found.samples, "shares": shares, "about": str(found), "hints": found.hints}))
        return
    title = "Passes and seconds for each explained sample"
    if form is Format.markdown:
        typer.echo(markdown(title, columns, lines))
        typer.echo("\n".join(f"- {line}" for line in (str(found), *found.hints)))
        return
    console = wide_console()
    console.print(table(title, columns, lines))
    for line in (str(found), *found.hints):
        console.print(Text(line))
