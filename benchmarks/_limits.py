"""Exact values of random methods: arguments under which nothing is random, and the result that must follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import captum.attr as ca
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from torch import Tensor

from _cases import Bench
from captum_reference import layers, neurons, perturbation, primary
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method


@dataclass(frozen=True, eq=False)
class Limit:
    """A method whose arguments leave nothing to chance, and its exact result.

    Args:
        method: The method.
        expected: The exact result: Captum's numbers of a deterministic method.
        what: The reason in words, for the table.
        samples: The samples to use; all of the bench's by default.
    """

    method: Method
    expected: Callable[[], Tensor]
    what: str
    samples: slice | None = None


def limits(b: Bench) -> Iterator[Limit]:
    """One limit for each random method."""
    tunnel = m.NoiseTunnel(m.InputXGradient(), nt_samples=3, stdevs=0.0)
    yield Limit(tunnel, lambda: primary.input_x_gradient(b.by_hand, b.x, b.y), "no noise: the method inside")
    yield from _shap(b)
    yield from _whole(b)


def _shap(b: Bench) -> Iterator[Limit]:
    """If the baseline is the sample itself, so is every point of the line."""
    one = slice(1)
    x, y = b.x[one], b.y[one]
    itself = {"n_samples": 2, "stdevs": 0.0, "baselines": x, "multiply_by_inputs": False}
    what = "baseline = sample: the gradient"
    yield Limit(m.GradientShap(**itself), lambda: primary.saliency(b.by_hand, x, y), what, one)
    at = (b.by_hand, x, y, b.watched)
    yield Limit(m.LayerGradientShap(b.layer, **itself), lambda: layers.layer_gradient(*at), what, one)
    neuron = m.NeuronGradientShap(b.layer, b.unit, **itself)
    yield Limit(neuron, lambda: neurons.neuron_gradient(*at, b.unit), what, one)


def _whole(b: Bench) -> Iterator[Limit]:
    """One feature that covers the whole sample; or all four coalitions of two features."""
    pair = slice(2)
    everything, halves = torch.zeros_like(b.quarters), b.quarters // 2

    def swapped() -> Tensor:
        return perturbation.feature_permutation(b.by_hand, b.x[pair], b.y[pair], everything, torch.tensor([[1, 0]]))

    def removed() -> Tensor:
        return perturbation.feature_ablation(b.by_hand, b.x, b.y, everything)

    yield Limit(m.FeaturePermutation(feature_mask=everything), swapped, "two samples: they are swapped", pair)
    sampled = m.ShapleyValueSampling(2, baselines=0.3, feature_mask=everything)
    yield Limit(sampled, removed, "one feature: f(x) - f(b)")
    line = m.Lime(12, 0.3, everything, interpretable_model=SkLearnLinearRegression())
    yield Limit(line, removed, "one feature, least squares: f(x) - f(b)")
    yield _kernel_shap(b, halves)


def _kernel_shap(b: Bench, halves: Tensor) -> Limit:
    """If one of two features equals the baseline, f is additive, and any coalitions give the exact values."""
    one = slice(1)
    missing = b.x[one].where(halves == 0, b.x.new_tensor(0.3))

    def removed() -> Tensor:
        return ca.FeatureAblation(b.by_hand).attribute(b.x[one], missing, target=b.y[one], feature_mask=halves)

    return Limit(m.KernelShap(24, missing, halves), removed, "one feature that matters: f(x) - f(b)", one)


def found(b: Bench, limit: Limit) -> Tensor:
    """This package's map."""
    samples = limit.samples or slice(None)
    probe = Probe(b.x[samples], b.y[samples])
    value = explain(b.model, probe, {"it": limit.method}, []).attributions["it"]
    assert isinstance(value, Tensor)
    return value
