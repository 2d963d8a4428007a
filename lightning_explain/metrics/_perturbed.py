"""Samples and draws in, the samples perturbed out, with what maps are multiplied by to predict what that changes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Modality, Reference
from lightning_explain.core.probe import Samples
from lightning_explain.metrics._ranking import spread, units_present

Tensors = tuple[Tensor, ...]


class Perturbed(NamedTuple):
    """Perturbed samples; each a tensor ``(N, ...)`` for each input, or one that broadcasts to it.

    Args:
        change: x minus the perturbed x, what maps like a gradient are multiplied by.
        share: What maps that contain x minus the baseline are multiplied by: ``change`` divided by that difference.
        points: The perturbed samples.
    """

    change: Tensors
    share: Tensors
    points: Tensors


def half(
    explained: ExplainedFunction, samples: Samples, indices: Tensor, columns: list[tuple[Tensor, Modality]]
) -> Tensors:
    """A random half of the units that each sample has in some inputs, exactly as many in each draw."""
    inputs, modalities = zip(*columns, strict=True)
    present = units_present(inputs, modalities)
    like = torch.empty(present.shape, device=present.device)
    # The numbers belong to the units that are there, so that padding changes none.
    own = explained.draws.uniform("half", samples, indices, like).gather(1, (present.cumsum(1) - 1).clamp(min=0))
    drawn = own.masked_fill(~present, -1)
    places = drawn.argsort(dim=1, descending=True).argsort(dim=1)
    return spread(places < present.sum(1, keepdim=True) // 2, inputs, modalities)


def origin(explained: ExplainedFunction, reference: Reference, samples: Samples) -> Tensors:
    """The baseline of each sample, shaped as its inputs; the mean of a set of baselines."""
    if not reference.distribution:
        return explained.baseline(reference.baselines, samples)
    sets = explained.distribution(reference.baselines, samples)
    means = (exact(b).mean(0, keepdim=True).expand_as(x) for b, x in zip(sets, samples.inputs, strict=True))
    return tuple(m.to(x.dtype) if x.is_floating_point() else m for m, x in zip(means, samples.inputs, strict=True))


def exact(value: Tensor) -> Tensor:
    """In float32 or higher, so that a difference is not rounded, and is defined for whole numbers."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
