"""Every method and metric as a user would call Captum by hand. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import captum.attr as ca
import captum.metrics as cm
import numpy as np
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr._core.lime import get_exp_kernel_similarity_function
from torch import Tensor, nn


def saliency(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.Saliency(model).attribute(x, target=y, abs=False)


def saliency_abs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.Saliency(model).attribute(x, target=y)


def input_x_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.InputXGradient(model).attribute(x, target=y)


def guided_backprop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.GuidedBackprop(model).attribute(x, target=y)


def integrated_gradients(model: nn.Module, x: Tensor, y: Tensor, baselines: Tensor | float = 0.3) -> Tensor:
    return ca.IntegratedGradients(model).attribute(x, baselines, target=y, n_steps=13)


def integrated_gradients_riemann(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    explainer = ca.IntegratedGradients(model, multiply_by_inputs=False)
    return explainer.attribute(x, -0.5, target=y, n_steps=9, method="riemann_trapezoid")


def occlusion(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.Occlusion(model).attribute(x, (1, 3, 2), strides=(1, 2, 1), baselines=-0.7, target=y)


def layer_grad_cam(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerGradCam(model, layer).attribute(x, target=y, relu_attributions=True)


def layer_grad_cam_input(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerGradCam(model, layer).attribute(x, target=y, attribute_to_layer_input=True)


def layer_grad_cam_channels(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerGradCam(model, layer).attribute(x, target=y, attr_dim_summation=False)


def layer_gradient_x_activation(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerGradientXActivation(model, layer).attribute(x, target=y)


def layer_gradient(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerGradientXActivation(model, layer, multiply_by_inputs=False).attribute(x, target=y)


@contextmanager
def noise(values: Tensor) -> Iterator[None]:
    """Captum adds these draws ``(N, samples, ...)``, one sample at a time, instead of its own."""
    remaining = iter(values.unbind(1))
    with mock.patch("torch.normal", lambda mean, std: mean + std * next(remaining)):
        yield


def noise_tunnel(
    explainer: ca.Attribution, x: Tensor, y: Tensor, draws: Tensor, nt_type: str, **arguments: object
) -> Tensor:
    """NoiseTunnel around a Captum object, with given draws ``(N, samples, ...)``."""
    with noise(draws):
        return ca.NoiseTunnel(explainer).attribute(
            x, nt_type=nt_type, nt_samples=draws.shape[1], nt_samples_batch_size=1, stdevs=0.4, target=y, **arguments
        )


def gradient_shap(
    model: nn.Module, x: Tensor, y: Tensor, draws: Tensor, baselines: Tensor, chosen: Tensor, weights: Tensor
) -> Tensor:
    """GradientShap with given draws: noise ``(N, S, ...)``, baseline indices ``(N, S)``, coefficients ``(N, S)``."""
    return _on_draws(
        lambda: ca.GradientShap(model).attribute(x, baselines, n_samples=1, stdevs=0.2, target=y),
        draws,
        chosen,
        weights,
    )


def _on_draws(attribute: Callable[[], Tensor], draws: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    found = []
    for s in range(draws.shape[1]):
        with (
            noise(draws[:, s : s + 1]),
            mock.patch("numpy.random.choice", lambda k, size, s=s: chosen[:, s].numpy()),
            mock.patch("numpy.random.uniform", lambda a, b, n, s=s: weights[:, s].numpy().astype(np.float32)),
        ):
            found.append(attribute())
    return torch.stack(found).mean(0)


def deconvolution(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.Deconvolution(model).attribute(x, target=y)


def guided_grad_cam(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.GuidedGradCam(model, layer).attribute(x, target=y, interpolate_mode="bilinear")


def deep_lift(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.DeepLift(model, eps=1e-9).attribute(x, 0.3, target=y)


def deep_lift_multipliers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.DeepLift(model, multiply_by_inputs=False).attribute(x, -0.2, target=y)


def deep_lift_shap(model: nn.Module, x: Tensor, y: Tensor, baselines: Tensor) -> Tensor:
    return ca.DeepLiftShap(model).attribute(x, baselines, target=y)


def layer_deep_lift(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerDeepLift(model, layer).attribute(x, 0.3, target=y)


def layer_deep_lift_input(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    explainer = ca.LayerDeepLift(model, layer, multiply_by_inputs=False)
    return explainer.attribute(x, 0.3, target=y, attribute_to_layer_input=True)


def layer_deep_lift_shap(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, baselines: Tensor) -> Tensor:
    return ca.LayerDeepLiftShap(model, layer).attribute(x, baselines, target=y)


def layer_activation(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerActivation(model, layer).attribute(x)


def layer_activation_input(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerActivation(model, layer).attribute(x, attribute_to_layer_input=True)


def layer_conductance(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerConductance(model, layer).attribute(x, 0.3, target=y, n_steps=7)


def layer_conductance_riemann(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    explainer = ca.LayerConductance(model, layer)
    return explainer.attribute(x, -0.5, target=y, n_steps=6, method="riemann_trapezoid", attribute_to_layer_input=True)


def internal_influence(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.InternalInfluence(model, layer).attribute(x, 0.3, target=y, n_steps=7, method="riemann_right")


def layer_integrated_gradients(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.LayerIntegratedGradients(model, layer).attribute(x, 0.3, target=y, n_steps=7)


def layer_integrated_gradients_input(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    explainer = ca.LayerIntegratedGradients(model, layer, multiply_by_inputs=False)
    return explainer.attribute(x, 0.3, target=y, n_steps=5, method="riemann_left", attribute_to_layer_input=True)


def layer_feature_ablation(
    model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, layer_mask: Tensor, baseline: float = 0.4
) -> Tensor:
    return ca.LayerFeatureAblation(model, layer).attribute(x, baseline, target=y, layer_mask=layer_mask)


def layer_gradient_shap(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layer: nn.Module,
    draws: Tensor,
    baselines: Tensor,
    chosen: Tensor,
    weights: Tensor,
) -> Tensor:
    """LayerGradientShap with given draws, as in ``gradient_shap``."""
    return _on_draws(
        lambda: ca.LayerGradientShap(model, layer).attribute(x, baselines, n_samples=1, stdevs=0.2, target=y),
        draws,
        chosen,
        weights,
    )


def neuron_gradient(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronGradient(model, layer).attribute(x, neuron)


def neuron_gradient_input(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronGradient(model, layer).attribute(x, neuron, attribute_to_neuron_input=True)


def neuron_guided_backprop(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronGuidedBackprop(model, layer).attribute(x, neuron)


def neuron_deconvolution(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronDeconvolution(model, layer).attribute(x, neuron)


def neuron_integrated_gradients(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronIntegratedGradients(model, layer).attribute(x, neuron, torch.full_like(x, 0.3), n_steps=7)


def neuron_conductance(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronConductance(model, layer).attribute(x, neuron, 0.3, target=y, n_steps=7, method="gausslegendre")


def neuron_deep_lift(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronDeepLift(model, layer).attribute(x, neuron, 0.3)


def neuron_deep_lift_input(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object) -> Tensor:
    return ca.NeuronDeepLift(model, layer).attribute(x, neuron, 0.3, attribute_to_neuron_input=True)


def neuron_deep_lift_shap(
    model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object, baselines: Tensor
) -> Tensor:
    return ca.NeuronDeepLiftShap(model, layer, multiply_by_inputs=False).attribute(x, neuron, baselines)


def neuron_feature_ablation(
    model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object, mask: Tensor
) -> Tensor:
    return ca.NeuronFeatureAblation(model, layer).attribute(x, neuron, 0.3, feature_mask=mask)


def neuron_gradient_shap(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layer: nn.Module,
    neuron: object,
    draws: Tensor,
    baselines: Tensor,
    chosen: Tensor,
    weights: Tensor,
) -> Tensor:
    """NeuronGradientShap with given draws, as in ``gradient_shap``."""
    return _on_draws(
        lambda: ca.NeuronGradientShap(model, layer).attribute(x, neuron, baselines, n_samples=1, stdevs=0.2),
        draws,
        chosen,
        weights,
    )


def feature_ablation(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    return ca.FeatureAblation(model).attribute(x, 0.3, target=y, feature_mask=mask)


def feature_permutation(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor, permutations: Tensor) -> Tensor:
    """FeaturePermutation with given permutations ``(features, N)``: which row each row takes the feature from."""
    remaining = iter(permutations)

    def permute(inputs: Tensor, feature: Tensor) -> Tensor:
        return torch.where(feature, inputs[next(remaining)], inputs)

    return ca.FeaturePermutation(model, permute).attribute(x, target=y, feature_mask=mask)


def shapley_values(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.ShapleyValues(model).attribute(x, 0.3, target=y, feature_mask=mask, perturbations_per_eval=8)


def shapley_value_sampling(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.ShapleyValueSampling(model).attribute(x, 0.3, target=y, feature_mask=mask, n_samples=6)


def lime(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.Lime(model).attribute(x, 0.3, target=y, feature_mask=mask, n_samples=17)


def lime_ridge(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    explainer = ca.Lime(
        model, SkLearnRidge(alpha=0.1), get_exp_kernel_similarity_function("euclidean", 3.0), uneven_features
    )
    return explainer.attribute(x, 0.3, target=y, feature_mask=mask, n_samples=17, return_input_shape=False)


def uneven_features(inputs: Tensor, **options: int) -> Tensor:
    return (torch.rand(1, options["num_interp_features"]) < 0.7).long()


def kernel_shap(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.KernelShap(model).attribute(x, 0.3, target=y, feature_mask=mask, n_samples=17)


def lrp(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.LRP(model).attribute(x, target=y)


def layer_lrp(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, of_input: bool = False) -> Tensor:
    found = ca.LayerLRP(model, layer).attribute(x, target=y, attribute_to_layer_input=of_input)
    return found[0] if isinstance(found, tuple) else found


def infidelity(
    model: nn.Module, x: Tensor, y: Tensor, attribution: Tensor, perturbations: Tensor, normalize: bool
) -> Tensor:
    """``captum.metrics.infidelity`` with given perturbations ``(N, draws, ...)``."""
    n, count = perturbations.shape[:2]

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        drawn = perturbations.reshape(n * count, *x.shape[1:])
        return drawn, inputs - drawn

    return cm.infidelity(model, perturb, x, attribution, target=y, n_perturb_samples=count, normalize=normalize)


def sensitivity_max(
    explain: Callable[..., Tensor], x: Tensor, y: Tensor, points: Tensor, norm_ord: str | float = "fro"
) -> Tensor:
    """``captum.metrics.sensitivity_max`` with given perturbed rows ``(N, draws, ...)``."""
    n, count = points.shape[:2]

    def explanation(inputs: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, ...]:
        return (explain(inputs[0] if isinstance(inputs, tuple) else inputs, target),)

    return cm.sensitivity_max(
        explanation,
        x,
        perturb_func=lambda inputs, radius: points.reshape(n * count, *x.shape[1:]),
        n_perturb_samples=count,
        norm_ord=norm_ord,
        target=y,
    )
