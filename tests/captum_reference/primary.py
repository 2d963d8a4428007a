"""Methods that go back to the input, as a user would call Captum by hand."""

from __future__ import annotations

import captum.attr as ca
from torch import Tensor, nn

from captum_reference.draws import noise, on_draws


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
    return on_draws(
        lambda: ca.GradientShap(model).attribute(x, baselines, n_samples=1, stdevs=0.2, target=y),
        draws,
        chosen,
        weights,
    )


def deconvolution(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.Deconvolution(model).attribute(x, target=y)


def deep_lift(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.DeepLift(model, eps=1e-9).attribute(x, 0.3, target=y)


def deep_lift_multipliers(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.DeepLift(model, multiply_by_inputs=False).attribute(x, -0.2, target=y)


def deep_lift_shap(model: nn.Module, x: Tensor, y: Tensor, baselines: Tensor) -> Tensor:
    return ca.DeepLiftShap(model).attribute(x, baselines, target=y)


def lrp(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.LRP(model).attribute(x, target=y)
