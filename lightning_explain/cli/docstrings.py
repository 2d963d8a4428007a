"""The docstring of a method or metric class in, the facts that its page and ``lightning-explain methods`` show out."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from lightning_explain import methods

_SECTION = re.compile(r"(Formula|Cost|Chance|Returns|Signed|Not for|Args|Further arguments|Raises|Example):\s*(.*)")
_ARGUMENT = re.compile(r"(\w+): (.*)")
_COST = re.compile(r"(?P<forward>[^,;]+) forward, (?P<backward>[^,;.]+) backward(?:; (?P<note>.+))?\.")
_SOURCE = re.compile(r" \((?P<paper>[^();]*(?:\d{4}|Captum)[^();]*?)(?:; (?P<twin>[^()]+))?\)")

# Methods of a class whose docstring states what it returns.
WORKS = ("finish", "reduce", "attribute", "measure", "score")


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
