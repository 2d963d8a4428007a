"""Methods that take one gradient at the input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.naming import nearest
from lightning_explain.core.points import DECONVOLUTION, GUIDED, PLAIN, Evaluation, LayerSite, Read, Reducer
from lightning_explain.core.probe import Samples
from lightning_explain.engine.captum_adapter import freeze
from lightning_explain.methods._base import AtOnce, OnPath, each
from lightning_explain.modalities.image import Reshape, check_reshape, grid_of, image_size

_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")


@dataclass(frozen=True)
class Saliency(AtOnce):
    """The gradient of the explained output (Simonyan et al. 2013; ``captum.attr.Saliency``).

    Cost: 1 forward, 1 backward.
    Signed: with ``abs=False``.
    Not for: scores while ``abs=True``: Infidelity and its like need the sign; outputs that saturate (probabilities).

    Args:
        abs: Take absolute values, as Captum does by default. Scores such as infidelity want ``abs=False``.
    """

    abs: bool = True

    reads = frozenset({(PLAIN, None)})

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output per unit of input."""
        gradient = evaluation.gradient()
        return each(torch.abs, gradient) if self.abs else gradient


@dataclass(frozen=True)
class InputXGradient(AtOnce):
    """The input times the gradient (Shrikumar et al. 2016; ``captum.attr.InputXGradient``).

    Cost: 1 forward, 1 backward.
    Not for: inputs whose zero means something, for a zero always gets zero; outputs that saturate (probabilities).
    """

    reads = frozenset({(PLAIN, None)})

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output."""
        return each(torch.mul, evaluation.point.samples.inputs, evaluation.gradient())


@dataclass(frozen=True)
class GuidedBackprop(AtOnce):
    """The gradient with negative parts cut at every ReLU module (Springenberg et al. 2014; ``captum.attr.GuidedBackprop``).

    Only ReLU is guided, a module or canonized into one; other activations pass their plain gradient.

    Cost: 1 forward, 1 backward.
    Not for: telling what the network has learned: maps outlive random weights (Adebayo et al. 2018); networks without
        ReLU, where it is the plain gradient.
    """

    reads = frozenset({(GUIDED, None)})

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output per unit of input."""
        return evaluation.gradient(GUIDED)


@dataclass(frozen=True)
class Deconvolution(AtOnce):
    """The gradient that every ReLU lets through where it is positive (Zeiler & Fergus 2013; ``captum.attr.Deconvolution``).

    Only ReLU is changed, a module or canonized into one; other activations pass their plain gradient.

    Cost: 1 forward, 1 backward.
    Not for: telling what the network has learned: maps redraw the input (Nie et al. 2018); networks without ReLU,
        where it is the plain gradient.
    """

    reads = frozenset({(DECONVOLUTION, None)})

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Input-shaped, in units of output per unit of input."""
        return evaluation.gradient(DECONVOLUTION)


@dataclass(frozen=True)
class GuidedGradCam(OnPath):
    """GuidedBackprop times the upsampled LayerGradCam (Selvaraju et al. 2016; ``captum.attr.GuidedGradCam``).

    Tokens and channels last are arranged as an image first, as in ``LayerGradCam``.

    Cost: 1 forward, 2 backward.
    Not for: telling what the network has learned: maps outlive random weights (Adebayo et al. 2018); inputs that are
        not images.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        interpolate_mode: How the layer's map is upsampled: ``nearest``, ``nearest-exact``, ``bilinear``, ``bicubic`` or ``area``;
            ``linear`` for sequences and ``trilinear`` for volumes.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        reshape: How the layer's map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``reshape`` or ``interpolate_mode`` is not allowed.
    """

    layer: str | None = None
    interpolate_mode: str = "nearest"
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        freeze(self)
        check_reshape("GuidedGradCam", self.reshape)
        if self.interpolate_mode not in _MODES:
            raise ValueError(
                f"GuidedGradCam(interpolate_mode={self.interpolate_mode!r}): {nearest(str(self.interpolate_mode), _MODES)}"
            )

    @property
    def reads(self) -> frozenset[Read]:
        """The guided gradient at the input, and what Grad-CAM needs."""
        site = LayerSite(self.layer, self.attribute_to_layer_input)
        return frozenset({(GUIDED, None), (PLAIN, site), (None, site)})

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped.

        Raises:
            ValueError: If the layer's map cannot be upsampled to the inputs.
        """
        evaluation = yield
        cam = grad_cam(evaluation, LayerSite(self.layer, self.attribute_to_layer_input), explained, self.reshape)
        if len(cam) > 1:
            raise ValueError(
                f"GuidedGradCam(layer={self.layer!r}): the layer gives {len(cam)} tensors; it must give one."
            )
        return tuple(guided * self._upsampled(cam[0].relu(), guided) for guided in evaluation.gradient(GUIDED))

    def _upsampled(self, cam: Tensor, like: Tensor) -> Tensor:
        if cam.ndim != like.ndim or cam.ndim < 3 or 0 in cam.shape:
            raise ValueError(
                f"GuidedGradCam(layer={self.layer!r}, interpolate_mode={self.interpolate_mode!r}) cannot upsample the "
                f"layer's map {tuple(cam.shape)} to an input {tuple(like.shape)}; it needs a layer with a map and image inputs."
            )
        return functional.interpolate(cam, like.shape[2:], mode=self.interpolate_mode)


def grad_cam(
    evaluation: Evaluation, site: LayerSite, explained: ExplainedFunction, reshape: Reshape = None, summed: bool = True
) -> tuple[Tensor, ...]:
    """Channels of a layer weighted by their mean gradient, each ``(N, 1, ...)``; ``(N, C, ...)`` if not summed.

    Args:
        evaluation: Has read the layer and its gradient.
        site: Where.
        explained: Knows the layer.
        reshape: How the layer lies on the image.
        summed: Sum over the channels.
    """
    layer, size = explained.layer(site.layer), image_size(evaluation.point.samples.inputs)

    def one(activation: Tensor, gradient: Tensor) -> Tensor:
        placed = [grid_of(value, size, reshape, layer, site.of_input) for value in (activation, gradient)]
        a, g = (value if grid is None else grid for value, grid in zip((activation, gradient), placed, strict=True))
        weights = g.mean(tuple(range(2, g.ndim)), keepdim=True) if g.ndim > 2 else g
        return (weights * a).sum(1, keepdim=True) if summed else weights * a

    return each(one, evaluation.activation(site), evaluation.gradient(PLAIN, site))
