"""Agreement: maps of several methods in, the rank correlation between each method and the others out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import Metric, MetricInputs, Score
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.metrics._ranking import of_present, relevance, scores, spearman


def agreement(
    maps: Mapping[str, Tensor], correlate: Callable[[Tensor, Tensor], Tensor] = spearman
) -> dict[str, Tensor]:
    """Mean Spearman correlation of each map with the other maps.

    Args:
        maps: Each ``(N, U)``.
        correlate: The correlation ``(N,)`` of two of them.

    Returns:
        For each map ``(N,)`` in -1..1. Pairs with a constant map are ignored; NaN where no pair is left. Empty for
        fewer than two maps.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in maps}
    for first, second in combinations(maps, 2):
        correlation = correlate(maps[first], maps[second])
        found[first].append(correlation)
        found[second].append(correlation)
    return {name: torch.stack(values).nanmean(0) for name, values in found.items() if values}


@dataclass(frozen=True)
class Agreement(CheckedArguments, Metric):
    r"""Mean Spearman correlation between a method's map and those of the other methods (Krishna et al. 2022).

    Ranks pixels by their relevance, summed over channels. There is no score with fewer than two methods.

    Formula: \frac{1}{M - 1} \sum_{m' \ne m} \rho(\phi_m, \phi_{m'}),\quad \rho\ \text{Spearman's correlation}
    Chance: 0, of methods that rank without regard to each other.
    Cost: 0 forward, 0 backward.
    Not for: choosing a method: all methods can be wrong together; signed maps beside unsigned ones without
        ``abs=True``.

    Args:
        abs: Rank by absolute value. Use it to compare signed maps with unsigned ones.

    Raises:
        TypeError: If ``abs`` is not a bool.

    Example:
        >>> methods = [m.Saliency(abs=False), m.InputXGradient()]
        >>> report = explain(model, probe, methods=methods, metrics=[q.Agreement()])
        >>> report.scores["agreement"]["saliency"].shape
        torch.Size([2])
    """

    abs: bool = False

    comparable = True
    undefined: ClassVar[Mapping[str, str]] = {"": "the map, or every other map, is constant"}
    needs: ClassVar[str] = "two methods whose maps have a place on the image"

    maps_only = True

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: object) -> Sequence[str]:
        """All methods with a map in input space, if there are at least two."""
        return maps if len(maps) > 1 else ()

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In -1..1, without unit; 1 where all methods rank alike."""
        units = relevance(metric_inputs.maps, metric_inputs, self.abs)
        return {"": scores(agreement(units, partial(of_present, spearman, metric_inputs)), metric_inputs.outputs)}
