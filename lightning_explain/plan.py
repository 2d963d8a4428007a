"""Who looks at what: methods that look at the same points share them, and what they want there is united."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_explain.methods._paths import AtInput
from lightning_explain.visits import Path, Streamed, Want, path_of, value_of

_AT_INPUT = value_of(AtInput())


@dataclass(frozen=True, eq=False)
class Stream:
    """A path with all who look at it.

    Args:
        key: What the path is worth; equal paths are one stream.
        path: The points.
        wants: Everything that is read at each of them.
        methods: Who reads it, by name.
    """

    key: Hashable
    path: Path
    wants: frozenset[Want]
    methods: Mapping[str, Streamed]

    @property
    def rules(self) -> tuple[str, ...]:
        """The backward rules, each of which costs a backward pass; none: forward only."""
        return tuple(sorted({rule for rule, _ in self.wants if rule}))


@dataclass(frozen=True, eq=False)
class Plan:
    """How all methods are explained.

    Args:
        center: Who looks at the rows themselves, if anyone does; it comes first.
        streams: All other paths; those with equal rules stand together, those that only look forward last.
        apart: Names of methods that run through Captum as they are.
    """

    center: Stream | None
    streams: tuple[Stream, ...]
    apart: tuple[str, ...] = ()

    def groups(self) -> list[list[Stream]]:
        """Streams whose points may share a pass, for they go back by the same rules."""
        found: dict[tuple[str, ...], list[Stream]] = {}
        for stream in self.streams:
            found.setdefault(stream.rules, []).append(stream)
        return list(found.values())


def plan(methods: Mapping[str, Any]) -> Plan:
    """The streams of the methods, and who is left apart."""
    paths = {name: path_of(method) for name, method in methods.items()}
    return shared({name: methods[name] for name, path in paths.items() if path is not None}, apart=paths)


def shared(methods: Mapping[str, Streamed], apart: Iterable[str] = ()) -> Plan:
    """The plan of methods of which each has a path.

    Args:
        methods: By name.
        apart: Names of which those that are no such method are left apart.
    """
    keys = {name: value_of(method.path) for name, method in methods.items()}
    distinct = list(dict.fromkeys(keys.values()))
    streams = [_stream(key, {name: methods[name] for name, k in keys.items() if k == key}) for key in distinct]
    streams.sort(key=lambda stream: (not stream.rules, stream.rules))
    center = next((stream for stream in streams if stream.key == _AT_INPUT), None)
    others = tuple(stream for stream in streams if stream is not center)
    return Plan(center, others, tuple(name for name in apart if name not in keys))


def _stream(key: Hashable, methods: Mapping[str, Streamed]) -> Stream:
    wants = frozenset[Want]().union(*(method.wants for method in methods.values()))
    first = next(iter(methods.values())).path
    assert first is not None
    return Stream(key, first, wants, methods)
