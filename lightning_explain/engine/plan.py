"""Who looks at what: methods that look at the same points share them, and what they want there is united."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import TYPE_CHECKING, Any

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import Path, Streamed, Want, path_of, value_of
from lightning_explain.core.probe import Rows
from lightning_explain.core.report import PassCount
from lightning_explain.engine.paths import AtInput, Line

if TYPE_CHECKING:
    from rich.table import Table

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

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read."""
        return tuple(sorted({str(spot.layer) for _, spot in self.wants if spot}))


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

    def describe(self, subject: Subject, rows: Rows, choosing: bool = True) -> Description:
        """What the plan costs, without running the model: its points are made and counted.

        Args:
            subject: The explained function; only baselines, draws and the limit are asked for.
            rows: N rows.
            choosing: The rows themselves go through the model in any case, for their outputs tell the targets.
        """
        parts = [self._shares(subject, block, choosing) for block in blocks(rows, subject.limit)]
        shares = tuple(_joined(column) for column in zip(*parts, strict=True))
        return Description(len(rows), shares, self.apart, tuple(self._notes()))

    def _shares(self, subject: Subject, block: Rows, choosing: bool) -> list[Share]:
        """What each stream costs for one block, in the order in which the sweep visits them."""
        streams = [stream for group in self.groups() for stream in group]
        first = self.center or (Stream(_AT_INPUT, AtInput(), frozenset(), {}) if choosing else None)
        known: set[Hashable] = set()
        return [_share(stream, subject, block, known) for stream in ([first] if first else []) + streams]

    def _notes(self) -> Iterator[str]:
        """Lines that are nearly one."""
        lines = [(stream.path, stream.methods) for stream in self.streams if isinstance(stream.path, Line)]
        for (a, ours), (b, theirs) in combinations(sorted(lines, key=lambda line: line[0].n_points), 2):
            if b.n_points == a.n_points + 1 and value_of(replace(b, n_points=a.n_points)) == value_of(a):
                yield (
                    f"{', '.join(ours)} ({a.n_points} points) and {', '.join(theirs)} ({b.n_points}) share nothing. "
                    "LayerConductance has a point more than n_steps: it shares the line of IntegratedGradients(n_steps=k) with n_steps=k-1."
                )


@dataclass(frozen=True)
class Share:
    """What the methods that look at the same points cost together.

    Args:
        methods: Their names; empty where nobody but the choice of targets looks.
        path: The class of their path, from the outside in.
        points: Points of the path.
        passes: Rows through the model, of all explained rows together.
        layers: Layers that are read at each point.
    """

    methods: tuple[str, ...]
    path: str
    points: int
    passes: PassCount
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """What a plan costs.

    Args:
        rows: Explained rows.
        shares: Each stream, in the order of the sweep.
        apart: Names of methods that run through Captum as they are; what they cost is not counted.
        notes: What could be shared, and is not.
    """

    rows: int
    shares: tuple[Share, ...]
    apart: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passes(self) -> PassCount:
        """Rows through the model, but for methods apart."""
        return sum((share.passes for share in self.shares), PassCount())

    def table(self) -> Table:
        """A line for each stream and each method apart; rows through the model for each explained row."""
        from rich.table import Table
        from rich.text import Text

        table = Table(
            "who", "looks at", "points", "forward", "backward", "layers", title="Passes for each explained row"
        )
        for share in self.shares:
            who = ", ".join(share.methods) or "the choice of targets"
            passes = per_row(share.passes, self.rows)
            table.add_row(Text(who), share.path, str(share.points), *passes, Text(", ".join(share.layers)))
        for name in self.apart:
            table.add_row(Text(name), "runs by itself", "", "as Captum", "as Captum", "")
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, color_system=None)
        with console.capture() as capture:
            console.print(self.table(), *self.notes, sep="\n")
        return capture.get()


def per_row(passes: PassCount, rows: int) -> tuple[str, str]:
    """Forward and backward rows for each explained row."""
    return f"{passes.forward / rows:.6g}", f"{passes.backward / rows:.6g}"


def blocks(rows: Rows, limit: int) -> list[Rows]:
    """The rows in as few blocks of at most ``limit`` as can be, of about equal size."""
    count = ceil(len(rows) / limit)
    return list(rows.split(ceil(len(rows) / count)))


def _share(stream: Stream, subject: Subject, block: Rows, known: set[Hashable]) -> Share:
    points = forward = 0
    for point in stream.path.points(subject, block):
        points += 1
        # The sweep looks again where more than the output is read.
        needed = bool(stream.wants) or point.key is None or point.key not in known
        forward += needed * (_of_pairs(stream) if point.against else 1)
        known.add(point.key)
    passes = PassCount(forward * len(block), forward * len(block) * len(stream.rules))
    return Share(tuple(stream.methods), _told(stream.path), points, passes, stream.layers)


def _of_pairs(stream: Stream) -> int:
    """Rows for a row beside what it is compared with; Captum's class for layers reads one of them at a time."""
    at_input = any(rule and spot is None for rule, spot in stream.wants)
    return 2 * (1 if at_input else len({spot for _, spot in stream.wants}))


def _joined(parts: Sequence[Share]) -> Share:
    """The same stream in all blocks."""
    passes = sum((part.passes for part in parts), PassCount())
    return replace(parts[0], passes=passes, points=max(part.points for part in parts))


def _told(path: Path) -> str:
    around = getattr(path, "around", None)
    return type(path).__name__ + (f" of {_told(around)}" if around is not None else "")


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
