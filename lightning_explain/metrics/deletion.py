"""Deletion and insertion: a map in, the area under the output as pixels are replaced in the order of the map out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Score
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.core.report import PassCount
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.metrics._common import table
from lightning_explain.metrics._ranking import relevance, scores, spread, units_present


def places(units: Tensor) -> Tensor:
    """Rank of each unit, 0 for the most relevant; ties keep the order of the units.

    Args:
        units: ``(N, U)``.
    """
    order = units.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1)


def counts(units: int, n_steps: int) -> Tensor:
    """Number of units changed after each step, ``(S + 1,)`` from 0 to all units, in at most ``n_steps`` steps."""
    steps: Tensor = torch.linspace(0, units, n_steps + 1, dtype=torch.float64).round().long().unique()
    return steps


def area(curve: Tensor, at: Tensor) -> Tensor:
    """Area under each curve ``(N, S + 1)`` over the share of changed units, by the trapezoidal rule, ``(N,)``."""
    return torch.trapezoid(curve, (at.double() / at[..., -1:]).to(curve), dim=1)


def counts_of_each(present: Tensor, n_steps: int) -> Tensor:
    """The same for samples that have different numbers of units, ``(N, S + 1)``; those with fewer steps repeat the last one.

    Args:
        present: Which units each sample has, ``(N, U)``.
        n_steps: The most steps.
    """
    each = [counts(int(units), n_steps) for units in present.sum(1)]
    most = max(map(len, each))
    return torch.stack([torch.cat([at, at[-1:].expand(most - len(at))]) for at in each])


@dataclass(frozen=True)
class _Curve(CheckedArguments, Metric):
    """Base class of Deletion and Insertion; ``removes`` says whether the units are deleted or inserted."""

    n_steps: int = 20
    baselines: Baseline = None
    normalize: bool = True

    removes: ClassVar[bool]
    undefined: ClassVar[Mapping[str, str]] = {"": "f(x) equals f(baseline)"}

    @property
    def comparable(self) -> bool:
        """With ``normalize``; otherwise in units of output."""
        return self.normalize

    def evaluations_for(self, methods: Mapping[str, Method], again: PassCount) -> PassCount:
        """Every step but the last of each method, and the sample or baseline once."""
        return PassCount(1 + len(methods) * (self.n_steps - 1))

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Without unit; in units of output without ``normalize``. NaN where f(x) = f(baseline)."""
        explained, samples, outputs = metric_inputs.explained, metric_inputs.samples, metric_inputs.outputs
        present, found = units_present(samples.inputs, explained.modalities), {}
        end = explained.evaluate(self._removed(explained, samples, present))
        at = counts_of_each(present, self.n_steps).to(present.device)
        for name, units in relevance(metric_inputs.maps, metric_inputs).items():
            ranks = places(units.masked_fill(~present, -torch.inf))
            curve = self._curve(metric_inputs, torch.where(present, ranks, -1), at, end)
            if self.normalize:
                curve = (curve - end[:, None]) / (outputs - end).abs()[:, None]
            under = area(curve, at)
            if self.normalize:
                # Undefined where there is nothing to divide by; what else is no number has failed.
                under = torch.where(
                    (outputs == end) | ~present.any(1), torch.nan, torch.where(under.isnan(), torch.inf, under)
                )
            # A map with NaN has no ranking.
            found[name] = torch.where((units.isnan() & present).any(1), torch.nan, under)
        return {"": scores(found, outputs)}

    def _curve(self, metric_inputs: MetricInputs, ranks: Tensor, at: Tensor, end: Tensor) -> Tensor:
        """F along the ranking, which is -1 for what is no unit, ``(N, S + 1)``; both ends are already known."""
        explained, inner = metric_inputs.explained, at[:, 1:-1]

        def evaluate(samples: Samples, places: Tensor, steps: Tensor) -> dict[str, Tensor]:
            own = ranks[places]
            changed = own < inner[places, steps][:, None]
            return {"": explained.evaluate(self._removed(explained, samples, (changed == self.removes) & (own >= 0)))}

        between = table(metric_inputs, inner.shape[1], [""], evaluate)[""]
        first, last = (metric_inputs.outputs, end) if self.removes else (end, metric_inputs.outputs)
        return torch.cat([first[:, None], between, last[:, None]], 1)

    def _removed(self, explained: ExplainedFunction, samples: Samples, units: Tensor) -> Samples:
        """The samples with the baseline in place of some units ``(N, U)``."""
        gone = spread(units, samples.inputs, explained.modalities)
        columns = zip(gone, samples.inputs, explained.baseline(self.baselines, samples), strict=True)
        return samples.at(tuple(torch.where(g, b, x) for g, x, b in columns))


@dataclass(frozen=True)
class Deletion(_Curve):
    r"""Area under the output as pixels are replaced by the baseline, most relevant first (Petsiuk et al. 2018, RISE).

    With z(s) the sample after a share s of its pixels is replaced, the score is the integral over s of ``f(z(s))``, or
    with ``normalize`` of ``(f(z(s)) - f(baseline)) / |f(x) - f(baseline)|``. The output drops at once if the top pixels
    carry it. RISE scores a probability: use ``normalize=False`` and a ``target`` that returns one.

    Formula: \int_0^1 \frac{f(z(s)) - f(b)}{|f(x) - f(b)|}\,ds,\quad z(s): \text{the top share}\ s\ \text{of the units
        at}\ b
    Cost: 1 + M * (n_steps - 1) forward, 0 backward; M methods.
    Not for: maps without a sign, which rank evidence against the output high; baselines unlike the data: the score then
        measures the network's response to unusual inputs; samples with f(x) near f(baseline).

    Args:
        n_steps: Steps from the sample to its baseline; at most the number of pixels.
        baselines: Value that replaces the pixels: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        normalize: Divide by the size of f(x) - f(baseline). Otherwise the score changes with the scale of the output, and is
            not comparable between epochs.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``normalize`` or ``baselines`` is of another type.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Deletion(n_steps=8)])
        >>> report.scores["deletion"]["saliency"].shape
        torch.Size([2])
    """

    higher_is_better: ClassVar[bool | None] = False
    removes: ClassVar[bool] = True


@dataclass(frozen=True)
class Insertion(_Curve):
    r"""Area under the output as pixels replace those of the baseline, most relevant first (Petsiuk et al. 2018, RISE).

    Same formula, arguments, units and errors as :class:`Deletion`, with z(s) the baseline after a share s of the
    sample's pixels is inserted. ``baselines="blur"`` is RISE's own choice.

    Formula: \int_0^1 \frac{f(z(s)) - f(b)}{|f(x) - f(b)|}\,ds,\quad z(s): \text{the top share}\ s\ \text{of the units
        at}\ x,\ \text{all others at}\ b
    Cost: 1 + M * (n_steps - 1) forward, 0 backward; M methods.
    Not for: maps without a sign, which rank evidence against the output high; baselines unlike the data: the score then
        measures the network's response to unusual inputs; samples with f(x) near f(baseline).

    Args:
        n_steps: Steps from the baseline to the sample; at most the number of pixels.
        baselines: Value that the pixels replace: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        normalize: Divide by the size of f(x) - f(baseline). Otherwise the score changes with the scale of the output, and is
            not comparable between epochs.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``normalize`` or ``baselines`` is of another type.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Insertion(n_steps=8)])
        >>> report.scores["insertion"]["saliency"].shape
        torch.Size([2])
    """

    higher_is_better: ClassVar[bool | None] = True
    removes: ClassVar[bool] = False
