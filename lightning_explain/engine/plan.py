"""Plans which methods share points: merges methods with equal paths, and everything they read at each point."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import TYPE_CHECKING, Any

from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.points import Path, Read, path_of, value_of
from lightning_explain.core.probe import Samples
from lightning_explain.core.report import PassCount
from lightning_explain.engine.paths import AtInput, Line

if TYPE_CHECKING:
    from rich.table import Table

_AT_INPUT = value_of(AtInput())


@dataclass(frozen=True, eq=False)
class SharedPath:
    """A path, with all methods that share it.

    Args:
        key: Equal paths have equal keys.
        path: Yields the points.
        reads: Everything that is read at each point, by any method.
        methods: The methods that share the path, by name.
    """

    key: Hashable
    path: Path
    reads: frozenset[Read]
    methods: Mapping[str, Method]

    @property
    def rules(self) -> tuple[str, ...]:
        """The backward rules that are read, each of which costs a backward pass; empty: forward passes only."""
        return tuple(sorted({rule for rule, _ in self.reads if rule}))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read."""
        return tuple(sorted({str(site.layer) for _, site in self.reads if site}))


@dataclass(frozen=True, eq=False)
class Plan:
    """The shared paths of all methods, in the order of execution.

    Args:
        center: The path that consists of the samples themselves, if a method has it; it runs first.
        shared_paths: All other paths, sorted by backward rules; those that need only forward passes come last.
        apart: Names of methods without a path, which run through Captum by themselves.
    """

    center: SharedPath | None
    shared_paths: tuple[SharedPath, ...]
    apart: tuple[str, ...] = ()

    def groups(self) -> list[list[SharedPath]]:
        """Groups the paths whose points can share a pass, because they have the same backward rules."""
        found: dict[tuple[str, ...], list[SharedPath]] = {}
        for shared_path in self.shared_paths:
            found.setdefault(shared_path.rules, []).append(shared_path)
        return list(found.values())

    def describe(self, explained: ExplainedFunction, samples: Samples, choosing: bool = True) -> Description:
        """Returns what the plan costs, by generating and counting its points; the model is not run.

        Args:
            explained: The explained function; only its baselines, draws and limit are used.
            samples: N samples.
            choosing: Whether the samples themselves are evaluated in any case, to choose targets from the outputs.
        """
        parts = [self._shares(explained, batch, choosing) for batch in batches(samples, explained.limit)]
        shares = tuple(_joined(column) for column in zip(*parts, strict=True))
        return Description(len(samples), shares, self.apart, tuple(self._notes()))

    def _shares(self, explained: ExplainedFunction, batch: Samples, choosing: bool) -> list[Share]:
        """Returns what each shared path costs for one batch, in the order in which the executor evaluates them."""
        shared_paths = [shared_path for group in self.groups() for shared_path in group]
        first = self.center or (SharedPath(_AT_INPUT, AtInput(), frozenset(), {}) if choosing else None)
        known: set[Hashable] = set()
        return [
            _share(shared_path, explained, batch, known) for shared_path in ([first] if first else []) + shared_paths
        ]

    def _notes(self) -> Iterator[str]:
        """Yields a hint for each pair of methods that would share a path with one step more or less."""
        lines = [
            (shared_path.path, shared_path.methods)
            for shared_path in self.shared_paths
            if isinstance(shared_path.path, Line)
        ]
        for (a, ours), (b, theirs) in combinations(sorted(lines, key=lambda line: line[0].n_points), 2):
            if b.n_points == a.n_points + 1 and value_of(replace(b, n_points=a.n_points)) == value_of(a):
                yield (
                    f"{', '.join(ours)} ({a.n_points} points) and {', '.join(theirs)} ({b.n_points}) share no points. "
                    "LayerConductance evaluates n_steps + 1 points; give it n_steps=k-1 to share those of IntegratedGradients(n_steps=k)."
                )


@dataclass(frozen=True)
class Share:
    """What the methods of one shared path cost together.

    Args:
        methods: Their names; empty if the points only serve to choose the targets.
        path: The class names of the path, from the outermost to the innermost.
        points: Number of points on the path.
        passes: Samples sent through the model, summed over all explained samples.
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
        samples: Number of explained samples.
        shares: The cost of each shared path, in the order of execution.
        apart: Names of methods that run through Captum by themselves; their cost is not counted.
        notes: Hints on points that could be shared, but are not.
    """

    samples: int
    shares: tuple[Share, ...]
    apart: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def passes(self) -> PassCount:
        """Samples sent through the model, without the methods that run by themselves."""
        return sum((share.passes for share in self.shares), PassCount())

    def table(self) -> Table:
        """Returns a table with a line for each shared path and each method that runs by itself.

        Forward and backward count samples sent through the model, per explained sample.
        """
        from rich.table import Table
        from rich.text import Text

        table = Table(
            "methods", "path", "points", "forward", "backward", "layers", title="Passes for each explained sample"
        )
        for share in self.shares:
            who = ", ".join(share.methods) or "the choice of targets"
            passes = per_sample(share.passes, self.samples)
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


def per_sample(passes: PassCount, samples: int) -> tuple[str, str]:
    """Returns forward and backward samples per explained sample, as text."""
    return f"{passes.forward / samples:.6g}", f"{passes.backward / samples:.6g}"


def batches(samples: Samples, limit: int) -> list[Samples]:
    """Splits samples into as few batches of at most ``limit`` as possible, of about equal size."""
    count = ceil(len(samples) / limit)
    return list(samples.split(ceil(len(samples) / count)))


def _share(shared_path: SharedPath, explained: ExplainedFunction, batch: Samples, known: set[Hashable]) -> Share:
    points = forward = 0
    for point in shared_path.path.points(explained, batch):
        points += 1
        # The executor evaluates a known point again if more than its output is read.
        needed = bool(shared_path.reads) or point.key is None or point.key not in known
        # Each sample beside its baseline.
        forward += needed * (2 if point.against else 1)
        known.add(point.key)
    passes = PassCount(forward * len(batch), forward * len(batch) * len(shared_path.rules))
    return Share(tuple(shared_path.methods), _class_names(shared_path.path), points, passes, shared_path.layers)


def _joined(parts: Sequence[Share]) -> Share:
    """Adds up the cost of one shared path over all batches."""
    passes = sum((part.passes for part in parts), PassCount())
    return replace(parts[0], passes=passes, points=max(part.points for part in parts))


def _class_names(path: Path) -> str:
    around = getattr(path, "around", None)
    return type(path).__name__ + (f" of {_class_names(around)}" if around is not None else "")


def plan(methods: Mapping[str, Any]) -> Plan:
    """Returns the plan for methods, some of which may have no path and run by themselves."""
    paths = {name: path_of(method) for name, method in methods.items()}
    return shared({name: methods[name] for name, path in paths.items() if path is not None}, apart=paths)


def shared(methods: Mapping[str, Method], apart: Iterable[str] = ()) -> Plan:
    """Returns the plan for methods that all have a path.

    Args:
        methods: Methods by name.
        apart: Names of all methods; those that are not in ``methods`` run by themselves.
    """
    keys = {name: value_of(method.path) for name, method in methods.items()}
    distinct = list(dict.fromkeys(keys.values()))
    shared_paths = [
        _shared_path(key, {name: methods[name] for name, k in keys.items() if k == key}) for key in distinct
    ]
    shared_paths.sort(key=lambda shared_path: (not shared_path.rules, shared_path.rules))
    center = next((shared_path for shared_path in shared_paths if shared_path.key == _AT_INPUT), None)
    others = tuple(shared_path for shared_path in shared_paths if shared_path is not center)
    return Plan(center, others, tuple(name for name in apart if name not in keys))


def _shared_path(key: Hashable, methods: Mapping[str, Method]) -> SharedPath:
    reads = frozenset[Read]().union(*(method.reads for method in methods.values()))
    first = next(iter(methods.values())).path
    assert first is not None
    return SharedPath(key, first, reads, methods)
