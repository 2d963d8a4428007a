"""Maps as rankings: a map in, the relevance of each unit (a pixel of an image, or a single number) out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_explain.core.contracts import Score
from lightning_explain.core.probe import flat


def relevance(found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    """Relevance of each unit, ``(N, U)``, with the U units of all inputs concatenated.

    The units of an image ``(N, C, H, W)`` are its pixels, with the channels summed; the units of any other input are
    its elements.

    Args:
        found: A map broadcastable to the inputs.
        inputs: Each ``(N, ...)``.
    """
    parts = [m.sum(1) if _is_image(x) else m.expand_as(x) for m, x in zip(found, inputs, strict=True)]
    return torch.cat([flat(part) for part in parts], 1)


def spread(values: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Puts values of units ``(N, U)`` back in the inputs' places; each result broadcasts to its input."""
    shapes = [torch.Size((len(x), 1, *x.shape[2:])) if _is_image(x) else x.shape for x in inputs]
    sizes = [shape[1:].numel() for shape in shapes]
    return tuple(part.reshape(shape) for part, shape in zip(values.split(sizes, 1), shapes, strict=True))


def unit_count(inputs: tuple[Tensor, ...]) -> int:
    """Number of units in a sample."""
    return sum((x[0, 0] if _is_image(x) else x[0]).numel() for x in inputs)


def _is_image(x: Tensor) -> bool:
    return x.ndim == 4


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


def wide(values: Tensor) -> Tensor:
    """The values in float64, or in float32 on a device without it."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


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
