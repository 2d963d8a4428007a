"""Docstrings and fields of the method and metric classes in, the reference of methods and metrics out: ``make docs``."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_explain import methods, metrics

HERE = Path(__file__).parent
GENERATED = "<!-- Written by docs/generate.py from the docstrings: change those, then run `make docs`. -->"

_SECTION = re.compile(r"(Formula|Cost|Chance|Returns|Signed|Not for|Args|Further arguments|Raises|Example):\s*(.*)")
_ARGUMENT = re.compile(r"(\w+): (.*)")
_COST = re.compile(r"(?P<forward>[^,;]+) forward, (?P<backward>[^,;.]+) backward(?:; (?P<note>.+))?\.")
_SOURCE = re.compile(r" \((?P<paper>[^();]*(?:\d{4}|Captum)[^();]*?)(?:; (?P<twin>[^()]+))?\)")

# Methods of a class whose docstring states what it returns.
WORKS = ("finish", "reduce", "attribute", "measure", "score")


FAMILIES = {
    "Primary": "They explain the output by the input.",
    "Layer": "They explain the output by a layer inside the model.",
    "Neuron": "They explain one unit of a layer instead of the output.",
    "Around other methods": "They change what another method computes.",
}


@dataclass(frozen=True)
class Cost:
    """Samples sent through the model for each explained sample, as Python expressions of the arguments and a few letters.

    Args:
        forward: Samples forward.
        backward: Samples backward.
        note: Meaning of the letters, and further remarks.
    """

    forward: str
    backward: str
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """The facts about one class that its page shows.

    Args:
        name: Name of the class.
        summary: What it computes, in one sentence.
        paper: Authors and year; ``Captum`` where there is no paper.
        twin: The equivalent elsewhere, such as Captum's class; may be empty.
        notes: Further paragraphs.
        formula: What it computes, in LaTeX.
        result: Shape and unit of the result.
        chance: What a map without information scores, for a metric that knows.
        cost: Passes it takes.
        signed: Whether a map separates evidence for the output from evidence against it.
        not_for: When not to use it.
        arguments: Name, default and meaning of each argument.
        example: The doctest, as ``doctest`` parses it.
    """

    name: str
    summary: str
    paper: str
    twin: str
    notes: tuple[str, ...]
    formula: str
    result: str
    chance: str
    cost: Cost
    signed: str
    not_for: str
    arguments: tuple[tuple[str, str, str], ...]
    example: tuple[doctest.Example, ...]


def entry(cls: type) -> Entry:
    """Reads the docstring and the fields of a class.

    Raises:
        ValueError: If a section is missing or malformed.
    """
    prose, sections = _sections(cls)
    summary, paper, twin = _summary(cls, prose[0])
    return Entry(
        name=cls.__name__,
        summary=summary,
        paper=paper,
        twin=twin,
        notes=tuple(prose[1:]),
        formula=_needed(cls, sections, "Formula"),
        result=_result(cls, sections),
        chance=_joined(sections.get("Chance", [])),
        cost=_cost(cls, sections),
        signed=_joined(sections.get("Signed", ["yes"])).rstrip("."),
        not_for=_needed(cls, sections, "Not for"),
        arguments=tuple(_arguments(cls)),
        example=_example(cls, sections),
    )


def _sections(cls: type) -> tuple[list[str], dict[str, list[str]]]:
    """Splits a docstring into the paragraphs before the first section, and the lines of each section."""
    prose: list[str] = []
    found: dict[str, list[str]] = {}
    into = prose
    for line in (inspect.getdoc(cls) or "").splitlines():
        start = _SECTION.fullmatch(line)
        if start:
            into = found.setdefault(start[1], [])
            into.append(start[2])
        elif found and line and not line.startswith(" "):
            raise ValueError(f"{cls.__name__}: {line!r} follows a section; put it before the first one, or indent it.")
        else:
            into.append(line)
    return [_joined(p.splitlines()) for p in "\n".join(prose).strip().split("\n\n")], found


def _joined(lines: Iterable[str]) -> str:
    return " ".join(line.strip() for line in lines if line.strip())


def _needed(cls: type, sections: dict[str, list[str]], name: str) -> str:
    text = _joined(sections.get(name, []))
    if not text:
        raise ValueError(f"The docstring of {cls.__name__} has no line '{name}: ...'; docs/generate.py needs one.")
    return text


def _example(cls: type, sections: dict[str, list[str]]) -> tuple[doctest.Example, ...]:
    found = tuple(doctest.DocTestParser().get_examples("\n".join(sections.get("Example", []))))
    if not found:
        raise ValueError(
            f"The docstring of {cls.__name__} has no section 'Example:'; write one with '>>>' lines that run."
        )
    return found


def _summary(cls: type, first: str) -> tuple[str, str, str]:
    source = _SOURCE.search(first)
    if source is None:
        raise ValueError(
            f"The first line of {cls.__name__} names no source: {first!r}; write (Author et al. 2020; "
            "``captum.attr.Class``), or (Captum; ``captum.attr.Class``) where there is no paper."
        )
    return first[: source.start()] + first[source.end() :], source["paper"], source["twin"] or ""


def _cost(cls: type, sections: dict[str, list[str]]) -> Cost:
    text = _needed(cls, sections, "Cost")
    found = _COST.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{cls.__name__} has 'Cost: {text}'; write 'Cost: <samples> forward, <samples> backward; <remark>.', where samples "
            "are a Python expression such as n_samples * F + 1 and the remark may be left out."
        )
    return Cost(found["forward"], found["backward"], found["note"] or "")


def _result(cls: type, sections: dict[str, list[str]]) -> str:
    """What the class says under 'Returns:', or else the first paragraph of the method that computes the result."""
    works = next(vars(c)[name] for c in cls.__mro__ for name in WORKS if name in vars(c))
    first = (inspect.getdoc(works) or "").partition("\n\n")[0].splitlines()
    return _joined(sections.get("Returns", first))


def _arguments(cls: Any) -> Iterator[tuple[str, str, str]]:
    meanings = documented(cls)
    for field in fields(cls):
        if field.name not in meanings:
            raise ValueError(f"The docstring of {cls.__name__} does not say under 'Args:' what {field.name!r} means.")
        yield field.name, _default(field), meanings[field.name]


def documented(cls: type) -> dict[str, str]:
    """What the arguments of a class mean: by its own 'Args:', else by those of the classes under 'Further arguments:'."""
    _, sections = _sections(cls)
    found: dict[str, str] = {}
    for name in reversed(re.findall(r":class:`(\w+)`", _joined(sections.get("Further arguments", [])))):
        found |= documented(getattr(methods, name))
    return found | _meanings(sections.get("Args", []))


def _meanings(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for line in (line.removeprefix("    ") for line in lines if line.strip()):
        start = _ARGUMENT.fullmatch(line)
        if start:
            found[start[1]] = [start[2]]
        else:
            found[next(reversed(found))].append(line)
    return {name: _joined(parts) for name, parts in found.items()}


def _default(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return repr(field.default_factory())
    if isinstance(field.default, str):
        return f'"{field.default}"'
    return "needed" if field.default is MISSING else repr(field.default)


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
    return _class_page(e, {"Contains the input": _contains_input(cls), "Captum's class": e.twin}, picture)


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


PAGES: dict[str, Callable[[], str]] = {
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
