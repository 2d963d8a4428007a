"""Completeness: maps and baselines in, the error of each map's sum against f(x) - f(baseline) out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Metric, MetricInputs, Reference, Score
from lightning_explain.core.points import value_of
from lightning_explain.core.probe import Attribution, Samples, as_tuple, flat
from lightning_explain.engine.noise import wide
from lightning_explain.metrics._ranking import scores


def convergence_delta(attribution: Attribution, gaps: Tensor) -> Tensor:
    """``sum(map) - (f(x) - f(baseline))``, Captum's convergence delta.

    Args:
        attribution: Each ``(N, ...)``, in the method's own shape.
        gaps: f(x) - f(baseline), ``(N,)``.

    Returns:
        ``(N,)``, in units of output.
    """
    totals = [flat(wide(part)).sum(1) for part in as_tuple(attribution)]
    return torch.stack(totals).sum(0) - wide(gaps)


@dataclass(frozen=True)
class Completeness(Metric):
    r"""Error of the map's sum against f(x) - f(baseline) (Sundararajan et al. 2017; Captum's ``convergence_delta``).

    ``|sum(map) - (f(x) - f(baseline))| / |f(x) - f(baseline)|``; the numerator alone is ``_delta``. Scores only methods
    that promise the sum: integrated gradients and DeepLIFT with ``multiply_by_inputs``, their layer forms (the sum of
    the layer's own map, exact where everything passes through that layer), Shapley values, and GradientShap, which
    promises it in expectation only. A large error reveals too few ``n_steps``, or a DeepLIFT that met an operation
    without a rule.

    Formula: \frac{\left|\sum_i \phi_i - (f(x) - f(b))\right|}{|f(x) - f(b)|}
    Cost: B forward, 0 backward; B different baselines of the methods (K in a set); equal ones go through once.
    Not for: deciding which map is right: a map can add up and still highlight the wrong place; samples with f(x) near
        f(baseline).

    Example:
        >>> report = explain(model, probe, methods=[m.IntegratedGradients(n_steps=16)], metrics=[q.Completeness()])
        >>> report.scores["completeness"]["integrated_gradients"].shape
        torch.Size([2])
    """

    higher_is_better: ClassVar[bool | None] = False
    suffixes = ("", "delta")
    comparable = True
    incomparable = ("delta",)
    undefined: ClassVar[Mapping[str, str]] = {"": "f(x) equals f(baseline)"}
    needs: ClassVar[str] = "a method whose map promises a sum, such as IntegratedGradients"

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Relative error without unit; ``_delta`` in units of output. Lower is better.

        Where f(x) = f(baseline) the relative error is undefined, which is NaN.
        """
        known: dict[Hashable, Tensor] = {}
        deltas, relative = {}, {}
        for name, reference in metric_inputs.references.items():
            gaps = metric_inputs.outputs - _at_reference(metric_inputs, reference, known)
            deltas[name] = convergence_delta(metric_inputs.attributions[name], gaps).abs()
            relative[name] = torch.where(gaps == 0, torch.nan, deltas[name] / wide(gaps).abs())
        return {"": scores(relative, metric_inputs.outputs), "delta": scores(deltas, metric_inputs.outputs)}

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: Mapping[str, Reference]) -> Sequence[str]:
        """Methods that promise a sum."""
        return list(references)


def _at_reference(metric_inputs: MetricInputs, reference: Reference, known: dict[Hashable, Tensor]) -> Tensor:
    """F at the baseline of each sample, ``(N,)``; the mean over a set of baselines."""
    explained, samples = metric_inputs.explained, metric_inputs.samples
    if not reference.distribution:
        ends = [explained.baseline(reference.baselines, samples)]
    else:
        baselines = zip(*explained.distribution(reference.baselines, samples), strict=True)
        ends = [tuple(b.expand_as(x) for b, x in zip(one, samples.inputs, strict=True)) for one in baselines]
    return torch.stack([evaluate_once(explained, samples.at(end), known) for end in ends]).mean(0)


def evaluate_once(explained: ExplainedFunction, samples: Samples, known: dict[Hashable, Tensor]) -> Tensor:
    """F at the samples, ``(N,)``; equal samples and samples already known run through the model once.

    Args:
        explained: The explained function.
        samples: Where to evaluate it.
        known: Known outputs, by a digest of a sample's inputs and further arguments; new ones are added.
    """
    columns = [x.detach().cpu() for x in (*samples.inputs, *samples.extra) if isinstance(x, Tensor)]
    keys = [value_of(values) for values in zip(*columns, strict=True)]
    new = {key: i for i, key in enumerate(keys) if key not in known}
    if new:
        found = explained.evaluate(samples[torch.tensor(list(new.values()))])
        known.update(zip(new, found, strict=True))
    return torch.stack([known[key] for key in keys])
