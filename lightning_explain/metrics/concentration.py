"""Concentration: a map in, how unevenly its relevance is spread over the pixels out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import Metric, MetricInputs, Score
from lightning_explain.engine.noise import wide
from lightning_explain.metrics._ranking import of_present, relevance, scores


def gini(values: Tensor) -> Tensor:
    """Gini index of absolute values: ``sum_i (2 i - U - 1) |v|_(i) / (U sum |v|)``, with ``|v|_(1) <= ... <= |v|_(U)``.

    Args:
        values: ``(N, U)``.

    Returns:
        ``(N,)`` from 0 (all units equal) to 1 - 1/U (one unit has everything); NaN where all are zero.
    """
    ordered = wide(values).abs().sort(1).values
    n = values.shape[1]
    weights = 2 * torch.arange(1, n + 1, device=values.device, dtype=ordered.dtype) - n - 1
    return (ordered * weights).sum(1) / (n * ordered.sum(1))


def entropy(values: Tensor) -> Tensor:
    """Normalized entropy of the shares ``p = |v| / sum |v|``: ``-sum p log p / log U``.

    Args:
        values: ``(N, U)``.

    Returns:
        ``(N,)`` from 0 (one unit has everything) to 1 (all units equal); NaN where all are zero, or for a single unit.
    """
    sizes = wide(values).abs()
    shares = sizes / sizes.sum(1, keepdim=True)
    n = torch.tensor(float(values.shape[1]), dtype=sizes.dtype, device=sizes.device)
    total: Tensor = torch.special.xlogy(shares, shares).sum(1)
    return -total / n.log()


@dataclass(frozen=True)
class Concentration(Metric):
    r"""Unevenness of the map: Gini index (Chalasani et al. 2020; Quantus' Sparseness), and entropy as ``_entropy``.

    Both use the absolute values of the pixels, after summing the channels.

    Formula: G = \frac{\sum_{i=1}^{n} (2i - n - 1)\,|\phi|_{(i)}}{n \sum_i |\phi|_{(i)}},\quad H = -\frac{1}{\ln n}
        \sum_i p_i \ln p_i,\quad p_i = \frac{|\phi_i|}{\sum_j |\phi_j|}
    Cost: 0 forward, 0 backward.
    Not for: choosing a method: a map can concentrate on the wrong pixel; maps of different resolutions, such as
        Grad-CAM beside pixel maps.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Concentration()])
        >>> report.scores["concentration"]["saliency"].shape
        torch.Size([2])
    """

    suffixes = ("", "entropy")
    comparable = True
    undefined: ClassVar[Mapping[str, str]] = dict.fromkeys(suffixes, "the map is zero everywhere, or has a single unit")

    maps_only = True

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Both in 0..1, without unit: high Gini and low entropy mean a concentrated map. A map of zeros gives NaN."""
        units = relevance(metric_inputs.maps, metric_inputs)
        found = {
            suffix: {name: of_present(measure, metric_inputs, u) for name, u in units.items()}
            for suffix, measure in (("", gini), ("entropy", entropy))
        }
        return {suffix: scores(values, metric_inputs.outputs) for suffix, values in found.items()}
