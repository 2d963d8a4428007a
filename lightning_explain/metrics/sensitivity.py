"""Sensitivity: maps at slightly perturbed inputs in, the largest relative change of each map out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Modality, Score
from lightning_explain.core.probe import Attribution, Samples, flat
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_number
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.metrics._common import by_user, joined, needs_floating, table

PerturbFunc = Callable[..., Attribution]


def sensitivity(clean: tuple[Tensor, ...], moved: tuple[Tensor, ...], norm_ord: str | float = "fro") -> Tensor:
    """Norm of the difference of two maps, divided by the norm of the first (by 1 where that is zero).

    Args:
        clean: Map at the sample, each ``(N, ...)``.
        moved: Map at the perturbed sample, each ``(N, ...)``.
        norm_ord: ``"fro"`` (the Euclidean norm), ``inf``, or any order of ``torch.linalg.vector_norm``.

    Returns:
        ``(N,)``, without unit.
    """
    change, size = _norm([m - c for c, m in zip(clean, moved, strict=True)], norm_ord), _norm(clean, norm_ord)
    return change / torch.where(size == 0, torch.ones_like(size), size)


def _norm(parts: tuple[Tensor, ...] | list[Tensor], norm_ord: str | float) -> Tensor:
    joined = torch.cat([flat(p) for p in parts], 1)
    norm: Tensor = torch.linalg.vector_norm(joined, 2 if norm_ord == "fro" else float(norm_ord), dim=1)
    return norm


@dataclass(frozen=True)
class SensitivityMax(CheckedArguments, Metric):
    """Largest relative change of the map near the input (Yeh et al. 2019; ``captum.metrics.sensitivity_max``).

    Recomputes all methods at the same perturbed samples.

    Cost: n_perturb_samples * methods forward, n_perturb_samples * methods backward; methods is the cost of all methods.
    Not for: deciding which map is right: a constant map scores best; inputs of another scale than about 1 without a
        matching ``perturb_radius``.

    Args:
        perturb_radius: Radius of the L-infinity ball, in units of the input.
        perturb_func: Function in Captum's form that takes (inputs, radius) and returns perturbed inputs. It receives
            one sample at a time, with the global generators seeded for that sample and draw. Default: uniform in the
            ball.
        n_perturb_samples: Draws for each sample.
        norm_ord: Norm of the maps: ``"fro"``, ``"inf"``, or a number.
        methods: Names of the methods to score. Default: all.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If ``perturb_func`` or ``methods`` is of another type.

    Example:
        >>> methods = [m.Saliency(abs=False)]
        >>> report = explain(model, probe, methods=methods, metrics=[q.SensitivityMax(n_perturb_samples=4)])
        >>> report.scores["sensitivity_max"]["saliency"].shape
        torch.Size([2])
    """

    perturb_radius: float = 0.02
    perturb_func: PerturbFunc | None = None
    n_perturb_samples: int = 10
    norm_ord: str | float = "fro"
    methods: tuple[str, ...] | None = None

    higher_is_better: ClassVar[bool | None] = False
    comparable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_ord not in ("fro", "inf"):
            check_number("SensitivityMax", "norm_ord", self.norm_ord)

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> SensitivityMax:
        """Itself, if these inputs can be perturbed.

        Raises:
            ValueError: If they cannot.
        """
        if self.perturb_func is None:
            needs_floating("SensitivityMax", inputs)
        return self

    def evaluations(self, methods: Mapping[str, Method], again: PassCount) -> PassCount:
        """The maps again at every draw."""
        return again * self.n_perturb_samples

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Without unit; a maximum has no standard error. Lower is better."""
        explained, maps = metric_inputs.explained, metric_inputs.maps

        def changes(samples: Samples, places: Tensor, draws: Tensor) -> dict[str, Tensor]:
            moved = metric_inputs.explain(samples.at(self._perturb(explained, samples, draws)))
            clean = {name: tuple(part[places] for part in found) for name, found in maps.items()}
            return {name: sensitivity(clean[name], moved[name], self.norm_ord) for name in maps}

        found = table(metric_inputs, self.n_perturb_samples, list(maps), changes)
        return {"": {name: (values.amax(1), None) for name, values in found.items()}}

    def _perturb(self, explained: ExplainedFunction, samples: Samples, indices: Tensor) -> tuple[Tensor, ...]:
        function = self.perturb_func
        if function is not None:
            moved = by_user("sensitivity", lambda x: function(x, self.perturb_radius), explained, samples, indices)
            return joined(moved)
        draws = (explained.draws.uniform(f"sensitivity/{i}", samples, indices, x) for i, x in enumerate(samples.inputs))
        return tuple(x + (2 * d - 1) * self.perturb_radius for x, d in zip(samples.inputs, draws, strict=True))
