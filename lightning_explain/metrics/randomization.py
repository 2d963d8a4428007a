"""Randomization: maps in, their rank correlation with maps of the network with randomized weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import Method, Metric, MetricInputs, Score
from lightning_explain.core.probe import Attribution, as_tuple, flat
from lightning_explain.core.report import PassCount
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.metrics._ranking import mean_over, of_present, spearman
from lightning_explain.model.reinitialize import randomized, top_down


def depths(layers: int, count: int | None) -> list[int]:
    """Number of layers that each stage randomizes, spread evenly from 1 to all layers; ``None``: one stage for each layer."""
    if count is None or count >= layers:
        return list(range(1, layers + 1))
    if count == 1:
        return [layers]
    return [1 + round(i * (layers - 1) / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Randomization(CheckedArguments, Metric):
    r"""Rank correlation with the maps of randomized networks (Adebayo et al. 2018; Quantus' MPRT).

    Randomizes the layers from the top down, each stage on top of the former (cascading). The score is the mean over the
    stages of ``spearman(map of the network, map of the randomized network)``; ``_top`` is the first stage (the output
    layer alone), ``_full`` the last (all layers). A score near 1 means that the map hardly depends on the network, like
    that of an edge detector. Maps are compared in the method's own shape.

    Formula: \frac{1}{L} \sum_{l=1}^{L} \rho\left(\phi(f), \phi(f_l)\right),\quad f_l: \text{the top}\ l\ \text{layers
        random}
    Cost: n_layers * n_draws * methods forward, n_layers * n_draws * methods backward; methods is the cost of all
        methods; 1 forward sample more in each explanation.
    Not for: ranking methods: noisy maps score well (Binder et al. 2023); untrained networks, which are already random;
        every epoch of a slow run.

    Args:
        n_layers: Stages, spread evenly over the layers with parameters; ``None``: one for each layer.
        n_draws: Random networks; two or more give a standard error.
        abs: Compare absolute values.
        methods: Names of the methods to score. Default: all.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If ``abs`` or ``methods`` is of another type.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Randomization(n_layers=2)])
        >>> report.scores["randomization"]["saliency"].shape
        torch.Size([2])
    """

    n_layers: int | None = 5
    n_draws: int = 2
    abs: bool = False
    methods: tuple[str, ...] | None = None

    higher_is_better: ClassVar[bool | None] = False
    suffixes = ("", "top", "full")
    comparable = True
    undefined: ClassVar[Mapping[str, str]] = dict.fromkeys(
        suffixes, "the map, or every map it is compared with, is constant"
    )

    @property
    def has_standard_errors(self) -> bool:
        """From two random networks on."""
        return self.n_draws > 1

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: object) -> Sequence[str]:
        """All methods: maps without a place on the image are compared in their own shape."""
        return methods

    def evaluations_for(self, methods: Mapping[str, Method], again: PassCount) -> PassCount | None:
        """The maps again for every random network; not known if there is one for every layer."""
        return None if self.n_layers is None else again * (self.n_layers * self.n_draws)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In -1..1, without unit, with the standard error over random networks. Lower is better.

        Stages with a constant map are ignored; a sample without any other stage gives NaN.

        Raises:
            ValueError: If the model has no parameters, or they are on several devices.
        """
        explained, one = metric_inputs.explained, metric_inputs.samples[:1]
        layers = top_down(explained.forward, lambda: explained.evaluate(one))
        if not layers:
            raise ValueError("Randomization needs a model with parameters; this one has none; leave the metric out.")
        draws = [self._stages(metric_inputs, layers, draw) for draw in range(self.n_draws)]
        names, outputs = metric_inputs.attributions, metric_inputs.outputs
        found = {name: torch.stack([draw[name] for draw in draws]).to(outputs) for name in names}
        return {
            "": {name: mean_over(value.nanmean(1)) for name, value in found.items()},
            "top": {name: mean_over(value[:, 0]) for name, value in found.items()},
            "full": {name: mean_over(value[:, -1]) for name, value in found.items()},
        }

    def _stages(self, metric_inputs: MetricInputs, layers: Sequence[nn.Module], draw: int) -> dict[str, Tensor]:
        """Correlation of each method at each stage, ``(stages, N)``."""
        stages = []
        for depth in depths(len(layers), self.n_layers):
            with randomized(layers[:depth], metric_inputs.explained.draws, draw):
                moved = metric_inputs.attribute(metric_inputs.samples)
            stages.append({name: self._alike(metric_inputs, name, moved[name]) for name in metric_inputs.attributions})
        return {name: torch.stack([stage[name] for stage in stages]) for name in stages[0]}

    def _alike(self, metric_inputs: MetricInputs, name: str, moved: Attribution) -> Tensor:
        """The rank correlation ``(N,)`` of a method's maps; without what is padding, in a map that has a place on the input."""
        found, columns = (
            metric_inputs.attributions[name],
            zip(metric_inputs.samples.inputs, metric_inputs.explained.modalities, strict=True),
        )
        known = [modality.present(x) for x, modality in columns] if name in metric_inputs.maps else []
        present = torch.cat([_present(part, known) for part in as_tuple(found)], 1)
        return of_present(spearman, metric_inputs, self._flat(found), self._flat(moved), present=present)

    def _flat(self, found: Attribution) -> Tensor:
        joined = torch.cat([flat(part) for part in as_tuple(found)], 1)
        return joined.abs() if self.abs else joined


def _present(part: Tensor, known: Sequence[Tensor | None]) -> Tensor:
    """Which elements of a map belong to units that are there, ``(N, U)``: all, unless it lies on units of which some are not."""
    own = [there for there in known if there is not None and there.shape == part.shape[: there.ndim]]
    there = own[0] if own else torch.ones(len(part), dtype=torch.bool, device=part.device)
    return flat(there.reshape(*there.shape, *(1,) * (part.ndim - there.ndim)).expand(part.shape))
