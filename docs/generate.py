"""Docstrings and fields of classes, and the command line, in; the reference of methods, metrics and commands out: ``make docs``."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from lightning_explain import methods, metrics
from lightning_explain.cli.docstrings import Entry, entry
from lightning_explain.cli.main import app

HERE = Path(__file__).parent
GENERATED = "<!-- Written by docs/generate.py from the docstrings: change those, then run `make docs`. -->"


FAMILIES = {
    "Primary": "They explain the output by the input.",
    "Layer": "They explain the output by a layer inside the model.",
    "Neuron": "They explain one unit of a layer instead of the output.",
    "Around other methods": "They change what another method computes.",
}


def family(cls: type) -> str:
    """Family of a method, from its arguments and the shape of its result."""
    names = _names(cls)
    if "attribution_method" in names:
        return "Around other methods"
    if "neuron_selector" in names:
        return "Neuron"
    return "Layer" if "layer" in names and not entry(cls).result.startswith("Input-shaped") else "Primary"


def _names(cls: Any) -> set[str]:
    return {field.name for field in fields(cls)}


def _classes(module: ModuleType) -> list[type]:
    return [getattr(module, name) for name in sorted(module.__all__, key=str.lower)]


def methods_page() -> str:
    """Text of methods.md: a table for each family."""
    head = ("method", "cost forward", "cost backward", "signed?", "needs a layer")
    chapters = []
    for title, about in FAMILIES.items():
        family_classes = [cls for cls in _classes(methods) if family(cls) == title]
        rows = [_row("methods", cls, _text(entry(cls).signed), _needs_layer(cls)) for cls in family_classes]
        chapters += [f"## {title}", about, _table(head, rows)]
    return _page(
        "Methods",
        "Cost counts the samples sent through the model for each explained sample, forward and backward; each entry explains "
        "its letters. Layers have a default: the last layer with a feature map. A map that contains the input minus the baseline, or "
        "a layer's activation, is in units of the output; others are gradients, which Infidelity multiplies by that difference. "
        "`m` in the examples is `lightning_explain.methods`.",
        *chapters,
        _tree("methods", [cls for title in FAMILIES for cls in _classes(methods) if family(cls) == title]),
    )


def _tree(folder: str, classes: Iterable[type]) -> str:
    return "\n".join(("```{toctree}", ":hidden:", "", *(f"{folder}/{cls.__name__}" for cls in classes), "```"))


def _row(folder: str, cls: type, *further: str) -> tuple[str, ...]:
    e = entry(cls)
    return (f"[{e.name}]({folder}/{e.name}.md)", _code(e.cost.forward), _code(e.cost.backward), *further)


def _needs_layer(cls: type) -> str:
    if "attribution_method" in _names(cls):
        return "as the method inside"
    return "yes" if "layer" in _names(cls) else "no"


def method_page(cls: type) -> str:
    """Text of the page of one method."""
    e = entry(cls)
    picture = f"![The sample, its map, and both together](../../images/methods/{e.name}.jpg)"
    twin = "Captum's class" if "captum" in e.twin else "Same as"
    return _class_page(e, {"Contains the input": _contains_input(cls), twin: e.twin}, picture)


def _contains_input(cls: Any) -> str:
    """Whether the map contains input minus baseline, or a layer's activation, which scores have to know."""
    if "attribution_method" in _names(cls):
        return "as the method inside"
    if "multiply_by_inputs" in _names(cls):
        return "with ``multiply_by_inputs``"
    return "yes" if cls().multiplies_by_inputs else "no"


def metrics_page() -> str:
    """Text of metrics.md."""
    classes = _classes(metrics)
    return _page(
        "Metrics",
        "Cost counts the samples sent through the model for each explained sample, in addition to those of the methods; each "
        "entry explains its letters. `m` and `q` in the examples are `lightning_explain.methods` and "
        "`lightning_explain.metrics`.",
        _table(
            ("metric", "cost forward", "cost backward", "better", "needs masks"),
            [_row("metrics", cls, _better(cls), _needs_masks(cls)) for cls in classes],
        ),
        _tree("metrics", classes),
    )


def _better(cls: Any) -> str:
    return {True: "higher", False: "lower", None: "neither"}[cls.higher_is_better]


def _needs_masks(cls: type) -> str:
    return "yes" if getattr(cls, "needs_masks", False) else "no"


def metric_page(cls: Any) -> str:
    """Text of the page of one metric."""
    e = entry(cls)
    scores = [_score(suffix) for suffix in cls().suffixes]
    further = {
        "Scores": ", ".join(scores) if len(scores) > 1 else "",
        "Comparable": _comparable(cls()),
        "Same as": e.twin,
    }
    undefined = {_score(suffix): reason for suffix, reason in cls().undefined.items()}
    reasons = {reason: [score for score in undefined if undefined[score] == reason] for reason in undefined.values()}
    further["Undefined"] = "; ".join(f"{', '.join(scores)} where {reason}" for reason, scores in reasons.items())
    picture = f"![Over the epochs of two trainings: on marked and on clean digits](../../images/metrics/{e.name}.png)"
    return _class_page(e, further, picture)


def _score(suffix: str) -> str:
    return f"``_{suffix}``" if suffix else "the plain name"


def _comparable(metric: Any) -> str:
    """Which of a metric's scores can be compared between epochs and runs."""
    with_unit = ", ".join(_score(suffix) for suffix in metric.incomparable)
    return f"between epochs and runs, except {with_unit}" if with_unit else "between epochs and runs"


def _class_page(e: Entry, further: Mapping[str, str], picture: str) -> str:
    return _page(e.name, *_parts(e, further, picture))


def _parts(e: Entry, further: Mapping[str, str], picture: str) -> Iterator[str]:
    note = f"; {e.cost.note}" if e.cost.note else ""
    cost = f"{_code(e.cost.forward)} forward, {_code(e.cost.backward)} backward{note}."
    facts = {"Returns": e.result, "Chance": e.chance, "Cost": cost, "Not for": e.not_for, "Paper": e.paper, **further}
    yield _text(e.summary)
    yield f"$$\n{e.formula}\n$$"
    yield from map(_text, e.notes)
    yield picture
    yield "\n".join(f"- **{name}:** {_text(fact)}" for name, fact in facts.items() if fact)
    if e.arguments:
        rows = [(_code(name), _code(default), _text(meaning)) for name, default, meaning in e.arguments]
        yield _table(("argument", "default", "meaning"), rows)
    yield "\n".join(("```python", *(line for part in e.example for line in _lines(part)), "```"))


def _lines(example: doctest.Example) -> Iterator[str]:
    """Source of one example, its result as a comment."""
    *before, last = example.source.rstrip().splitlines()
    result = example.want.rstrip().splitlines()
    yield from before
    yield f"{last}  # {result[0]}" if len(result) == 1 else last
    yield from (f"# {line}" for line in result if len(result) > 1)


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((GENERATED, f"# {title}", *parts)) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _text(value: str) -> str:
    """Docstring markup in, Markdown out."""
    return re.sub(r":\w+:`(\w+)`", r"`\1`", value).replace("``", "`")


def _code(value: str) -> str:
    return f"`{value}`"


def command_line_page() -> str:
    """Text of command-line.md: a section for each command, with its arguments and options."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("lightning-explain", [], resilient_parsing=True)
    sections = [_command(group.get_command(context, name), context) for name in group.list_commands(context)]
    return _page(
        "Command line",
        "`python -m lightning_explain` does the same as `lightning-explain`, and `lightning-explain COMMAND --help` shows what is below. "
        "Tables are as wide as the terminal; in a pipe they have their full width, or that of the variable `COLUMNS`.",
        *(part for section in sections for part in section),
    )


def _command(command: Any, parent: Any) -> Iterator[str]:
    context = command.make_context(command.name, [], parent=parent, resilient_parsing=True)
    parameters = [parameter for parameter in command.get_params(context) if parameter.name != "help"]
    arguments = [_written(parameter) for parameter in parameters if parameter.param_type_name == "argument"]
    yield f"## {command.name}"
    yield _code(" ".join(["lightning-explain", command.name, "[OPTIONS]", *arguments]))
    yield command.help
    yield _table(("argument or option", "meaning"), [(_code(_written(p)), _told(p)) for p in parameters])


def _written(parameter: Any) -> str:
    """An argument or option as one writes it: ``RUN...``, ``[NAME...]``, ``--clean / --marked``."""
    if parameter.param_type_name == "option":
        return " / ".join([", ".join(parameter.opts), *parameter.secondary_opts])
    name = (parameter.metavar or parameter.name).upper().removesuffix("...") + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _told(parameter: Any) -> str:
    """The help, what may be chosen, and the default."""
    choices = [choice.value for choice in type(parameter.default)] if isinstance(parameter.default, Enum) else []
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    shown = not isinstance(default, (bool, list)) and default is not None and not callable(default)
    more = [
        ", ".join(map(_code, choices)) if choices else "",
        f"Default: `{default}`" if shown else "",
        "Needed" if parameter.required else "",
    ]
    return " ".join([parameter.help.replace("<", "\\<").replace("*", "\\*"), *(f"{part}." for part in more if part)])


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line_page,
    "methods.md": methods_page,
    "metrics.md": metrics_page,
    **{f"methods/{cls.__name__}.md": partial(method_page, cls) for cls in _classes(methods)},
    **{f"metrics/{cls.__name__}.md": partial(metric_page, cls) for cls in _classes(metrics)},
}


def main() -> None:
    """Writes the pages."""
    for folder in ("methods", "metrics"):
        (HERE / "reference" / folder).mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (HERE / "reference" / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
