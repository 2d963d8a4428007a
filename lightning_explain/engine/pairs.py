"""One pass of DeepLIFT: rows and what they are compared with go through the model side by side, by Captum's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import Point, Spot, Visit, Want, joined_rows
from lightning_explain.core.probe import Rows, as_tuple, bare
from lightning_explain.engine.captum_adapter import attribute as through_captum
from lightning_explain.engine.evaluate import intercept, visits_of

Read = dict[Want, tuple[Tensor, ...]]

# Each row brings its baseline, and Captum keeps what goes into each activation and what comes out beside what autograd keeps.
_SHARE = 4


def look_at_pairs(subject: Subject, points: Sequence[Point], wants: frozenset[Want]) -> list[Visit]:
    """The multipliers at the inputs and at layers, and what the layers say of rows and of what they are compared with.

    Args:
        subject: The explained function, inside what is mended for these methods.
        points: Rows with what they are compared with, of equally many rows each.
        wants: By one rule of DeepLIFT.

    Returns:
        A visit for each point. An activation ``(N, 2, ...)`` is that of a row and of what it is compared with.
    """
    (eps,) = {float(rule.partition(":")[2]) for rule, _ in wants if rule}
    rows = joined_rows([point.rows for point in points])
    against = tuple(torch.cat(column) for column in zip(*(point.against for point in points), strict=True))
    size = max(1, subject.limit // _SHARE)
    parts = [
        _read(subject, part, tuple(others), wants, eps)
        for part, *others in zip(rows.split(size), *(a.split(size) for a in against), strict=True)
    ]
    read = {want: tuple(torch.cat(c) for c in zip(*(p[want] for p in parts), strict=True)) for want in wants}
    # What the model says of rows and what they are compared with together is nobody's output.
    return visits_of(points, torch.full((len(rows),), torch.nan), read)


def _read(subject: Subject, rows: Rows, against: tuple[Tensor, ...], wants: frozenset[Want], eps: float) -> Read:
    (rule,) = {rule for rule, _ in wants if rule}
    spots = {spot for _, spot in wants if spot}
    if (rule, None) not in wants:
        return {want: value for spot in spots for want, value in _at_layer(subject, rows, against, spot, rule).items()}
    explainer = captum.DeepLift(subject.forward, multiply_by_inputs=False, eps=eps)
    with ExitStack() as stack:
        caught = {spot: _Caught() for spot in spots}
        for spot, catch in caught.items():
            stack.callback(intercept(subject, spot, catch.see).remove)
        multipliers = as_tuple(through_captum(explainer.attribute, rows, baselines=bare(against)))
    return {(rule, None): multipliers, **_of_layers(caught, rule)}


def _of_layers(caught: Mapping[Spot, _Caught], rule: str) -> Read:
    read: Read = {}
    for spot, values in caught.items():
        if not values.activations or any(gradient is None for gradient in values.gradients):
            raise ValueError(f"The layer {spot.layer!r} does not run in this model for these inputs, or leads nowhere.")
        # The first half are the rows.
        read[rule, spot] = tuple(g.chunk(2)[0] for g in values.gradients if g is not None)
        read[None, spot] = tuple(torch.stack(a.chunk(2), 1) for a in values.activations)
    return read


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


def _at_layer(subject: Subject, rows: Rows, against: tuple[Tensor, ...], spot: Spot, rule: str) -> Read:
    """By Captum's own class for layers, which needs no gradient at the inputs."""
    seen: list[tuple[tuple[Tensor, ...], ...]] = []

    def keep(multipliers: tuple[Tensor, ...], inputs: tuple[Tensor, ...], baselines: tuple[Tensor, ...]) -> Any:
        seen.append((multipliers, inputs, baselines))
        return multipliers

    # Captum hooks the gradients of all activations, also of those before the layer, where no weight needs one.
    inputs = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in rows.inputs)
    explainer = captum.LayerDeepLift(subject.forward, subject.layer(spot.layer), multiply_by_inputs=False)
    through_captum(
        explainer.attribute,
        replace(rows, inputs=inputs),
        baselines=bare(against),
        attribute_to_layer_input=spot.of_input,
        custom_attribution_func=keep,
    )
    multipliers, activations, references = seen[0]
    pairs = tuple(torch.stack(pair, 1).detach() for pair in zip(activations, references, strict=True))
    return {(rule, spot): tuple(m.detach() for m in multipliers), (None, spot): pairs}
