"""Every method and metric as a user would call Captum by hand. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import captum.attr as ca
import captum.metrics as cm
import numpy as np
import torch
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
    found = []
    for s in range(draws.shape[1]):
        with (
            noise(draws[:, s : s + 1]),
            mock.patch("numpy.random.choice", lambda k, size, s=s: chosen[:, s].numpy()),
            mock.patch("numpy.random.uniform", lambda a, b, n, s=s: weights[:, s].numpy().astype(np.float32)),
        ):
            found.append(ca.GradientShap(model).attribute(x, baselines, n_samples=1, stdevs=0.2, target=y))
    return torch.stack(found).mean(0)


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
