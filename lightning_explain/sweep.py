"""Runs a plan: every point once, several points a pass, every visit to everyone who reads it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from lightning_explain.forward import Choice
from lightning_explain.look import look
from lightning_explain.methods._captum import needs_gradient
from lightning_explain.pairs import look_at_pairs
from lightning_explain.plan import Plan, Stream, shared
from lightning_explain.types import Attribution, Rows, Subject, bare
from lightning_explain.visits import Point, Reducer, Visit, Want

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


def blocks(rows: Rows, limit: int) -> list[Rows]:
    """The rows in as few blocks of at most ``limit`` as can be, of about equal size."""
    count = ceil(len(rows) / limit)
    return list(rows.split(ceil(len(rows) / count)))


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
        (visit,) = look(self._subject, [point or Point(rows)], center.wants if center is not None else frozenset())
        self.outputs[()] = visit.output
        if choice is not None:
            self.rows = replace(self.rows, extra=(*self.rows.extra[:-1], choice.indices))
        if readers is None:
            return {}
        readers.send(visit)
        return readers.found()

    def _chunks(self, readers: list[Readers]) -> Iterator[list[tuple[Readers, Point]]]:
        """Points of all streams in order, as many as a pass may take; those whose output is known cost nothing."""
        chunk: list[tuple[Readers, Point]] = []
        costly = 0
        for reader in readers:
            while (point := reader.next_point()) is not None:
                chunk.append((reader, point))
                costly += not self._is_known(reader, point)
                if costly == self._capacity:
                    yield chunk
                    chunk, costly = [], 0
        if chunk:
            yield chunk

    def _is_known(self, reader: Readers, point: Point) -> bool:
        return not reader.stream.wants and point.key in self.outputs

    def _visit(self, chunk: list[tuple[Readers, Point]]) -> None:
        costly = [(reader, point) for reader, point in chunk if not self._is_known(reader, point)]
        wants = frozenset().union(*(reader.stream.wants for reader, _ in costly))
        visits = iter(self._look([point for _, point in costly], wants, [reader for reader, _ in costly]))
        for reader, point in chunk:
            known = self._is_known(reader, point)
            visit = Visit(point, self.outputs[point.key], {}) if known else next(visits)
            if not point.against:
                self.outputs[point.key] = visit.output
            reader.send(visit)

    def _look(self, points: list[Point], wants: frozenset[Want], readers: list[Readers]) -> list[Visit]:
        if not points:
            return []
        if not points[0].against:
            return look(self._subject, points, wants)
        with self._subject.mended([name for reader in readers for name in reader.stream.methods]):
            return look_at_pairs(self._subject, points, wants)


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
        reducer: Reducer = method.reduce(subject, rows)
        next(reducer)
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
