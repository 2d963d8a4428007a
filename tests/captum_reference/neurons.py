"""Methods that explain a neuron, as a user would call Captum by hand."""

from __future__ import annotations

import captum.attr as ca
import torch
from torch import Tensor, nn

from captum_reference.draws import on_draws


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
    return on_draws(
        lambda: ca.NeuronGradientShap(model, layer).attribute(x, neuron, baselines, n_samples=1, stdevs=0.2),
        draws,
        chosen,
        weights,
    )
