"""Infidelity: maps and perturbed inputs in, the error of the output change each map predicts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Metric, MetricInputs, Modality, Score
from lightning_explain.core.naming import nearest
from lightning_explain.core.points import value_of
from lightning_explain.core.probe import Baseline, Samples, flat
from lightning_explain.core.validation import check_number, check_whole
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.metrics._common import by_user, joined, needs_floating, table

PerturbFunc = Callable[..., Any]
_KINDS = ("gaussian", "square")
# No method has this name.
_CHANGES = ""


def infidelity(products: Tensor, changes: Tensor, normalize: bool = True) -> Tensor:
    """Mean squared difference, over draws, between the output change the map predicts and the actual one.

    The definition of ``captum.metrics.infidelity`` (Yeh et al. 2019). ``normalize`` first scales the map by the
    best-fitting factor, so that only its direction counts.

    Args:
        products: Sum of map times perturbation, ``(N, draws)``.
        changes: f(x) - f(x - perturbation), ``(N, draws)``.
        normalize: Scale the map first.

    Returns:
        ``(N,)``, in squared units of output.
    """
    if normalize:
        squares, crossed = products.square().sum(-1), (products * changes).sum(-1)
        # A map of zeros predicts nothing, whatever its scale.
        factor = torch.where(squares == 0, torch.zeros_like(squares), crossed / squares)
        products = factor.unsqueeze(-1) * products
    return (products - changes).square().mean(-1)


def jackknife(products: Tensor, changes: Tensor, normalize: bool = True) -> Tensor | None:
    """Standard error ``(N,)`` of :func:`infidelity` by leaving out each draw in turn; ``None`` for a single draw."""
    n = products.shape[1]
    if n < 2:
        return None
    # Sums over all draws but one, in float64 because they are differences of sums.
    a, b = products.double(), changes.double()
    aa, ab, bb = (total.sum(1, keepdim=True) - total for total in (a * a, a * b, b * b))
    factor = torch.where(aa == 0, torch.zeros_like(aa), ab / aa) if normalize else torch.ones_like(aa)
    left_out = (factor.square() * aa - 2 * factor * ab + bb).clamp(min=0) / (n - 1)
    return ((n - 1) * left_out.var(1, unbiased=False)).sqrt().to(products.dtype)


@dataclass(frozen=True)
class Infidelity(CheckedArguments, Metric):
    """Error of a map's prediction of output changes under perturbations (Yeh et al. 2019; ``captum.metrics.infidelity``).

    Cost: n_perturb_samples forward, 0 backward; once for all methods.
    Not for: maps without a sign (``Saliency()``); curves while the scale of the output grows: the score is in squared
        units of output.

    Args:
        perturb_func: ``"gaussian"`` (noise around the input, local), ``"square"`` (replaces a random square by the
            baseline, global), or a function in Captum's form that takes the inputs and returns (perturbation, perturbed
            inputs). It receives one sample at a time, with the global generators seeded for that sample and draw.
        n_perturb_samples: Draws for each sample.
        stdevs: Standard deviation of the noise, in units of the input.
        size: Side of the square in pixels. Default: a quarter of the shorter side of the image.
        baselines: Value that replaces the square: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        normalize: Scale the map by the best-fitting factor first. Otherwise the score depends on the map's scale.
        methods: Names of the methods to score. Default: all.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Infidelity()])
        >>> report.scores["infidelity"]["saliency"].shape
        torch.Size([2])
    """

    perturb_func: str | PerturbFunc = "gaussian"
    n_perturb_samples: int = 10
    stdevs: float = 0.1
    size: int | None = None
    baselines: Baseline = None
    normalize: bool = True
    methods: tuple[str, ...] | None = None

    higher_is_better: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.perturb_func) and self.perturb_func not in _KINDS:
            raise ValueError(
                f"Infidelity(perturb_func={self.perturb_func!r}): {nearest(str(self.perturb_func), _KINDS)} Or a callable."
            )
        check_whole("Infidelity", "n_perturb_samples", self.n_perturb_samples, 2 if self.normalize else 1)
        check_number("Infidelity", "stdevs", self.stdevs)

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> Infidelity:
        """Itself, if these inputs can be perturbed.

        Raises:
            ValueError: If they cannot.
        """
        if not callable(self.perturb_func):
            needs_floating("Infidelity", inputs)
        if self.perturb_func == "square":
            for x, modality in zip(inputs, modalities, strict=True):
                self._square(modality, x, torch.zeros_like)
        return self

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In squared units of output, with the jackknife over draws as standard error. Lower is better."""
        products, changes = self._collect(metric_inputs)
        return {
            "": {
                name: (infidelity(p, changes, self.normalize), jackknife(p, changes, self.normalize))
                for name, p in products.items()
            }
        }

    def _collect(self, metric_inputs: MetricInputs) -> tuple[dict[str, Tensor], Tensor]:
        explained, maps = metric_inputs.explained, metric_inputs.maps
        # Metrics with equal perturbations, normalized or not, share the outputs there.
        drawn = (self.perturb_func, self.n_perturb_samples, self.stdevs, self.size, self.baselines)
        key = ("infidelity", value_of(drawn), explained.forward)
        known: dict[str, Tensor] = explained.memory.get(key, {})

        def evaluate(samples: Samples, places: Tensor, draws: Tensor) -> dict[str, Tensor]:
            noise, points = self._perturb(explained, samples, draws)
            found = {name: _dot([m[places] for m in parts], noise) for name, parts in maps.items()}
            if not known:
                found[_CHANGES] = metric_inputs.outputs[places] - explained.evaluate(samples.at(points))
            return found

        found = known | table(metric_inputs, self.n_perturb_samples, [*maps, *{_CHANGES} - known.keys()], evaluate)
        explained.memory[key] = {_CHANGES: found[_CHANGES]}
        return {name: found[name] for name in maps}, found[_CHANGES]

    def _perturb(
        self, explained: ExplainedFunction, samples: Samples, indices: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if callable(self.perturb_func):
            pairs = by_user("infidelity", self.perturb_func, explained, samples, indices)
            if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
                raise TypeError(
                    "Infidelity(perturb_func=...) must return two values: return a tuple (perturbation, perturbed inputs)."
                )
            return joined([pair[0] for pair in pairs]), joined([pair[1] for pair in pairs])
        noise = tuple(self._noise(explained, samples, indices))
        return noise, tuple(x - n for x, n in zip(samples.inputs, noise, strict=True))

    def _noise(self, explained: ExplainedFunction, samples: Samples, indices: Tensor) -> Iterator[Tensor]:
        draws = explained.draws
        for i, (x, modality) in enumerate(zip(samples.inputs, explained.modalities, strict=True)):
            if self.perturb_func == "square":
                square = self._square(modality, x, partial(draws.uniform, "square", samples, indices))
                yield (x - explained.baseline(self.baselines, samples)[i]) * square
            else:
                yield draws.normal(f"infidelity/{i}", samples, indices, x) * self.stdevs

    def _square(self, modality: Modality, x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """1 inside a random square and 0 elsewhere, broadcastable to the input."""
        try:
            return modality.region(x, self.size, draw)
        except ValueError as error:
            owner = f'Infidelity(perturb_func="square", size={self.size})'
            raise ValueError(f"{owner} {error}; give those, or a perturb_func of your own.") from None


def _dot(maps: list[Tensor], noise: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([flat(m * n).sum(1) for m, n in zip(maps, noise, strict=True)]).sum(0)
