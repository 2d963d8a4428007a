"""Maps as rankings: maps in, the relevance of each unit (such as a pixel) out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_explain.core.contracts import MetricInputs, Modality, Score
from lightning_explain.core.probe import flat
from lightning_explain.engine.noise import wide


def relevance(
    maps: Mapping[str, tuple[Tensor, ...]], metric_inputs: MetricInputs, absolute: bool = False
) -> dict[str, Tensor]:
    """Relevance of each unit, ``(N, U)`` for each method, with the U units of all inputs concatenated.

    Args:
        maps: Each broadcastable to the inputs.
        metric_inputs: The inputs, and what they are.
        absolute: Take absolute values.
    """
    inputs, modalities = metric_inputs.samples.inputs, metric_inputs.explained.modalities
    found = {}
    for name, parts in maps.items():
        columns = zip(parts, inputs, modalities, strict=True)
        units = torch.cat([flat(mod.by_unit(part).expand(mod.units(x))) for part, x, mod in columns], 1)
        found[name] = units.abs() if absolute else units
    return found


def units_present(inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> Tensor:
    """Which of the U units of all inputs each sample has, boolean ``(N, U)``."""
    parts = []
    for x, modality in zip(inputs, modalities, strict=True):
        there = modality.present(x)
        units = modality.units(x)
        parts.append(
            flat(torch.ones(units, dtype=torch.bool, device=x.device) if there is None else there.expand(units))
        )
    return torch.cat(parts, 1)


def of_present(
    function: Callable[..., Tensor], metric_inputs: MetricInputs, *units: Tensor, present: Tensor | None = None
) -> Tensor:
    """What a function of units ``(N, U)`` returns for those that each sample has, ``(N,)``; NaN for a sample without any.

    Args:
        function: Takes as many tensors ``(n, u)`` as there are ``units``, and returns ``(n,)``.
        metric_inputs: The inputs, and what they are.
        units: Each ``(N, U)``, such as results of :func:`relevance`.
        present: Which units each sample has, ``(N, U)``; default: of the inputs.
    """
    if present is None:
        present = units_present(metric_inputs.samples.inputs, metric_inputs.explained.modalities)
    if present.all():
        return function(*units)
    found = wide(units[0]).new_full((len(present),), torch.nan)
    for i, there in enumerate(present):
        if there.any():
            found[i] = function(*(part[i : i + 1, there] for part in units))[0]
    return found


def spread(values: Tensor, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> tuple[Tensor, ...]:
    """Puts values of units ``(N, U)`` back in the inputs' places; each result broadcasts to its input."""
    shapes = [modality.units(x) for x, modality in zip(inputs, modalities, strict=True)]
    parts = values.split([shape[1:].numel() for shape in shapes], 1)
    columns = zip(parts, shapes, inputs, modalities, strict=True)
    return tuple(modality.spread(part.reshape(shape), x) for part, shape, x, modality in columns)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each sample: Pearson's correlation of the ranks, where ties share their mean rank.

    Equals ``scipy.stats.spearmanr``. torchmetrics' ``spearman_corrcoef`` sums the ranks of tied values in int32, which
    overflows from 65,536 ties on; maps with that many zeros are common.

    Args:
        first: ``(N, U)``.
        second: ``(N, U)``.

    Returns:
        ``(N,)`` in -1..1; NaN where one of the two is constant or contains NaN.
    """
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (_ranks(first), _ranks(second)))
    correlation = (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
    known = ~(first.isnan() | second.isnan()).any(1)
    return torch.where(known, correlation.clamp(-1, 1), torch.nan)


def _ranks(values: Tensor) -> Tensor:
    ordered, values = values.sort(1).values.contiguous(), values.contiguous()
    below = torch.searchsorted(ordered, values)
    return wide(below + torch.searchsorted(ordered, values, right=True) + 1) / 2


def mean_over(values: Tensor) -> Score:
    """Mean over the first dimension of ``(K, N)`` and its standard error, ignoring NaN; no error for a single draw."""
    mean = values.nanmean(0)
    if len(values) < 2:
        return mean, None
    count = (~values.isnan()).sum(0)
    squares = (values - mean).square().nansum(0)
    # A single finite draw has no spread: 0 / 0 gives NaN.
    return mean, (squares / (count - 1).clamp(min=0) / count).sqrt()


def scores(values: Mapping[str, Tensor], like: Tensor) -> dict[str, Score]:
    """Scores without standard errors, in the precision of the outputs."""
    return {name: (value.to(like.dtype), None) for name, value in values.items()}
