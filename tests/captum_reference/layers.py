"""Methods that explain with a layer, as a user would call Captum by hand."""

from __future__ import annotations

import captum.attr as ca
from torch import Tensor, nn

from captum_reference.draws import on_draws


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


def guided_grad_cam(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    return ca.GuidedGradCam(model, layer).attribute(x, target=y, interpolate_mode="bilinear")


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
    return on_draws(
        lambda: ca.LayerGradientShap(model, layer).attribute(x, baselines, n_samples=1, stdevs=0.2, target=y),
        draws,
        chosen,
        weights,
    )


def layer_lrp(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, of_input: bool = False) -> Tensor:
    found = ca.LayerLRP(model, layer).attribute(x, target=y, attribute_to_layer_input=of_input)
    return found[0] if isinstance(found, tuple) else found
