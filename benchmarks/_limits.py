"""What a random method must be where nothing is left to chance, or to few samples."""

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
    """A method with arguments that leave nothing to chance.

    Args:
        method: The method.
        expected: What it must be: Captum's numbers of a method that is not random.
        what: In words.
        samples: The samples, where they are not all of the bench's.
    """

    method: Method
    expected: Callable[[], Tensor]
    what: str
    samples: slice | None = None


def limits(b: Bench) -> Iterator[Limit]:
    """One for each random method."""
    tunnel = m.NoiseTunnel(m.InputXGradient(), nt_samples=3, stdevs=0.0)
    yield Limit(tunnel, lambda: primary.input_x_gradient(b.by_hand, b.x, b.y), "no noise: the method inside")
    yield from _shap(b)
    yield from _whole(b)


def _shap(b: Bench) -> Iterator[Limit]:
    """Where the baseline is the sample itself every point of the line is."""
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
    """One feature that is the whole sample; or all four sets of two features."""
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
    """With two features of which one is as in the baseline f is additive, and any sample gives the exact values."""
    one = slice(1)
    missing = b.x[one].where(halves == 0, b.x.new_tensor(0.3))

    def removed() -> Tensor:
        return ca.FeatureAblation(b.by_hand).attribute(b.x[one], missing, target=b.y[one], feature_mask=halves)

    return Limit(m.KernelShap(24, missing, halves), removed, "one feature that matters: f(x) - f(b)", one)


def found(b: Bench, limit: Limit) -> Tensor:
    """Ours."""
    samples = limit.samples or slice(None)
    probe = Probe(b.x[samples], b.y[samples])
    value = explain(b.model, probe, {"it": limit.method}, []).attributions["it"]
    assert isinstance(value, Tensor)
    return value
