"""Forecasts what an explanation costs, by explaining one sample and two."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric
from lightning_explain.core.points import CENTER, DEEPLIFT, Path
from lightning_explain.core.probe import Samples, bare
from lightning_explain.core.report import PassCount
from lightning_explain.engine.executor import PlanExecution
from lightning_explain.engine.pass_size import synchronize, within_memory
from lightning_explain.engine.plan import Plan, plan
from lightning_explain.explainer.run import Explanation


@dataclass(frozen=True)
class Share:
    """What one part of an explanation costs: methods that share a path, a method that runs by itself, or a metric.

    Args:
        names: Names of the methods or of the metric; empty if the points only serve to choose the targets.
        path: The class names of the path, from the outermost to the innermost; ``"runs by itself"``, or ``"score"``.
        points: Number of points on the path; ``None`` if there is none.
        layers: Layers that are read at each point.
        passes: Samples sent through the model, for all explained samples.
        seconds: How long that takes at most.
    """

    names: tuple[str, ...]
    path: str
    points: int | None = None
    layers: tuple[str, ...] = ()
    passes: PassCount = field(default_factory=PassCount)
    seconds: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """What an explanation will cost.

    Args:
        samples: Number of explained samples.
        shares: The cost of each part, in the order of execution.
        largest: Samples in the largest shared pass.
        memory: Bytes of that pass, beside the model: what autograd keeps, and two copies of the points.
        hints: Which points could be shared, but are not.
    """

    samples: int
    shares: tuple[Share, ...]
    largest: int
    memory: int
    hints: tuple[str, ...]

    @property
    def passes(self) -> PassCount:
        """Samples sent through the model."""
        return sum((share.passes for share in self.shares), PassCount())

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Names of columns and a line for each part, with samples sent through the model, and seconds, per explained sample."""
        columns = ["methods", "path", "points", "forward", "backward", "seconds", "layers"]
        lines: list[list[Any]] = []
        for share in self.shares:
            names = ", ".join(share.names) or "the choice of targets"
            costs = [cost / self.samples for cost in (share.passes.forward, share.passes.backward, share.seconds)]
            lines.append([names, share.path, share.points, *costs, ", ".join(share.layers)])
        return columns, lines

    def __str__(self) -> str:
        return (
            f"{self.samples} samples: {self.passes.forward} forward, {self.passes.backward} backward, at most about "
            f"{sum(share.seconds for share in self.shares):.1f} seconds, judging by the first {min(2, self.samples)}. Memory of "
            f"the largest shared pass ({self.largest} samples): about {self.memory / 2**20:.3g} MiB beside the model."
        )


@dataclass(frozen=True)
class Estimate:
    """What an explanation will cost, from what its parts declare.

    Args:
        passes: Evaluations of the model for each explained sample.
        besides: Methods and metrics whose evaluations are not known beforehand, and are not counted.
        seconds: Measured time of one forward and backward evaluation.
    """

    passes: PassCount
    besides: tuple[str, ...] = ()
    seconds: float = 0.0

    def time(self, samples: int) -> float:
        """Seconds for so many samples. A forward pass alone is taken to cost a third of one with its backward pass."""
        alone = max(0, self.passes.forward - self.passes.backward)
        return self.seconds * samples * (self.passes.backward + alone / 3)


def estimate(
    explained: ExplainedFunction,
    sample: Samples,
    methods: Mapping[str, Method],
    metrics: Mapping[str, Metric],
    scored: Mapping[str, Sequence[str]],
) -> Estimate:
    """Counts the evaluations for each sample without running the model.

    Args:
        explained: The explained function.
        sample: One sample, whose points are counted.
        methods: Methods by name, with their layers.
        metrics: Metrics by name.
        scored: For each metric, the methods that it scores.
    """
    total, unknown = _of_methods(explained, sample, methods, CENTER)
    if not plan(methods).center.methods:
        total += PassCount(1)  # The choice of the targets.
    for name, metric in metrics.items():
        scores = {n: methods[n] for n in scored.get(name, ())}
        again, besides = _of_methods(explained, sample, scores)
        found = metric.evaluations_for(scores, again)
        if found is None or (besides and found != metric.evaluations_for(scores, PassCount())):
            unknown.append(name)
        total += found or PassCount()
    return Estimate(total, tuple(dict.fromkeys(unknown)))


def _of_methods(
    explained: ExplainedFunction, sample: Samples, methods: Mapping[str, Method], *begun: Hashable
) -> tuple[PassCount, list[str]]:
    """The evaluations for each sample of methods that share passes, and the names of those that are not counted.

    ``begun`` are keys of points that are evaluated in any case.
    """
    planned, total, known = plan(methods), PassCount(), set(begun)
    unknown: list[str] = []
    for shared in planned.paths:
        keys = _keys(shared.path, explained, sample) if shared.methods else []
        # Of points where nothing is read but the output, each is evaluated once.
        new = [key for key in keys if shared.reads or key is None or key not in known]
        known.update(keys)
        # DeepLIFT sends samples and baselines.
        times = len(new) * (2 if any(rule.startswith(DEEPLIFT) for rule in shared.rules) else 1)
        total += PassCount(times, times * len(shared.rules))
    for name in planned.apart:
        found = methods[name].evaluations
        total, unknown = total + (found or PassCount()), unknown + [name] * (found is None)
    return total, unknown


def forecast(explanation: Explanation) -> Forecast:
    """Forecasts the cost of an explanation by explaining the first two samples, and the first alone.

    Each further sample is taken to cost as much as the second, so what is paid once, whatever their number, counts once.

    Args:
        explanation: The explanation, on this process alone.
    """
    planned, metrics = plan(explanation.decided.methods), explanation.decided.metrics
    outputs, _ = explanation.with_targets(plan({}))
    explained, samples = explanation.explained, explanation.samples
    two, one = (
        within_memory(partial(_measured, explanation, planned, outputs, count), explained.limit)[0] for count in (2, 1)
    )
    totals = one + (two - one) * (len(samples) - 1)
    parts = [
        Share(tuple(s.methods), _class_names(s.path), len(_keys(s.path, explained, samples[:1])), s.layers)
        for s in planned.paths
    ]
    parts += [Share((name,), "runs by itself") for name in planned.apart] + [
        Share((name,), "score") for name in metrics
    ]
    shares = tuple(
        replace(part, passes=PassCount(int(forward), int(backward)), seconds=seconds * len(samples))
        for part, (forward, backward, _), seconds in zip(parts, totals, one[:, 2], strict=True)
    )
    together = [share.passes for share in shares[: len(planned.paths)]]
    differentiated = sum(passes.forward for passes in together if passes.backward)
    largest = min(explained.limit, differentiated or sum(passes.forward for passes in together))
    # What a second sample adds, because weights are kept anyway.
    kept = [_kept(explained, samples[:1].repeat(times)) for times in (1, 2)] if differentiated else [0, 0]
    inputs = sum(x[0].numel() * x.element_size() for x in samples.inputs)
    return Forecast(
        len(samples), shares, largest, largest * (max(0, kept[1] - kept[0]) + 2 * inputs), tuple(planned.hints())
    )


def _measured(explanation: Explanation, planned: Plan, outputs: Tensor, count: int, limit: int) -> NDArray[np.float64]:
    """Explains the first samples; for each part, forward and backward samples, and seconds: ``(parts, 3)``."""
    explanation.restrict(count)
    explanation.explained = explained = replace(explanation.explained, limit=limit, memory={})
    execution, readings = PlanExecution(explained, planned, explanation.samples), []
    function: Any = explained.forward

    def read(name: str = "") -> None:
        synchronize(outputs.device)
        readings.append((function.passes.forward, function.passes.backward, time.perf_counter()))

    explanation.progress = read
    read()
    found = execution.at_samples()
    for shared_path in planned.shared_paths:
        read()
        found |= execution.together([shared_path])
    explanation.completed(outputs[:count], {name: bare(parts) for name, parts in found.items()})
    read()
    return np.diff(readings, axis=0)


def _keys(path: Path, explained: ExplainedFunction, sample: Samples) -> list[Hashable]:
    """The key of each point."""
    with torch.no_grad():
        return [point.key for point in path.points(explained, sample)]


def _class_names(path: Path) -> str:
    around = getattr(path, "around", None)
    return type(path).__name__ + (f" of {_class_names(around)}" if around is not None else "")


def _kept(explained: ExplainedFunction, samples: Samples) -> int:
    """Returns the bytes that autograd keeps of a forward pass."""
    # The storages themselves, so that none is freed and its address reused.
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor.detach()

    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in samples.inputs)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        explained.forward(*inputs, *samples.extra)
    return sum(storage.nbytes() for storage in storages.values())
