"""Shapley values: samples and features in, the mean contribution of each feature over feature orders out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb
from typing import Any, ClassVar

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple, bare, flat
from lightning_explain.core.validation import refused
from lightning_explain.engine.captum_adapter import attribute
from lightning_explain.engine.features import FeatureMask, Features, features_of, shared
from lightning_explain.engine.noise import column, mean_over_draws, narrowed
from lightning_explain.methods._base import CaptumMethod, SumsUp, each

LARGEST = 12


class OneByOne(CaptumMethod):
    """Base class of methods that Captum computes for one sample at a time, with the global generators seeded for it."""

    backward_rule = "none"
    multiplies_by_inputs = True

    captum_class: ClassVar[Any]

    n_samples: int
    feature_mask: FeatureMask = None

    def explainer(self, explained: ExplainedFunction) -> Any:
        """Captum's object."""
        return self.captum_class(explained.forward)

    def attribute_one(self, explained: ExplainedFunction, sample: Samples, **further: Any) -> Attribution:
        """The attribution of one sample; ``further`` are arguments for Captum."""
        baselines = explained.baseline(self.baselines, sample)
        # Captum casts baselines to the dtype of whole numbers.
        inputs = each(lambda x, b: x.to(torch.promote_types(x.dtype, b.dtype)), sample.inputs, baselines)
        return attribute(
            self.explainer(explained).attribute,
            sample.at(inputs),
            n_samples=self.n_samples,
            baselines=bare(baselines),
            feature_mask=bare(features_of(self.feature_mask, explained, sample).masks),
            perturbations_per_eval=explained.limit,
            **further,
        )

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        found = []
        for sample in samples.split(1):
            with explained.draws.seeded("features", sample, torch.zeros(1, dtype=torch.long)):
                one = as_tuple(self.attribute_one(explained, sample))
            found.append(self.completed(explained, one))
        joined = tuple(torch.cat(column) for column in zip(*found, strict=True))
        return bare(shared(joined, self.feature_mask, explained, samples))

    def completed(self, explained: ExplainedFunction, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The attribution of one sample in a shape that all samples of the probe have."""
        return found


@dataclass(frozen=True)
class ShapleyValueSampling(OneByOne, SumsUp):
    r"""Shapley values estimated from random feature orders (Castro et al. 2009; ``captum.attr.ShapleyValueSampling``).

    The orders are keyed by sample id: every explanation repeats them.

    Formula: \phi_g = \frac{1}{n} \sum_{\pi} \left(f(x_{S_\pi \cup g}) - f(x_{S_\pi})\right),\quad S_\pi\ \text{the
        features before}\ g\ \text{in the order}\ \pi
    Cost: n_samples * F + 1 forward, 0 backward; F features, without a mask one for each number of the input.
    Not for: images without a ``feature_mask``: tens of thousands of passes for each sample; baselines unlike the data:
        half of the points are mixtures with them.

    Args:
        n_samples: Random orders for each sample.
        baselines: Value of a missing feature: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or
            ``"blur"``.
        antithetic: Draw the orders in pairs, each with its reverse (Mitchell et al. 2022), whose errors partly cancel. The mean of
            a pair, not the order, is then one independent draw.

    Further arguments: :class:`FeatureAblation`.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` or ``feature_mask`` is of another type.

    Example:
        >>> method = m.ShapleyValueSampling(n_samples=5, feature_mask={"grid": 4})
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["shapley_value_sampling"].shape
        torch.Size([2, 3, 8, 8])
    """

    captum_class = captum.ShapleyValueSampling

    n_samples: int = 25
    baselines: Baseline = None
    feature_mask: FeatureMask = None
    antithetic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.antithetic and self.n_samples % 2:
            allowed = "an even number with antithetic=True, because orders come in pairs"
            raise refused("ShapleyValueSampling", "n_samples", self.n_samples, allowed)

    def explainer(self, explained: ExplainedFunction) -> Any:
        """Captum's object, which draws the orders."""
        found = super().explainer(explained)
        if self.antithetic:
            found.permutation_generator = _in_pairs
        return found


@dataclass(frozen=True)
class ShapleyValues(SumsUp):
    r"""Exact Shapley values of up to 12 features (Shapley 1953; ``captum.attr.ShapleyValues``).

    Gives Captum's numbers with fewer passes: evaluates each of the 2^F sets of F features once instead of each of the
    F! orders.

    Formula: \phi_g = \sum_{S \subseteq F \setminus g} \frac{|S|!\,(|F| - |S| - 1)!}{|F|!} \left(f(x_{S \cup g}) -
        f(x_S)\right)
    Cost: 2**F forward, 0 backward; F features.
    Not for: more than 12 features (refused): use ShapleyValueSampling; baselines unlike the data: the points are
        mixtures with them.

    Args:
        feature_mask: How input elements form features: a tensor of whole numbers, ``{"grid": 8}`` (patches of 8 by 8
            pixels), ``{"superpixels": 8}`` (segments of each sample), or one of these for each input; at most 12
            features.

    Further arguments: :class:`ShapleyValueSampling`.

    Raises:
        ValueError: If ``baselines`` or ``feature_mask`` is not allowed.
        TypeError: If one of them is of another type.

    Example:
        >>> report = explain(model, probe, methods=[m.ShapleyValues(feature_mask={"grid": 4})], metrics=[])
        >>> report.attributions["shapley_values"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule = "none"

    baselines: Baseline = None
    feature_mask: FeatureMask = None

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Any = None) -> Features:
        """The features of the samples, unless there are too many.

        Raises:
            ValueError: If there are more than 12.
        """
        features = features_of(self.feature_mask, explained, samples)
        if features.count > LARGEST:
            fix = f"give a feature_mask with at most {LARGEST} of them (large patches), or use ShapleyValueSampling"
            raise ValueError(f"ShapleyValues evaluates all sets of the {features.count} features; {fix}.")
        return features

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output.

        Raises:
            ValueError: If there are more than 12 features.
        """
        features, missing = self.fits(explained, samples), explained.baseline(self.baselines, samples)
        weights = _weights(features.count).to(samples.inputs[0].device)

        def one(part: Samples, sets: Tensor) -> tuple[Tensor, ...]:
            times = len(part) // len(samples)
            masks = [m.expand(len(samples), *m.shape[1:]).repeat_interleave(times, 0) for m in features.masks]
            sets = sets.to(masks[0].device)
            absent = [b.repeat_interleave(times, 0) for b in missing]
            points = each(
                lambda m, x, b: torch.where((column(sets, m) >> m) & 1 == 1, x, b), masks, part.inputs, absent
            )
            return (explained.evaluate(part.at(points))[:, None] * weights[sets],)

        # Mean over feature sets of the set's output times its weight for each feature, (N, F).
        (mean,) = mean_over_draws(explained, samples, 2**features.count, one, powers=(1,))
        values = mean[0] * 2**features.count
        found = [values.gather(1, flat(m.expand(len(samples), *m.shape[1:]))) for m in features.masks]
        shaped = tuple(f.reshape_as(x) for f, x in zip(found, samples.inputs, strict=True))
        return bare(narrowed(shared(shaped, self.feature_mask, explained, samples), samples))


def _in_pairs(count: int, orders: int) -> Iterator[list[int]]:
    """Random orders of so many features, each followed by its reverse."""
    for _ in range(orders // 2):
        order = torch.randperm(count).tolist()
        yield order
        yield order[::-1]


def _weights(count: int) -> Tensor:
    """Weight of the output of each feature set in the Shapley value of each feature, ``(2^F, F)``."""
    inside = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
    size = inside.sum(1, keepdim=True)
    with_it = [0.0, *(1 / (count * comb(count - 1, s - 1)) for s in range(1, count + 1))]
    without = [*(1 / (count * comb(count - 1, s)) for s in range(count)), 0.0]
    plus, minus = (torch.tensor(w, dtype=torch.float64)[size] for w in (with_it, without))
    return torch.where(inside == 1, plus, -minus)
