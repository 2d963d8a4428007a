"""One pass of DeepLIFT: samples and what they are compared with go through the model side by side, by Captum's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Evaluation, LayerSite, Point, Read, joined_samples
from lightning_explain.core.probe import Samples, as_tuple, bare
from lightning_explain.engine.captum_adapter import attribute as through_captum
from lightning_explain.engine.evaluate import evaluations_of, intercept

Readings = dict[Read, tuple[Tensor, ...]]

# Each sample brings its baseline, and Captum keeps what goes into each activation and what comes out beside what autograd keeps.
_SHARE = 4


def forward_backward_pairs(
    explained: ExplainedFunction, points: Sequence[Point], reads: frozenset[Read]
) -> list[Evaluation]:
    """The multipliers at the inputs and at layers, and what the layers say of samples and of what they are compared with.

    Args:
        explained: The explained function, inside what is canonized for these methods.
        points: Samples with what they are compared with, of equally many samples each.
        reads: By one rule of DeepLIFT.

    Returns:
        An evaluation for each point. An activation ``(N, 2, ...)`` is that of a sample and of what it is compared with.
    """
    (eps,) = {float(rule.partition(":")[2]) for rule, _ in reads if rule}
    samples = joined_samples([point.samples for point in points])
    against = tuple(torch.cat(column) for column in zip(*(point.against for point in points), strict=True))
    size = max(1, explained.limit // _SHARE)
    parts = [
        _read_pairs(explained, part, tuple(others), reads, eps)
        for part, *others in zip(samples.split(size), *(a.split(size) for a in against), strict=True)
    ]
    readings = {read: tuple(torch.cat(c) for c in zip(*(p[read] for p in parts), strict=True)) for read in reads}
    # What the model says of samples and what they are compared with together is nobody's output.
    return evaluations_of(points, torch.full((len(samples),), torch.nan), readings)


def _read_pairs(
    explained: ExplainedFunction, samples: Samples, against: tuple[Tensor, ...], reads: frozenset[Read], eps: float
) -> Readings:
    (rule,) = {rule for rule, _ in reads if rule}
    sites = {site for _, site in reads if site}
    if (rule, None) not in reads:
        return {
            read: value for site in sites for read, value in _at_layer(explained, samples, against, site, rule).items()
        }
    explainer = captum.DeepLift(explained.forward, multiply_by_inputs=False, eps=eps)
    with ExitStack() as stack:
        caught = {site: _Caught() for site in sites}
        for site, catch in caught.items():
            stack.callback(intercept(explained, site, catch.see).remove)
        multipliers = as_tuple(through_captum(explainer.attribute, samples, baselines=bare(against)))
    return {(rule, None): multipliers, **_of_layers(caught, rule)}


def _of_layers(caught: Mapping[LayerSite, _Caught], rule: str) -> Readings:
    readings: Readings = {}
    for site, values in caught.items():
        if not values.activations or any(gradient is None for gradient in values.gradients):
            raise ValueError(f"The layer {site.layer!r} does not run in this model for these inputs, or leads nowhere.")
        # The first half are the samples.
        readings[rule, site] = tuple(g.chunk(2)[0] for g in values.gradients if g is not None)
        readings[None, site] = tuple(torch.stack(a.chunk(2), 1) for a in values.activations)
    return readings


class _Caught:
    """What a layer says while Captum runs, and the gradient that comes back to it."""

    def __init__(self) -> None:
        self.activations: tuple[Tensor, ...] = ()
        self.gradients: list[Tensor | None] = []

    def see(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keeps the activations, and waits for their gradients."""
        if torch._C._current_graph_task_id() != -1:
            # In a backward pass: checkpointing computes again what is known.
            return tensors
        self.activations, self.gradients = tuple(t.detach().clone() for t in tensors), [None] * len(tensors)
        for i, tensor in enumerate(tensors):
            if tensor.requires_grad:
                # Into the list of this time: if a layer runs again, earlier gradients come back later.
                tensor.register_hook(partial(self.gradients.__setitem__, i))
        return tensors


def _at_layer(
    explained: ExplainedFunction, samples: Samples, against: tuple[Tensor, ...], site: LayerSite, rule: str
) -> Readings:
    """By Captum's own class for layers, which needs no gradient at the inputs."""
    seen: list[tuple[tuple[Tensor, ...], ...]] = []

    def keep(multipliers: tuple[Tensor, ...], inputs: tuple[Tensor, ...], baselines: tuple[Tensor, ...]) -> Any:
        seen.append((multipliers, inputs, baselines))
        return multipliers

    # Captum hooks the gradients of all activations, also of those before the layer, where no weight needs one.
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in samples.inputs)
    explainer = captum.LayerDeepLift(explained.forward, explained.layer(site.layer), multiply_by_inputs=False)
    through_captum(
        explainer.attribute,
        replace(samples, inputs=inputs),
        baselines=bare(against),
        attribute_to_layer_input=site.of_input,
        custom_attribution_func=keep,
    )
    multipliers, activations, references = seen[0]
    pairs = tuple(torch.stack(pair, 1).detach() for pair in zip(activations, references, strict=True))
    return {(rule, site): tuple(m.detach() for m in multipliers), (None, site): pairs}
