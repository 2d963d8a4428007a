"""Runs a plan: every point once, several points a pass, every visit to everyone who reads it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import CENTER, Point, Reducer, Visit
from lightning_explain.core.probe import Attribution, Rows, bare
from lightning_explain.engine.captum_adapter import needs_gradient
from lightning_explain.engine.evaluate import look
from lightning_explain.engine.pairs import look_at_pairs
from lightning_explain.engine.plan import Plan, Stream, blocks, shared
from lightning_explain.model.targets import Choice

Found = dict[str, tuple[Tensor, ...]]


def sweep(subject: Subject, methods: Mapping[str, Any], rows: Rows) -> dict[str, Attribution]:
    """Explains rows by methods that are each a path, wants and a reducer.

    Args:
        subject: The explained function.
        methods: By name.
        rows: N rows.

    Returns:
        For each method its attribution, each ``(N, ...)``.
    """
    planned = shared(methods)
    return joined([Block(subject, planned, block).run() for block in blocks(rows, subject.limit)])


def joined(parts: Sequence[Found]) -> dict[str, Attribution]:
    """The attributions of all blocks."""
    return {
        name: bare(tuple(torch.cat(column) for column in zip(*(part[name] for part in parts), strict=True)))
        for name in parts[0]
    }


class Block:
    """Some rows on their way through a plan.

    Args:
        subject: The explained function.
        planned: The plan.
        rows: At most ``subject.limit`` rows.
    """

    def __init__(self, subject: Subject, planned: Plan, rows: Rows) -> None:
        self._subject, self.rows = subject, rows
        self._plan = planned
        self._capacity = max(1, subject.limit // len(rows))
        # What only looks forward takes outputs that are known; where nothing does, none is kept but that of the center.
        self._reused = any(not stream.wants for stream in planned.streams)
        self.outputs: dict[Hashable, Tensor] = {}

    def run(self, choice: Choice | None = None) -> Found:
        """The attributions by all methods of the plan, each ``(N, ...)``.

        Args:
            choice: Chooses the targets from the outputs at the rows themselves, for rows that have none yet.
        """
        found: Found = {}
        if choice is not None or self._plan.center is not None:
            found |= self._at_rows(choice)
        for group in self._plan.groups():
            readers = [Readers(stream, self._subject, self.rows) for stream in group]
            for chunk in self._chunks(readers):
                self._visit(chunk)
            for reader in readers:
                found |= reader.found()
        return found

    def _at_rows(self, choice: Choice | None) -> Found:
        """The rows themselves come first: their output is what many need, and tells the targets."""
        center = self._plan.center
        rows = self.rows if choice is None else replace(self.rows, extra=(*self.rows.extra[:-1], choice))
        readers = Readers(center, self._subject, rows) if center is not None else None
        point = readers.next_point() if readers is not None else None
        (visit,) = look(
            self._subject, [point or Point(rows, CENTER)], center.wants if center is not None else frozenset()
        )
        self.outputs[CENTER] = visit.output
        if choice is not None:
            self.rows = replace(self.rows, extra=(*self.rows.extra[:-1], choice.indices))
        if readers is None:
            return {}
        readers.send(visit)
        return readers.found()

    def _chunks(self, readers: list[Readers]) -> Iterator[list[Stop]]:
        """Points of all streams in order, as many as a pass may take; those whose output is known cost nothing."""
        chunk: list[Stop] = []
        coming: set[Hashable] = set()
        for reader in readers:
            while (point := reader.next_point()) is not None:
                named = point.key is not None
                known = named and not reader.stream.wants and (point.key in self.outputs or point.key in coming)
                chunk.append(Stop(reader, point, known))
                coming.add(point.key)
                # Points that cost nothing take memory as well.
                if sum(not stop.known for stop in chunk) == self._capacity or len(chunk) == 2 * self._capacity:
                    yield chunk
                    chunk.clear()
                    coming.clear()
        if chunk:
            yield chunk

    def _visit(self, chunk: list[Stop]) -> None:
        visits = iter(self._look([stop for stop in chunk if not stop.known]))
        for reader, point, known in chunk:
            visit = Visit(point, self.outputs[point.key], {}) if known else next(visits)
            if self._reused and point.key is not None and not point.against:
                self.outputs[point.key] = visit.output
            reader.send(visit)

    def _look(self, chunk: list[Stop]) -> list[Visit]:
        if not chunk:
            return []
        if chunk[0].point.against:
            # A layer that is read costs passes of its own, so only points at which the same is read go together.
            groups = [list(stops) for _, stops in groupby(chunk, key=lambda stop: stop.reader.stream.wants)]
            return [visit for stops in groups for visit in self._look_at_pairs(stops)]
        wants = frozenset().union(*(stop.reader.stream.wants for stop in chunk))
        return look(self._subject, [stop.point for stop in chunk], wants)

    def _look_at_pairs(self, stops: list[Stop]) -> list[Visit]:
        with self._subject.mended([name for stop in stops for name in stop.reader.stream.methods]):
            return look_at_pairs(self._subject, [stop.point for stop in stops], stops[0].reader.stream.wants)


class Stop(NamedTuple):
    """A point in a chunk.

    Args:
        reader: Whose point it is.
        point: The point.
        known: Its output is known, or will be when its turn comes, and nothing else is read there.
    """

    reader: Readers
    point: Point
    known: bool


class Readers:
    """A stream with the reducers of all who read it.

    Args:
        stream: The stream.
        subject: The explained function.
        rows: N rows.
    """

    def __init__(self, stream: Stream, subject: Subject, rows: Rows) -> None:
        self.stream = stream
        self._points = iter(stream.path.points(subject, rows))
        self._found: Found = {}
        self._reducers = {name: self._begun(method, subject, rows) for name, method in stream.methods.items()}

    @staticmethod
    def _begun(method: Any, subject: Subject, rows: Rows) -> Reducer:
        if method.floating:
            needs_gradient(rows, type(method).__name__)
        try:
            with torch.no_grad():
                reducer: Reducer = method.reduce(subject, rows)
                next(reducer)
        except StopIteration:
            raise RuntimeError(
                f"The reducer of {type(method).__name__} asks for no visit; it must yield once for each point."
            ) from None
        return reducer

    def next_point(self) -> Point | None:
        """The next point of the path."""
        with torch.no_grad():
            return next(self._points, None)

    def send(self, visit: Visit) -> None:
        """Every reducer reads the visit."""
        with torch.no_grad():
            for name, reducer in self._reducers.items():
                try:
                    reducer.send(visit)
                except StopIteration as end:
                    self._finish(name, end.value)

    def _finish(self, name: str, value: Any) -> None:
        if name in self._found or value is None:
            raise RuntimeError(f"The path of {name!r} is longer than its reducer: {self.stream.path}.")
        self._found[name] = value

    def found(self) -> Found:
        """The attributions, once every point has been visited."""
        for name in self._reducers:
            if name not in self._found:
                raise RuntimeError(f"The path of {name!r} is shorter than its reducer: {self.stream.path}.")
        return {name: tuple(part.detach().contiguous() for part in value) for name, value in self._found.items()}
