"""One pass of DeepLIFT: samples and their baselines go through the model as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Evaluation, LayerSite, Point, Read, joined_samples, widened
from lightning_explain.core.probe import Samples, flat
from lightning_explain.core.record import nodes
from lightning_explain.core.report import SumCheck
from lightning_explain.engine import evaluate
from lightning_explain.engine.noise import wide
from lightning_explain.engine.rules import NoRuleError, Rescaling, check_softmax, in_precision


class Pass(NamedTuple):
    """The results of one batch of M samples and their M baselines.

    Args:
        outputs: f at the samples, ``(M,)``.
        readings: Multipliers ``(M, ...)``, and activations ``(M, 2, ...)`` at each sample and at its baseline.
        checks: Each site that all connections from input to output pass through to the check of its sum.
    """

    outputs: Tensor
    readings: evaluate.Readings
    checks: evaluate.Checks


def forward_backward_pairs(
    explained: ExplainedFunction, points: Sequence[Point], reads: frozenset[Read]
) -> list[Evaluation]:
    """Runs DeepLIFT on several points in one batch: multipliers at inputs and layers, and the layers' activations.

    Args:
        explained: The explained function.
        points: Samples with their baselines, equally many samples each.
        reads: What to read; all by the same rule.

    Returns:
        An evaluation for each point; an activation ``(N, 2, ...)`` holds that of a sample and that of its baseline.

    Raises:
        NoRuleError: If DeepLIFT does not hold for the model.
    """
    samples = joined_samples([point.samples for point in points])
    against = map(torch.cat, zip(*(point.against for point in points), strict=True))
    size = max(1, explained.limit // 2)
    parts = [
        rescaled(explained, part, tuple(baselines), reads)
        for part, *baselines in zip(samples.split(size), *(a.split(size) for a in against), strict=True)
    ]
    sites = [site for site in parts[0].checks if all(site in part.checks for part in parts)]
    parts = [part._replace(checks={site: part.checks[site] for site in sites}) for part in parts]
    return evaluate.evaluations_of(points, *tree_map(lambda *tensors: torch.cat(tensors), *parts))


def rescaled(
    explained: ExplainedFunction, samples: Samples, baselines: tuple[Tensor, ...], reads: frozenset[Read]
) -> Pass:
    """Runs one forward and one backward pass by DeepLIFT's rule, in float32 or higher.

    Args:
        explained: The explained function.
        samples: M samples.
        baselines: Their baselines, each ``(M, ...)``.
        reads: What to read; all by the same rule.

    Raises:
        NoRuleError: If DeepLIFT does not hold for the model.
    """
    inputs = tuple(widened(torch.cat(pair)) for pair in zip(samples.inputs, baselines, strict=True))
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in explained.in_memory_layout(inputs))
    extra = tuple(widened(torch.cat([x, x])) if isinstance(x, Tensor) else x for x in samples.extra)
    return in_precision(explained.forward, partial(_pass, explained, inputs, extra, reads))


def _pass(
    explained: ExplainedFunction, inputs: tuple[Tensor, ...], extra: tuple[Any, ...], reads: frozenset[Read]
) -> Pass:
    (rule,) = {rule for rule, _ in reads if rule}
    integers = not all(x.is_floating_point() for x in inputs)
    mode = Rescaling(len(inputs[0]), float(rule.partition(":")[2]), inputs[0].device, integers)
    with_activations = reads | {(None, site) for _, site in reads if site}
    with torch.enable_grad(), evaluate.watching(explained.layer, with_activations) as caught, mode:
        values = explained.forward(*inputs, *extra)
        if not values.requires_grad:
            raise NoRuleError("needs an output that depends on the input through something that has a gradient")
        activations = {**caught.values, None: inputs}
        places = {**caught.places, None: tuple(map(evaluate.Place.of, inputs))}
        ends = [nodes_of(evaluate.found_at(site, places)) for r, site in reads if r]
        check_softmax([values.grad_fn], set().union(*ends))
        mode.goes_back = True
        multipliers = evaluate.gradients(rule, reads, values, places)
        whole = _whole(values, places, [b for b in mode.begins if mode.difference(b).any()])
    output, reference = values.detach().chunk(2)
    change, size = output - reference, torch.maximum(output.abs(), reference.abs())
    readings: evaluate.Readings = {}
    checks: evaluate.Checks = {}
    for (_, site), both in multipliers.items():
        for part in activations[site]:
            evaluate.check_length(site, part, len(values))
        readings[rule, site] = tuple(m.chunk(2)[0] for m in both)
        readings[None, site] = tuple(torch.stack(a.detach().chunk(2), 1) for a in activations[site])
        if site in whole:
            terms = zip(readings[rule, site], readings[None, site], strict=True)
            total = sum(flat(wide(m * (a[:, 0] - a[:, 1]))).sum(1) for m, a in terms)
            checks[site] = SumCheck(total - wide(change), wide(change), wide(size))
    return Pass(output, {read: readings[read] for read in reads}, checks)


def _whole(values: Tensor, places: evaluate.Places, made: Iterable[Tensor]) -> set[LayerSite | None]:
    """The sites that every connection from input to output passes through.

    Args:
        values: The explained outputs.
        places: The places of each site.
        made: The tensors that were made of integer inputs, and differ between samples and baselines.
    """
    begins = nodes_of([*places[None], *map(evaluate.Place.of, made)])
    return {site for site, part in places.items() if begins.isdisjoint(nodes(values.grad_fn, before=nodes_of(part)))}


def nodes_of(places: Iterable[evaluate.Place]) -> set[Any]:
    """The graph nodes of places."""
    return {place.edge.node for place in places if place.edge is not None}
