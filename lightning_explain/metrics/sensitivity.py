"""Sensitivity: maps at slightly perturbed inputs in, the largest relative change of each map out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Modality, Score
from lightning_explain.core.probe import Attribution, Samples, flat
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_number, is_number
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.engine.noise import Scale, scales
from lightning_explain.metrics._common import by_user, joined, needs_floating, table

PerturbFunc = Callable[..., Attribution]
_RADIUS = 0.02


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
    r"""Largest relative change of the map near the input (Yeh et al. 2019; ``captum.metrics.sensitivity_max``).

    Recomputes all methods at the same perturbed samples.

    Formula: \max_{\|\delta\|_\infty \le r} \frac{\|\phi(x + \delta) - \phi(x)\|}{\|\phi(x)\|}
    Cost: n_perturb_samples * methods forward, n_perturb_samples * methods backward; methods is the cost of all methods.
    Not for: deciding which map is right: a constant map scores best; images of another scale than about 1 without a
        matching ``perturb_radius``.

    Args:
        perturb_radius: Radius of the L-infinity ball: a number in units of the input, ``"std"`` (the standard deviation of
            each number of the input; ``"0.02 std"`` for a fiftieth of it), a tensor ``(1, ...)``, or a tuple with one of
            these for each input. Default: ``"0.02 std"`` for tables and series, if it is known; otherwise 0.02.
        perturb_func: Function in Captum's form that takes (inputs, radius), or the inputs alone, and returns perturbed
            inputs. It receives one sample at a time, with the global generators seeded for that sample and draw; the radius
            is ``perturb_radius``. Default: uniform in the ball.
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

    perturb_radius: Scale = None
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
        if is_number(self.perturb_radius):
            check_number("SensitivityMax", "perturb_radius", self.perturb_radius, "0.02")

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> SensitivityMax:
        """Itself, if these inputs can be perturbed.

        Raises:
            ValueError: If they cannot.
        """
        if self.perturb_func is None:
            needs_floating("SensitivityMax", inputs)
        return self

    def evaluations_for(self, methods: Mapping[str, Method], again: PassCount) -> PassCount:
        """The maps again at every draw."""
        return again * self.n_perturb_samples

    def check_samples(self, explained: ExplainedFunction, samples: Samples) -> None:
        """Refuses a radius that does not fit the inputs.

        Raises:
            ValueError: If it does not.
        """
        if self.perturb_func is None:
            scales(explained, samples, "perturb_radius", self.perturb_radius)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """From 0, without unit; a maximum has no standard error. Lower is better."""
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
            radius = _RADIUS if self.perturb_radius is None else self.perturb_radius
            further = (radius,) if _takes_two(function) else ()
            return joined(by_user("sensitivity", lambda x: function(x, *further), explained, samples, indices))
        draws = [explained.draws.uniform(f"sensitivity/{i}", samples, indices, x) for i, x in enumerate(samples.inputs)]
        radii = scales(explained, samples, "perturb_radius", self.perturb_radius, _RADIUS)
        return tuple(x + (2 * d - 1) * r for x, d, r in zip(samples.inputs, draws, radii, strict=True))


def _takes_two(function: Callable[..., object]) -> bool:
    """Whether it can be called with inputs and a radius; functions without a signature can."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
