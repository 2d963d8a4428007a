"""Forecasts what an explanation costs, by explaining one sample and two."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Path
from lightning_explain.core.probe import Samples, bare
from lightning_explain.core.report import PassCount
from lightning_explain.engine.executor import PlanExecution
from lightning_explain.engine.pass_size import synchronize, within_memory
from lightning_explain.engine.plan import Plan, plan
from lightning_explain.explainer.run import Explanation

if TYPE_CHECKING:
    from rich.table import Table


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

    def table(self) -> Table:
        """A table with a line for each part; it counts samples sent through the model, per explained sample."""
        from rich.table import Table
        from rich.text import Text

        columns = ("methods", "path", "points", "forward", "backward", "seconds", "layers")
        table = Table(*columns, title="Passes and seconds for each explained sample")
        for share in self.shares:
            costs = (f"{cost / self.samples:.6g}" for cost in (share.passes.forward, share.passes.backward))
            names, points = ", ".join(share.names) or "the choice of targets", str(share.points or "")
            seconds, layers = f"{share.seconds / self.samples:.2g}", Text(", ".join(share.layers))
            table.add_row(Text(names), share.path, points, *costs, seconds, layers)
        return table

    def __str__(self) -> str:
        return (
            f"{self.samples} samples: {self.passes.forward} forward, {self.passes.backward} backward, at most about "
            f"{sum(share.seconds for share in self.shares):.1f} seconds, judging by the first {min(2, self.samples)}. Memory of "
            f"the largest shared pass ({self.largest} samples): about {self.memory / 2**20:.3g} MiB beside the model."
        )


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
        Share(tuple(s.methods), _class_names(s.path), _count(s.path, explained, samples[:1]), s.layers)
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


def _count(path: Path, explained: ExplainedFunction, sample: Samples) -> int:
    with torch.no_grad():
        return sum(1 for _ in path.points(explained, sample))


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
