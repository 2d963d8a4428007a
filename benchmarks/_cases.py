"""The 38 methods twice: from this package, and from Captum with the same arguments and the same draws."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import captum.attr as ca
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from captum_reference import layers, neurons, perturbation, primary
from comparing import keyed, permutations, prepared, seeded_samples
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method

SAMPLES = 4
# Methods that send each sample through the network only a few times.
CHEAP = {
    *("Deconvolution", "DeepLift", "GuidedBackprop", "GuidedGradCam", "InputXGradient", "LRP", "LayerActivation"),
    *("LayerDeepLift", "LayerGradCam", "LayerGradientXActivation", "LayerLRP", "NeuronDeconvolution", "NeuronDeepLift"),
    *("NeuronGradient", "NeuronGuidedBackprop", "Saliency"),
}


@dataclass(frozen=True, eq=False)
class Bench:
    """A network as trained, a copy repaired by hand for Captum, and samples.

    Args:
        name: For the table.
        model: The network as trained.
        by_hand: The copy: eval mode, no in-place operations, a separate module for each activation.
        x: Samples ``(N, C, H, W)``.
        y: Labels ``(N,)``.
        layer: A layer with a map, in both networks.
        neck: A layer that all information passes through, if one is known.
        unit: A unit of ``layer``, as ``neuron_selector``.
    """

    name: str
    model: nn.Module
    by_hand: nn.Module
    x: Tensor
    y: Tensor
    layer: str
    neck: str | None = None
    unit: Any = (3, 2, slice(1, 4))

    def double(self) -> Bench:
        """Copies in float64."""
        model, by_hand = (copy.deepcopy(network).double() for network in (self.model, self.by_hand))
        return replace(self, model=model, by_hand=by_hand, x=self.x.double())

    @property
    def watched(self) -> nn.Module:
        return self.by_hand.get_submodule(self.layer)

    @cached_property
    def uncanonized(self) -> nn.Module:
        """The network for LRP, which canonizes nothing and needs layers that Captum knows: eval mode, nothing in place."""
        return prepared(copy.deepcopy(self.model))

    @cached_property
    def quarters(self) -> Tensor:
        """Four features ``(1, 1, H, W)``."""
        height, width = self.x.shape[-2:]
        down, right = (torch.arange(size) // (size // 2) for size in (height, width))
        return (down[:, None] * 2 + right).reshape(1, 1, height, width)

    @cached_property
    def channels(self) -> Tensor:
        """Four features of the layer ``(1, C, h, w)``."""
        with torch.no_grad():
            shape = layers.layer_activation(self.by_hand, self.x[:1], self.y[:1], self.watched).shape
        return (torch.arange(shape[1]) * 4 // shape[1]).reshape(1, -1, 1, 1).expand(shape).contiguous()

    @cached_property
    def baselines(self) -> Tensor:
        """Three reference samples, each of a single brightness."""
        return torch.linspace(-1, 1, 3).to(self.x).reshape(3, 1, 1, 1).expand(3, *self.x.shape[1:]).contiguous()

    @cached_property
    def draws(self) -> dict[str, Tensor]:
        """The random numbers that this package's methods draw for these samples."""
        return {
            "draws": self.noise,
            "baselines": self.baselines,
            "chosen": (keyed("baseline", SAMPLES, uniform=True, shape=(), like=self.x) * 3).long(),
            "weights": keyed("coefficient", SAMPLES, uniform=True, shape=(), like=self.x),
        }

    @cached_property
    def noise(self) -> Tensor:
        return keyed("noise/0", SAMPLES, shape=tuple(self.x.shape[1:]), like=self.x)

    def window(self) -> dict[str, tuple[int, ...]]:
        channels, size, _ = self.x.shape[1:]
        return {"sliding_window_shapes": (channels, size // 2, size // 2), "strides": (channels, size // 4, size // 4)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """One method on one bench.

    Args:
        name: Captum's class.
        method: This package's method.
        captum: Returns Captum's numbers.
    """

    name: str
    method: Method
    captum: Callable[[], Tensor]


def comparisons(b: Bench) -> Iterator[Comparison]:
    """All methods."""
    for table in (_inputs, _layers, _neurons, _forward_only):
        for method, call in table(b):
            yield Comparison(type(method).__name__, method, call)


def _inputs(b: Bench) -> list[tuple[Method, Callable[[], Tensor]]]:
    on: tuple[Any, ...] = (b.by_hand, b.x, b.y)
    tunnel = {"nt_samples": SAMPLES, "stdevs": 0.4}
    return [
        (m.Saliency(), partial(primary.saliency_abs, *on)),
        (m.InputXGradient(), partial(primary.input_x_gradient, *on)),
        (m.GuidedBackprop(), partial(primary.guided_backprop, *on)),
        (m.Deconvolution(), partial(primary.deconvolution, *on)),
        (m.IntegratedGradients(n_steps=13, baselines=0.3), partial(primary.integrated_gradients, *on)),
        (m.GradientShap(SAMPLES, 0.2, b.baselines), lambda: primary.gradient_shap(*on, **b.draws)),
        (m.DeepLift(baselines=0.3, eps=1e-9), partial(primary.deep_lift, *on)),
        (m.DeepLiftShap(baselines=b.baselines), partial(primary.deep_lift_shap, *on, b.baselines)),
        (m.LRP(), lambda: primary.lrp(b.uncanonized, b.x, b.y)),
        (
            m.NoiseTunnel(m.InputXGradient(), nt_type="smoothgrad", **tunnel),
            lambda: primary.noise_tunnel(ca.InputXGradient(b.by_hand), b.x, b.y, b.noise, "smoothgrad"),
        ),
    ]


def _layers(b: Bench) -> list[tuple[Method, Callable[[], Tensor]]]:
    on: tuple[Any, ...] = (b.by_hand, b.x, b.y, b.watched)
    path = {"n_steps": 7, "baselines": 0.3}
    return [
        (m.GuidedGradCam(b.layer, interpolate_mode="bilinear"), partial(layers.guided_grad_cam, *on)),
        (m.LayerActivation(b.layer), partial(layers.layer_activation, *on)),
        (m.LayerGradCam(b.layer, relu_attributions=True), partial(layers.layer_grad_cam, *on)),
        (m.LayerGradientXActivation(b.layer), partial(layers.layer_gradient_x_activation, *on)),
        (m.LayerConductance(b.layer, **path), partial(layers.layer_conductance, *on)),
        (m.InternalInfluence(b.layer, method="riemann_right", **path), partial(layers.internal_influence, *on)),
        (m.LayerIntegratedGradients(b.layer, **path), partial(layers.layer_integrated_gradients, *on)),
        (m.LayerGradientShap(b.layer, SAMPLES, 0.2, b.baselines), lambda: layers.layer_gradient_shap(*on, **b.draws)),
        (m.LayerDeepLift(b.layer, baselines=0.3), partial(layers.layer_deep_lift, *on)),
        (m.LayerDeepLiftShap(b.layer, b.baselines), partial(layers.layer_deep_lift_shap, *on, b.baselines)),
        (
            m.LayerLRP(b.layer),
            lambda: layers.layer_lrp(b.uncanonized, b.x, b.y, b.uncanonized.get_submodule(b.layer)),
        ),
        (
            m.LayerFeatureAblation(b.layer, layer_baselines=0.4, layer_mask=b.channels),
            partial(perturbation.layer_feature_ablation, *on, b.channels),
        ),
    ]


def _neurons(b: Bench) -> list[tuple[Method, Callable[[], Tensor]]]:
    on: tuple[Any, ...] = (b.by_hand, b.x, b.y, b.watched, b.unit)
    at = (b.layer, b.unit)
    path = {"n_steps": 7, "baselines": 0.3}
    shap = {"n_samples": SAMPLES, "stdevs": 0.2, "baselines": b.baselines}
    return [
        (m.NeuronGradient(*at), partial(neurons.neuron_gradient, *on)),
        (m.NeuronGuidedBackprop(*at), partial(neurons.neuron_guided_backprop, *on)),
        (m.NeuronDeconvolution(*at), partial(neurons.neuron_deconvolution, *on)),
        (m.NeuronIntegratedGradients(*at, **path), partial(neurons.neuron_integrated_gradients, *on)),
        (m.NeuronConductance(*at, method="gausslegendre", **path), partial(neurons.neuron_conductance, *on)),
        (m.NeuronGradientShap(*at, **shap), lambda: neurons.neuron_gradient_shap(*on, **b.draws)),
        (m.NeuronDeepLift(*at, baselines=0.3), partial(neurons.neuron_deep_lift, *on)),
        (
            m.NeuronDeepLiftShap(*at, baselines=b.baselines, multiply_by_inputs=False),
            partial(neurons.neuron_deep_lift_shap, *on, b.baselines),
        ),
        (
            m.NeuronFeatureAblation(*at, baselines=0.3, feature_mask=b.quarters),
            partial(perturbation.neuron_feature_ablation, *on, b.quarters),
        ),
    ]


def _forward_only(b: Bench) -> list[tuple[Method, Callable[[], Tensor]]]:
    on: tuple[Any, ...] = (b.by_hand, b.x, b.y)
    where = {"baselines": 0.3, "feature_mask": b.quarters}

    def by_sample(theirs: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: seeded_samples(lambda x, y: theirs(b.by_hand, x, y, b.quarters), (b.x, b.y))

    return [
        (m.FeatureAblation(**where), partial(perturbation.feature_ablation, *on, b.quarters)),
        (
            m.FeaturePermutation(feature_mask=b.quarters),
            lambda: perturbation.feature_permutation(*on, b.quarters, permutations(4, b.x)),
        ),
        (m.Occlusion(**b.window(), baselines=-0.7), partial(perturbation.occlusion, *on, *b.window().values())),
        (m.ShapleyValues(**where), partial(perturbation.shapley_values, *on, b.quarters)),
        (m.ShapleyValueSampling(6, **where), by_sample(perturbation.shapley_value_sampling)),
        (m.Lime(n_samples=17, **where), by_sample(perturbation.lime)),
        (m.KernelShap(n_samples=17, **where), by_sample(perturbation.kernel_shap)),
    ]
