"""Plans which methods share points: merges methods with equal paths, and everything they read at each point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, groupby
from math import ceil
from typing import Any

from lightning_explain.core.contracts import Method
from lightning_explain.core.points import Path, Read, path_of, value_of
from lightning_explain.core.probe import Samples
from lightning_explain.engine.paths import AtInput, Line


@dataclass(frozen=True, eq=False)
class SharedPath:
    """A path, with all methods that share it.

    Args:
        path: Yields the points.
        methods: The methods that share the path, by name.
    """

    path: Path
    methods: dict[str, Method] = field(default_factory=dict)

    @cached_property
    def reads(self) -> frozenset[Read]:
        """Everything that is read at each point, by any method."""
        return frozenset[Read]().union(*(method.reads for method in self.methods.values()))

    @cached_property
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
        center: The path that consists of the samples themselves, whether or not a method has it; it runs first.
        shared_paths: All other paths, sorted by backward rules; those that need only forward passes come last.
        apart: Names of methods without a path, which run through Captum by themselves.
    """

    center: SharedPath
    shared_paths: tuple[SharedPath, ...]
    apart: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[SharedPath, ...]:
        """All paths, in the order of execution."""
        return (self.center, *self.shared_paths)

    def groups(self) -> list[list[SharedPath]]:
        """Groups the paths whose points can share a pass, because they have the same backward rules."""
        return [list(group) for _, group in groupby(self.shared_paths, key=lambda shared_path: shared_path.rules)]

    def hints(self) -> Iterator[str]:
        """Yields a hint for each pair of methods that would share a path with one step more or less."""
        lines = [(path, s.methods) for s in self.shared_paths if isinstance(path := s.path, Line)]
        for (a, ours), (b, theirs) in combinations(sorted(lines, key=lambda line: line[0].n_points), 2):
            if b.n_points == a.n_points + 1 and value_of(replace(b, n_points=a.n_points)) == value_of(a):
                yield (
                    f"{', '.join(ours)} ({a.n_points} points) and {', '.join(theirs)} ({b.n_points}) share no points. "
                    "LayerConductance evaluates n_steps + 1 points; give it n_steps=k-1 to share those of IntegratedGradients(n_steps=k)."
                )


def batches(samples: Samples, limit: int) -> list[Samples]:
    """Splits samples into as few batches of at most ``limit`` as possible, of about equal size."""
    count = ceil(len(samples) / limit)
    return [samples] if count == 1 else list(samples.split(ceil(len(samples) / count)))


def plan(methods: Mapping[str, Any]) -> Plan:
    """Returns the plan for methods, some of which may have no path and run by themselves."""
    on_path = {name: method for name, method in methods.items() if path_of(method) is not None}
    return replace(shared(on_path), apart=tuple(name for name in methods if name not in on_path))


def shared(methods: Mapping[str, Any]) -> Plan:
    """Returns the plan for methods that all have a path."""
    center = SharedPath(AtInput())
    found = {value_of(center.path): center}
    for name, method in methods.items():
        found.setdefault(value_of(method.path), SharedPath(method.path)).methods[name] = method
    others = [shared_path for shared_path in found.values() if shared_path is not center]
    return Plan(center, tuple(sorted(others, key=lambda shared_path: (not shared_path.rules, shared_path.rules))))
