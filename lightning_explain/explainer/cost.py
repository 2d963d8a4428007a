"""Forecasts what an explanation costs: samples sent through the model, and memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import CostInputs, ExplainedFunction
from lightning_explain.core.probe import Samples
from lightning_explain.core.report import PassCount
from lightning_explain.engine.layer_maps import has_map
from lightning_explain.engine.plan import Description, plan
from lightning_explain.explainer.run import Explanation


@dataclass(frozen=True)
class Forecast:
    """What an explanation will cost.

    Args:
        methods: The shared paths of the methods, with their cost.
        metrics: The cost of each metric; ``None`` if unknown, because it depends on methods that run through Captum.
        largest: Samples in the largest shared pass.
        saved: Bytes that autograd keeps for one sample between forward and backward.
        inputs: Bytes of the inputs of one sample.
    """

    methods: Description
    metrics: Mapping[str, PassCount | None]
    largest: int
    saved: int
    inputs: int

    @property
    def passes(self) -> PassCount:
        """Samples sent through the model, without what is unknown."""
        return sum((found for found in self.metrics.values() if found is not None), self.methods.passes)

    @property
    def memory(self) -> int:
        """Bytes of the largest shared pass, beside the model: what autograd keeps, and two copies of the points."""
        return self.largest * (self.saved + 2 * self.inputs)


def forecast(explanation: Explanation) -> Forecast:
    """Forecasts the cost of an explanation; the model runs once for the targets, and on a few samples more."""
    methods = explanation.decided.methods
    explanation.with_targets(plan({}))
    explained, samples = explanation.explained, explanation.samples
    described = plan(methods).describe(explained, samples)
    differentiated = sum(share.passes.forward for share in described.shares if share.passes.backward)
    return Forecast(
        methods=described,
        metrics=dict(_all_scored(explanation)),
        largest=min(explained.limit, differentiated or described.passes.forward),
        saved=_saved(explained, samples) if differentiated else 0,
        inputs=sum(x[0].numel() * x.element_size() for x in samples.inputs),
    )


def _all_scored(explanation: Explanation) -> Iterator[tuple[str, PassCount | None]]:
    already_known: set[Hashable] = set()
    for name, metric in explanation.decided.metrics.items():
        costs_pass = metric.shared_evaluations
        yield name, _scored(explanation, name, costs_pass is not None and costs_pass in already_known)
        already_known.add(costs_pass)


def _scored(explanation: Explanation, name: str, already_known: bool) -> PassCount | None:
    """Returns the cost of a metric over all explained functions.

    Passes for the model's output are free if another metric has already paid for them (``already_known``).
    """
    metric, methods = explanation.decided.metrics[name], explanation.decided.methods
    wanted = metric.methods
    total = PassCount()
    for explained, names in explanation.functions(name for name in methods if wanted is None or name in wanted):
        found: PassCount | None = metric.passes(_cost_inputs(explanation, explained, names))
        if found is None:
            return None
        if already_known and explained is explanation.explained:
            continue
        # The value of a neuron at the samples is evaluated each time.
        total += found + PassCount(0 if explained is explanation.explained else len(explanation.samples))
    return total


def _cost_inputs(explanation: Explanation, explained: ExplainedFunction, names: Iterable[str]) -> CostInputs:
    methods = {name: explanation.decided.methods[name] for name in names}
    sample = explanation.explained.probe[:1]
    maps = tuple(name for name, method in methods.items() if has_map(method, explanation.explained, sample))
    references = {name: method.completeness for name, method in methods.items()}
    return CostInputs(
        explained=explained,
        samples=explanation.samples,
        maps=maps,
        explain=_again(explanation, maps),
        attribute=_again(explanation, methods),
        references={name: reference for name, reference in references.items() if reference is not None},
    )


def _again(explanation: Explanation, names: Iterable[str]) -> PassCount | None:
    """Returns the cost of computing these attributions again; ``None`` if some run through Captum."""
    planned = plan({name: explanation.decided.methods[name] for name in names})
    return (
        None if planned.apart else planned.describe(explanation.explained, explanation.samples, choosing=False).passes
    )


def _saved(explained: ExplainedFunction, samples: Samples) -> int:
    """Returns the bytes that autograd keeps for a sample: what a second one adds, because weights are kept anyway."""
    one, two = (_kept(explained, samples[:1].repeat(times)) for times in (1, 2))
    return max(0, two - one)


def _kept(explained: ExplainedFunction, samples: Samples) -> int:
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in samples.inputs)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = explained.forward(*inputs, *samples.extra)
    # Kept until here, so that no storage is freed and its address reused.
    del output
    return sum(storages.values())
