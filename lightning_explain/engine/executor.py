"""Executes a plan: evaluates every point once, several points per pass, and sends the results to all consumers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import CENTER, Evaluation, LayerSite, Point, Reducer
from lightning_explain.core.probe import Attribution, Samples, bare
from lightning_explain.core.report import SumCheck
from lightning_explain.engine.evaluate import forward_backward
from lightning_explain.engine.pairs import forward_backward_pairs
from lightning_explain.engine.plan import Plan, SharedPath, batches, shared
from lightning_explain.model.targets import Choice

Found = dict[str, tuple[Tensor, ...]]
Pending: TypeAlias = "tuple[Consumers, Point, bool]"
"""A point that waits for its evaluation, and what receives it; true: only the output is read, and it is known by then."""


def execute(explained: ExplainedFunction, methods: Mapping[str, Any], samples: Samples) -> dict[str, Attribution]:
    """Explains samples by methods that have a path, reads and a reducer, and returns their attributions.

    Args:
        explained: The explained function.
        methods: Methods by name.
        samples: N samples.

    Returns:
        The attribution of each method, ``(N, ...)``; a tuple of these for several inputs.
    """
    planned = shared(methods)
    return joined([PlanExecution(explained, planned, batch).run() for batch in batches(samples, explained.limit)])


def joined(parts: Sequence[Found]) -> dict[str, Attribution]:
    """Concatenates the attributions of all batches, which leave the parts, so that no more than one method's are there twice."""
    names = list(parts[0])
    return {name: bare(tuple(map(torch.cat, zip(*(part.pop(name) for part in parts), strict=True)))) for name in names}


class PlanExecution:
    """Executes a plan for one batch of samples.

    Args:
        explained: The explained function.
        planned: The plan.
        samples: At most ``explained.limit`` samples.
    """

    def __init__(self, explained: ExplainedFunction, planned: Plan, samples: Samples) -> None:
        self._explained, self.samples = explained, samples
        self._plan = planned
        self._capacity = max(1, explained.limit // len(samples))
        # Paths that read only outputs reuse known ones. Without such a path, only the output at the center is kept.
        self._reused = any(not shared_path.reads for shared_path in planned.shared_paths)
        self.outputs: dict[Hashable, Tensor] = {}

    def run(self, choice: Choice | None = None) -> Found:
        """Returns the attributions of all methods of the plan, each ``(N, ...)``.

        Args:
            choice: Chooses the targets from the outputs at the samples themselves; ``None`` if samples have targets.
        """
        needed = choice is not None or self._plan.center.methods
        found = self.at_samples(choice) if needed else {}
        for group in self._plan.groups():
            found |= self.together(group)
        return found

    def together(self, shared_paths: Sequence[SharedPath]) -> Found:
        """Returns the attributions of all methods on these paths, whose points share passes."""
        found: Found = {}
        consumers = [Consumers(shared_path, self._explained, self.samples) for shared_path in shared_paths]
        for chunk in self._chunks(consumers):
            self._evaluate(chunk)
        for consumer in consumers:
            found |= consumer.found()
            if self._explained.sum_checks is not None:
                for name, check in consumer.checks().items():
                    self._explained.sum_checks.setdefault(name, []).append(check)
        return found

    def at_samples(self, choice: Choice | None = None) -> Found:
        """Evaluates the samples themselves, first: their outputs decide the targets, and many methods need them."""
        samples = self.samples if choice is None else replace(self.samples, extra=(*self.samples.extra[:-1], choice))
        consumers = Consumers(self._plan.center, self._explained, samples)
        (evaluation,) = forward_backward(self._explained, list(consumers.points), self._plan.center.reads)
        self.outputs[CENTER] = evaluation.output
        if choice is not None:
            self.samples = replace(self.samples, extra=(*self.samples.extra[:-1], choice.indices))
        consumers.send(evaluation)
        return consumers.found()

    def _chunks(self, consumers: list[Consumers]) -> Iterator[list[Pending]]:
        """Yields the points of all shared paths, as many as fit into a pass; points with known outputs need none."""
        chunk: list[Pending] = []
        coming: set[Hashable] = set()
        for consumer in consumers:
            for point in consumer.points:
                named = point.key is not None
                known = named and not consumer.shared_path.reads and (point.key in self.outputs or point.key in coming)
                chunk.append((consumer, point, known))
                coming.add(point.key)
                # Points that need no pass still take memory.
                if sum(not known for _, _, known in chunk) == self._capacity or len(chunk) == 2 * self._capacity:
                    yield chunk
                    chunk.clear()
                    coming.clear()
        if chunk:
            yield chunk

    def _evaluate(self, chunk: list[Pending]) -> None:
        points = [point for _, point, known in chunk if not known]
        reads = frozenset().union(*(consumer.shared_path.reads for consumer, _, known in chunk if not known))
        evaluate = forward_backward_pairs if points and points[0].against else forward_backward
        evaluations = iter(evaluate(self._explained, points, reads) if points else ())
        for consumer, point, known in chunk:
            evaluation = Evaluation(point, self.outputs[point.key], {}) if known else next(evaluations)
            if self._reused and point.key is not None and not point.against:
                self.outputs[point.key] = evaluation.output
            consumer.send(evaluation)


class Consumers:
    """A shared path with the reducers of all methods that consume its evaluations.

    Args:
        shared_path: The path and its methods.
        explained: The explained function.
        samples: N samples.
    """

    def __init__(self, shared_path: SharedPath, explained: ExplainedFunction, samples: Samples) -> None:
        self.shared_path = shared_path
        self.points = self._all_points(explained, samples)
        self._found: Found = {}
        self._checks: dict[LayerSite | None, list[SumCheck]] = {}
        self._reducers = {name: self._begun(method, explained, samples) for name, method in shared_path.methods.items()}

    @staticmethod
    def _begun(method: Any, explained: ExplainedFunction, samples: Samples) -> Reducer:
        try:
            with torch.no_grad():
                reducer: Reducer = method.reduce(explained, samples)
                next(reducer)
        except StopIteration:
            name = type(method).__name__
            raise RuntimeError(f"The reducer of {name} never yields; make it yield once for each point.") from None
        return reducer

    @torch.no_grad()
    def _all_points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        yield from self.shared_path.path.points(explained, samples)

    def send(self, evaluation: Evaluation) -> None:
        """Sends an evaluation to every reducer."""
        for site, check in evaluation.checks.items():
            self._checks.setdefault(site, []).append(check)
        with torch.no_grad():
            for name, reducer in self._reducers.items():
                try:
                    reducer.send(evaluation)
                except StopIteration as end:
                    if name in self._found or end.value is None:
                        raise self._misfit(name, "longer") from None
                    self._found[name] = end.value

    def _misfit(self, name: str, kind: str) -> RuntimeError:
        path = self.shared_path.path
        return RuntimeError(f"The path of {name!r} is {kind} than its reducer: {path}. Yield once for each point.")

    def checks(self) -> dict[str, SumCheck]:
        """Each DeepLIFT method to the check of its sum, averaged over the points of the path."""
        means = {
            site: SumCheck(*(torch.stack(t).mean(0) for t in zip(*c, strict=True))) for site, c in self._checks.items()
        }
        methods = self.shared_path.methods.items()
        return {name: means[site] for name, m in methods for rule, site in m.reads if rule and site in means}

    def found(self) -> Found:
        """Returns the attributions, once every point has been evaluated."""
        for name in self._reducers:
            if name not in self._found:
                raise self._misfit(name, "shorter")
        return {name: tuple(part.detach().contiguous() for part in value) for name, value in self._found.items()}
