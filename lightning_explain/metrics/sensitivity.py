"""Sensitivity: maps at slightly perturbed inputs in, the largest relative change of each map out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Modality, Score
from lightning_explain.core.probe import Attribution, Samples, flat
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_number, is_number
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.engine.noise import Scale, in_std, scales
from lightning_explain.engine.shifts import present, spread
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
            these for each input. Default: ``"0.02 std"`` for tables and series, if it is known; otherwise 0.02. Ids do not move: what
            their embeddings return does, by default by 0.02 of its standard deviation over the tokens of the probe.
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
    _of_ids: ClassVar[bool] = False
    needs: ClassVar[str] = "a map that has a place on the image, of layers that look up the ids where inputs are ids"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm_ord not in ("fro", "inf"):
            check_number("SensitivityMax", "norm_ord", self.norm_ord)
        if is_number(self.perturb_radius):
            check_number("SensitivityMax", "perturb_radius", self.perturb_radius, "0.02")

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> SensitivityMax:
        """Itself, which knows whether there are ids."""
        found = replace(self)
        object.__setattr__(found, "_of_ids", not all(x.is_floating_point() for x in inputs))
        return found

    def can_score(self, method: Method, explained: ExplainedFunction) -> bool:
        """Whether something that the method reads can be perturbed: the inputs, or what the embeddings of ids return."""
        if self.perturb_func is not None or not explained.lookups:
            return True
        inner = method.innermost
        return not inner.of_input and any(name in explained.lookups for name in inner.layers)

    def evaluations_for(self, methods: Mapping[str, Method], again: PassCount) -> PassCount:
        """The maps again at every draw, and the standard deviations of embeddings."""
        return again * self.n_perturb_samples + PassCount(int(self._of_ids and self.perturb_func is None), 0)

    def check_samples(self, explained: ExplainedFunction, samples: Samples) -> None:
        """Refuses inputs that cannot be perturbed, and a radius that does not fit them.

        Raises:
            ValueError: If they cannot, or it does not.
        """
        if self.perturb_func is None:
            looked_up = {lookup.input for lookup in explained.lookups.values()}
            needs_floating("SensitivityMax", tuple(x for i, x in enumerate(samples.inputs) if i not in looked_up))
            scales(explained, samples, "perturb_radius", self.perturb_radius)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """From 0, without unit; a maximum has no standard error. Lower is better."""
        explained, maps = metric_inputs.explained, metric_inputs.maps

        def changes(samples: Samples, places: Tensor, draws: Tensor) -> dict[str, Tensor]:
            shifts = {} if self.perturb_func is not None else self._shifts(metric_inputs, samples, draws)
            moved = metric_inputs.explain(samples.at(self._perturb(explained, samples, draws)), shifts)
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
        radii = scales(explained, samples, "perturb_radius", self.perturb_radius, _RADIUS)
        return tuple(
            self._moved(explained, samples, indices, i, radius) if x.is_floating_point() else x
            for i, (x, radius) in enumerate(zip(samples.inputs, radii, strict=True))
        )

    def _moved(self, explained: ExplainedFunction, samples: Samples, indices: Tensor, i: int, radius: Any) -> Tensor:
        """An input in the ball, without its elements that embeddings look up."""
        x = samples.inputs[i]
        draw = explained.draws.uniform(f"sensitivity/{i}", samples, indices, x)
        still = [e for lookup in explained.lookups.values() if lookup.input == i for e in lookup.elements or ()]
        change: Tensor = (2 * draw - 1) * radius
        if still:
            flat(change)[:, still] = 0
        return x + change

    def _shifts(self, metric_inputs: MetricInputs, samples: Samples, indices: Tensor) -> dict[str, Tensor]:
        """Draws from the ball, for what each embedding returns that the scored methods read."""
        explained = metric_inputs.explained
        read = [str(name) for key in metric_inputs.maps for name in metric_inputs.methods[key].innermost.layers]
        return {name: self._shift(explained, samples, indices, name) for name in explained.lookups if name in read}

    def _shift(self, explained: ExplainedFunction, samples: Samples, indices: Tensor, name: str) -> Tensor:
        shape, deviation = spread(explained, name)
        like = deviation.new_empty(()).expand(len(samples), *shape)
        draw = explained.draws.uniform(f"sensitivity/{name}", samples, indices, like)
        radius = embedding_radius(self.perturb_radius, deviation)
        return (2 * draw - 1) * radius * present(explained, samples, name, shape)


def embedding_radius(scale: Scale, deviation: Tensor) -> Tensor:
    """The radius in units of what an embedding returns: a number as it is, else so many standard deviations, by default 0.02."""
    if is_number(scale):
        return deviation.new_tensor(float(scale))
    return deviation * (in_std(scale) if isinstance(scale, str) else _RADIUS)


def _takes_two(function: Callable[..., object]) -> bool:
    """Whether it can be called with inputs and a radius; functions without a signature can."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
