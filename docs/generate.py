"""Writes methods.md and metrics.md from the docstrings and fields of the classes alone: ``make docs``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_explain import methods, metrics

HERE = Path(__file__).parent
GENERATED = "<!-- Written by docs/generate.py from the docstrings: change those, then run `make docs`. -->"

_SECTION = re.compile(r"(Cost|Signed|Not for|Args|Raises):\s*(.*)")
_ARGUMENT = re.compile(r"(\w+): (.*)")
_COST = re.compile(r"(?P<forward>[^,;]+) forward, (?P<backward>[^,;.]+) backward(?:; (?P<note>.+))?\.")
_SOURCE = re.compile(r" \((?P<paper>[^();]*(?:\d{4}|Captum)[^();]*?)(?:; (?P<twin>[^()]+))?\)")

# Where a class says what it returns.
WORKS = ("finish", "reduce", "attribute", "score")


FAMILIES = {
    "Primary": "They explain the output by the input.",
    "Layer": "They explain the output by a layer inside the model.",
    "Neuron": "They explain one unit of a layer instead of the output.",
    "Around other methods": "They change what another method computes.",
}


@dataclass(frozen=True)
class Cost:
    """Samples through the model for each explained sample, as Python expressions of the arguments and a few letters.

    Args:
        forward: Samples forward.
        backward: Samples backward.
        note: What the letters are, and what else there is to say.
    """

    forward: str
    backward: str
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """What is told of one class.

    Args:
        name: Of the class.
        summary: What it computes, in one sentence.
        paper: Authors and year; ``Captum`` where there is no paper.
        twin: The same thing elsewhere, such as Captum's class; may be empty.
        notes: Further paragraphs.
        result: Shape and unit of what comes out.
        cost: In passes.
        signed: Whether a map tells for from against.
        not_for: When not to use it.
        arguments: Name, default and meaning of each.
    """

    name: str
    summary: str
    paper: str
    twin: str
    notes: tuple[str, ...]
    result: str
    cost: Cost
    signed: str
    not_for: str
    arguments: tuple[tuple[str, str, str], ...]


def entry(cls: type) -> Entry:
    """What the docstring and the fields of a class say.

    Raises:
        ValueError: If the docstring lacks a section, or one is not in its form.
    """
    prose, sections = _sections(cls)
    summary, paper, twin = _summary(cls, prose[0])
    works = next(vars(c)[name] for c in cls.__mro__ for name in WORKS if name in vars(c))
    return Entry(
        name=cls.__name__,
        summary=summary,
        paper=paper,
        twin=twin,
        notes=tuple(prose[1:]),
        result=_joined((inspect.getdoc(works) or "").partition("\n\n")[0].splitlines()),
        cost=_cost(cls, sections),
        signed=_joined(sections.get("Signed", ["yes"])).rstrip("."),
        not_for=_needed(cls, sections, "Not for"),
        arguments=tuple(_arguments(cls, sections.get("Args", []))),
    )


def _sections(cls: type) -> tuple[list[str], dict[str, list[str]]]:
    """The paragraphs before the first section, and the lines of each section."""
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


def _arguments(cls: Any, lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    meanings = _meanings(lines)
    for field in fields(cls):
        if field.name not in meanings:
            raise ValueError(f"The docstring of {cls.__name__} does not say under 'Args:' what {field.name!r} means.")
        yield field.name, _default(field), meanings[field.name]


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
    """Where a method looks, by its arguments and by the shape of what it returns."""
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
    """The page of all methods."""
    classes = _classes(methods)
    families = {title: [cls for cls in classes if family(cls) == title] for title in FAMILIES}
    samples = [
        _sample(cls, _text(entry(cls).signed), _needs_layer(cls)) for group in families.values() for cls in group
    ]
    told = [(f"## {title}", FAMILIES[title], *(p for cls in g for p in _method(cls))) for title, g in families.items()]
    return _page(
        "Methods",
        "Cost is in samples sent through the model for each explained sample; backward samples are those of a gradient. Letters "
        "in it are explained below. Layers have a default: the last one with a feature map.",
        _table(("method", "cost forward", "cost backward", "signed?", "needs a layer"), samples),
        *(part for parts in told for part in parts),
    )


def _sample(cls: type, *further: str) -> tuple[str, ...]:
    e = entry(cls)
    return (f"[{e.name}](#{e.name.lower()})", _code(e.cost.forward), _code(e.cost.backward), *further)


def _needs_layer(cls: type) -> str:
    if "attribution_method" in _names(cls):
        return "as the method inside"
    return "yes" if "layer" in _names(cls) else "no"


def _method(cls: type) -> Iterator[str]:
    e = entry(cls)
    return _told("###", e, {"Captum's class": e.twin})


def metrics_page() -> str:
    """The page of all metrics."""
    classes = _classes(metrics)
    return _page(
        "Metrics",
        "Cost is in samples sent through the model for each explained sample, on top of the methods' own. Letters in it are "
        "explained below.",
        _table(
            ("metric", "cost forward", "cost backward", "better", "needs masks"),
            [_sample(cls, _better(cls), _needs_masks(cls)) for cls in classes],
        ),
        *(part for cls in classes for part in _metric(cls)),
    )


def _better(cls: Any) -> str:
    return {True: "higher", False: "lower", None: "neither"}[cls.higher_is_better]


def _needs_masks(cls: type) -> str:
    return "yes" if getattr(cls, "needs_masks", False) else "no"


def _metric(cls: Any) -> Iterator[str]:
    e = entry(cls)
    scores = [f"``_{suffix}``" if suffix else "the plain name" for suffix in cls().suffixes]
    return _told("##", e, {"Scores": ", ".join(scores) if len(scores) > 1 else "", "Same as": e.twin})


def _told(heading: str, e: Entry, further: Mapping[str, str]) -> Iterator[str]:
    note = f"; {e.cost.note}" if e.cost.note else ""
    cost = f"{_code(e.cost.forward)} forward, {_code(e.cost.backward)} backward{note}."
    facts = {"Returns": e.result, "Cost": cost, "Not for": e.not_for, "Paper": e.paper, **further}
    yield f"{heading} {e.name}"
    yield from map(_text, (e.summary, *e.notes))
    yield "\n".join(f"- **{name}:** {_text(fact)}" for name, fact in facts.items() if fact)
    if e.arguments:
        samples = [(_code(name), _code(default), _text(meaning)) for name, default, meaning in e.arguments]
        yield _table(("argument", "default", "meaning"), samples)


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((GENERATED, f"# {title}", *parts)) + "\n"


def _table(head: Sequence[str], samples: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *samples)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _text(value: str) -> str:
    """Docstring markup as Markdown."""
    return re.sub(r":\w+:`(\w+)`", r"`\1`", value).replace("``", "`")


def _code(value: str) -> str:
    return f"`{value}`"


PAGES: dict[str, Callable[[], str]] = {"methods.md": methods_page, "metrics.md": metrics_page}


def main() -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
