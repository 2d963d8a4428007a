"""Methods that take one gradient at the input: one forward and one backward pass in, an input-shaped map out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_explain.core.contracts import Arrangement, ExplainedFunction
from lightning_explain.core.points import DECONVOLUTION, GUIDED, PLAIN, Evaluation, LayerSite, Read, Reducer
from lightning_explain.core.probe import Samples
from lightning_explain.methods._base import AtLayer, AtOnce, OnPath, each
from lightning_explain.modalities.image import Reshape
from lightning_explain.modalities.placement import place


class GradientAtInput(AtOnce):
    """Base class of methods that take the gradient at the input once, by their backward rule."""

    at_sample = True

    @property
    def reads(self) -> frozenset[Read]:
        """The gradient at the inputs."""
        return frozenset({(self.backward_rule, None)})

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output per unit of input."""
        return evaluation.gradient(self.backward_rule)


@dataclass(frozen=True)
class Saliency(GradientAtInput):
    r"""Gradient of the explained output with respect to the input (Simonyan et al. 2013; ``captum.attr.Saliency``).

    Formula: \phi_i = \left|\frac{\partial f(x)}{\partial x_i}\right|
    Cost: 1 forward, 1 backward.
    Signed: with ``abs=False``.
    Not for: metrics that need signs, such as Infidelity, while ``abs=True``; saturated outputs such as probabilities,
        whose gradient vanishes.

    Args:
        abs: Take absolute values, which is Captum's default. Use ``abs=False`` with metrics such as Infidelity.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[])
        >>> report.attributions["saliency"].shape
        torch.Size([2, 3, 8, 8])
    """

    abs: bool = True

    @property
    def signed(self) -> bool:
        """Unless it takes absolute values."""
        return not self.abs

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output per unit of input."""
        gradient = super().finish(evaluation)
        return each(torch.abs, gradient) if self.abs else gradient


@dataclass(frozen=True)
class InputXGradient(GradientAtInput):
    r"""Input times the gradient of the explained output (Shrikumar et al. 2016; ``captum.attr.InputXGradient``).

    Formula: \phi_i = x_i\,\frac{\partial f(x)}{\partial x_i}
    Cost: 1 forward, 1 backward.
    Not for: inputs whose zeros carry meaning: a zero always gets zero; saturated outputs such as probabilities, whose
        gradient vanishes.

    Example:
        >>> report = explain(model, probe, methods=[m.InputXGradient()], metrics=[])
        >>> report.attributions["input_x_gradient"].shape
        torch.Size([2, 3, 8, 8])
    """

    multiplies_by_inputs = True

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output."""
        return each(torch.mul, evaluation.point.samples.inputs, evaluation.gradient())


@dataclass(frozen=True)
class GuidedBackprop(GradientAtInput):
    r"""Gradient with negative values set to zero at every ReLU (Springenberg et al. 2014; ``captum.attr.GuidedBackprop``).

    Applies to ReLU only, as a module or as a function; other activations pass their plain gradient.

    Formula: R^{l} = \mathbf{1}[a^{l} > 0]\,\max(R^{l+1}, 0)\ \text{at every ReLU},\quad \phi = R^{0}
    Cost: 1 forward, 1 backward.
    Not for: evidence of what the network has learned: maps hardly change with random weights (Adebayo et al. 2018);
        networks without ReLU, where it is the plain gradient.

    Example:
        >>> report = explain(model, probe, methods=[m.GuidedBackprop()], metrics=[])
        >>> report.attributions["guided_backprop"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule = GUIDED


@dataclass(frozen=True)
class Deconvolution(GradientAtInput):
    r"""Gradient with ReLU applied to the gradient at every ReLU (Zeiler & Fergus 2013; ``captum.attr.Deconvolution``).

    Applies to ReLU only, as a module or as a function; other activations pass their plain gradient.

    Formula: R^{l} = \max(R^{l+1}, 0)\ \text{at every ReLU},\quad \phi = R^{0}
    Cost: 1 forward, 1 backward.
    Not for: evidence of what the network has learned: maps reproduce the input (Nie et al. 2018); networks without
        ReLU, where it is the plain gradient.

    Example:
        >>> report = explain(model, probe, methods=[m.Deconvolution()], metrics=[])
        >>> report.attributions["deconvolution"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule = DECONVOLUTION


@dataclass(frozen=True)
class GuidedGradCam(AtLayer, OnPath):
    r"""GuidedBackprop times the upsampled LayerGradCam map (Selvaraju et al. 2016; ``captum.attr.GuidedGradCam``).

    Tokens and channels-last layers are first arranged as an image, as in ``LayerGradCam``.

    Formula: \phi = \phi^{\text{GuidedBackprop}} \odot \text{upsample}(\phi^{\text{GradCAM}})
    Cost: 1 forward, 2 backward.
    Not for: evidence of what the network has learned: maps hardly change with random weights (Adebayo et al. 2018);
        inputs that are not images.

    Args:
        interpolate_mode: Upsampling of the layer's map: ``nearest``, ``nearest-exact``, ``bilinear``, ``bicubic`` or
            ``area`` for images, ``linear`` for sequences, ``trilinear`` for volumes.

    Further arguments: :class:`LayerActivation`.

    Raises:
        ValueError: If ``reshape`` or ``interpolate_mode`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.GuidedGradCam("conv", interpolate_mode="bilinear")], metrics=[])
        >>> report.attributions["guided_grad_cam"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule = GUIDED
    reaches_input = True
    layer_shaped = False
    at_sample = True

    interpolate_mode: str = "nearest"
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    @property
    def reads(self) -> frozenset[Read]:
        """Guided gradient at the input, gradient and activation at the layer."""
        return super().reads | {(GUIDED, None)}

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped.

        Raises:
            ValueError: If the layer's map cannot be upsampled to the inputs.
        """
        evaluation = yield
        cam = grad_cam(evaluation, self.site, explained, self.reshape)
        if len(cam) > 1:
            raise ValueError(f"GuidedGradCam: {self.layer!r} returns {len(cam)} tensors; choose another layer.")
        return tuple(guided * self._upsampled(cam[0].relu(), guided) for guided in evaluation.gradient(GUIDED))

    def _upsampled(self, cam: Tensor, like: Tensor) -> Tensor:
        if cam.ndim != like.ndim or cam.ndim < 3 or 0 in cam.shape:
            shapes = f"{tuple(cam.shape)} to an input {tuple(like.shape)}"
            raise ValueError(f"{self} cannot upsample the map {shapes}; choose a layer with a feature map.")
        return functional.interpolate(cam, like.shape[2:], mode=self.interpolate_mode)


def mean_over_places(gradient: Tensor) -> Tensor:
    """The weights of Grad-CAM: the mean gradient of each channel, ``(N, C, 1, ...)``; that of a vector ``(N, C)`` as it is."""
    return gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True) if gradient.ndim > 2 else gradient


def grad_cam(
    evaluation: Evaluation,
    site: LayerSite,
    explained: ExplainedFunction,
    reshape: Reshape = None,
    summed: bool = True,
    weights: Callable[[Tensor], Tensor] = mean_over_places,
) -> tuple[Tensor, ...]:
    """Channels of a layer weighted by their gradient, each ``(N, 1, ...)``; ``(N, C, ...)`` unless summed.

    Args:
        evaluation: Holds the activation and the gradient of the layer.
        site: The layer site.
        explained: The explained function.
        reshape: How to arrange the layer's map on the image.
        summed: Sum over the channels.
        weights: What the activation is multiplied by, from its gradient ``(N, C, ...)``.
    """
    how = Arrangement(reshape, explained.layer(site.layer), site.of_input, explained.forward)

    def placed(value: Tensor) -> Tensor:
        grid = place(value, evaluation.point.samples.inputs, explained.modalities, how)
        return value if grid is None else grid

    def one(activation: Tensor, gradient: Tensor) -> Tensor:
        a, g = placed(activation), placed(gradient)
        # Where a layer has a map for each frame, each frame has its own weights, as in Captum.
        by_frame = explained.frames > 1 and a.ndim == 5 and a.shape[2] == activation.shape[1] == explained.frames
        weighted = (_of_frames(weights, g) if by_frame else weights(g)) * a
        return weighted.sum(1, keepdim=True) if summed else weighted

    return each(one, evaluation.activation(site), evaluation.gradient(PLAIN, site))


def _of_frames(weights: Callable[[Tensor], Tensor], gradient: Tensor) -> Tensor:
    """The weights by the gradient ``(N, C, T, h, w)``, of each frame as if it were a sample."""
    found: Tensor = weights(gradient.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(gradient), -1))
    return found.transpose(1, 2)
