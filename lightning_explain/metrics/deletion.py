"""Deletion and insertion: how fast does the output fall, or rise, along the ranking of the map?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import CostInputs, MetricInputs, Score
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_count, check_flag
from lightning_explain.engine.baselines import check_baseline
from lightning_explain.metrics._common import draws_of
from lightning_explain.metrics._ranking import relevance, scores, spread, unit_count


def places(units: Tensor) -> Tensor:
    """The place of each unit in the ranking, 0 for the most relevant; ties in the order of the units.

    Args:
        units: ``(N, U)``.
    """
    order = units.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1)


def counts(units: int, n_steps: int) -> Tensor:
    """How many units are changed after each step, ``(S + 1,)`` from 0 to all of them; at most ``n_steps`` steps."""
    steps: Tensor = torch.linspace(0, units, n_steps + 1, dtype=torch.float64).round().long().unique()
    return steps


def area(curve: Tensor, at: Tensor) -> Tensor:
    """Area under each curve ``(N, S + 1)`` over the share of changed units, by the trapezoidal rule, ``(N,)``."""
    return torch.trapezoid(curve, (at / at[-1]).to(curve), dim=1)


class _Curve:
    """What both have in common; ``removes`` says whether the units are taken away or added."""

    n_steps: int
    baselines: Baseline
    normalize: bool
    removes: ClassVar[bool]

    def _check(self) -> None:
        owner = type(self).__name__
        check_count(owner, "n_steps", self.n_steps)
        check_baseline(self.baselines)
        check_flag(owner, "normalize", self.normalize)

    def passes(self, cost_inputs: CostInputs) -> PassCount:
        """The baseline, and for each map every step but the two ends."""
        inner = len(counts(unit_count(cost_inputs.samples.inputs), self.n_steps)) - 2
        return PassCount(len(cost_inputs.samples) * (1 + len(cost_inputs.maps) * inner))

    def _areas(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        end = metric_inputs.explained.evaluate(
            metric_inputs.samples.at(metric_inputs.explained.baseline(self.baselines, metric_inputs.samples))
        )
        found = {}
        for name, maps in metric_inputs.maps.items():
            units = relevance(maps, metric_inputs.samples.inputs)
            at = counts(units.shape[1], self.n_steps)
            curve = self._curve(metric_inputs, places(units), at, end)
            # A map that is not a number ranks nothing.
            found[name] = torch.where(units.isnan().any(1), torch.nan, area(curve, at))
        return {"": scores(found, metric_inputs.outputs)}

    def _curve(self, metric_inputs: MetricInputs, ranks: Tensor, at: Tensor, end: Tensor) -> Tensor:
        """f along the ranking, ``(N, S + 1)``. Both ends are known beforehand."""
        inner = at[1:-1]
        curve = metric_inputs.outputs.new_empty(len(ranks), len(at))
        curve[:, 0], curve[:, -1] = (metric_inputs.outputs, end) if self.removes else (end, metric_inputs.outputs)
        for where, part, steps in draws_of(metric_inputs.samples, len(inner), metric_inputs.explained.limit):
            samples = torch.arange(where.start, where.stop).repeat_interleave(len(part) // (where.stop - where.start))
            changed = ranks[samples] < inner[steps].to(ranks.device)[:, None]
            curve[samples, steps + 1] = metric_inputs.explained.evaluate(self._mixed(metric_inputs, part, changed))
        return (curve - end[:, None]) / (metric_inputs.outputs - end).abs()[:, None] if self.normalize else curve

    def _mixed(self, metric_inputs: MetricInputs, samples: Samples, changed: Tensor) -> Samples:
        kept = ~changed if self.removes else changed
        baselines = metric_inputs.explained.baseline(self.baselines, samples)
        parts = zip(spread(kept, samples.inputs), samples.inputs, baselines, strict=True)
        return samples.at(tuple(torch.where(k, x, b) for k, x, b in parts))


@dataclass(frozen=True)
class Deletion(_Curve):
    """Area under the output as pixels are replaced by the baseline, the most relevant first (Petsiuk et al. 2018, RISE).

    With z(s) the sample after the share s of its pixels is replaced: the integral over s of ``f(z(s))``, with ``normalize`` of
    ``(f(z(s)) - f(baseline)) / |f(x) - f(baseline)|``. A map whose first pixels carry the output makes it fall at once.
    RISE's own number is that of a probability: ``normalize=False`` and a ``target`` that returns one.

    Cost: 1 + M * (n_steps - 1) forward, 0 backward; M methods.
    Not for: maps without a sign, where what speaks against the output ranks high; baselines that look like no data:
        it then measures how the network takes strange inputs; samples with f(x) near f(baseline).

    Args:
        n_steps: Steps from the sample to its baseline; at most as many as there are pixels.
        baselines: What pixels are replaced by: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        normalize: In units of f(x) - f(baseline). Without it the score moves with the scale of the output.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` is of a kind that is not allowed.
    """

    n_steps: int = 20
    baselines: Baseline = None
    normalize: bool = True

    higher_is_better: ClassVar[bool | None] = False
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    removes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check()

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Without unit, or in units of output without ``normalize``; not finite where f(x) = f(baseline). Lower is better."""
        return self._areas(metric_inputs)


@dataclass(frozen=True)
class Insertion(_Curve):
    """Area under the output as pixels of the sample replace those of the baseline, the most relevant first (Petsiuk et al. 2018, RISE).

    The formula, arguments, units and errors of :class:`Deletion`, with z(s) the baseline after the share s of the sample's
    pixels is put in. ``baselines="blur"`` is RISE's own choice.

    Cost: 1 + M * (n_steps - 1) forward, 0 backward; M methods.
    Not for: maps without a sign, where what speaks against the output ranks high; baselines that look like no data:
        it then measures how the network takes strange inputs; samples with f(x) near f(baseline).

    Args:
        n_steps: Steps from the baseline to the sample; at most as many as there are pixels.
        baselines: What the pixels replace: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        normalize: In units of f(x) - f(baseline). Without it the score moves with the scale of the output.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` is of a kind that is not allowed.
    """

    n_steps: int = 20
    baselines: Baseline = None
    normalize: bool = True

    higher_is_better: ClassVar[bool | None] = True
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    removes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check()

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Without unit, or in units of output without ``normalize``; not finite where f(x) = f(baseline). Higher is better."""
        return self._areas(metric_inputs)
