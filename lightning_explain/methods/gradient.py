"""Methods that take one gradient at the input."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum
from torch import Tensor

from lightning_explain.maps import Reshape, check_reshape
from lightning_explain.methods._captum import attribute, freeze, needs_gradient
from lightning_explain.methods.layer import LayerGradCam
from lightning_explain.types import Attribution, Rows, Subject, as_tuple, bare


@dataclass(frozen=True)
class Saliency:
    """The gradient of the explained output (Simonyan et al. 2013; ``captum.attr.Saliency``).

    Args:
        abs: Take absolute values, as Captum does by default. Scores such as infidelity want ``abs=False``.
    """

    abs: bool = True

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "Saliency")
        return attribute(captum.Saliency(subject.forward).attribute, rows, abs=self.abs)


@dataclass(frozen=True)
class InputXGradient:
    """The input times the gradient (Shrikumar et al. 2016; ``captum.attr.InputXGradient``)."""

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "InputXGradient")
        return attribute(captum.InputXGradient(subject.forward).attribute, rows)


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient with negative parts cut at every ReLU module (Springenberg et al. 2014; ``captum.attr.GuidedBackprop``).

    Only ``nn.ReLU`` modules are guided; a functional ReLU is passed as in the plain gradient.
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "GuidedBackprop")
        return attribute(captum.GuidedBackprop(subject.forward).attribute, rows)


@dataclass(frozen=True)
class Deconvolution:
    """The gradient that every ReLU lets through where it is positive (Zeiler & Fergus 2013; ``captum.attr.Deconvolution``).

    Only ``nn.ReLU`` modules are changed; a functional ReLU is passed as in the plain gradient. Cost: one forward and backward
    row for each row.
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "Deconvolution")
        return attribute(captum.Deconvolution(subject.forward).attribute, rows)


@dataclass(frozen=True)
class GuidedGradCam:
    """GuidedBackprop times the upsampled LayerGradCam (Selvaraju et al. 2016; ``captum.attr.GuidedGradCam``).

    Tokens and channels last are arranged as an image first, as in ``LayerGradCam``. Cost: two forward and backward rows for each
    row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        interpolate_mode: How the layer's map is upsampled: ``nearest``, ``bilinear``, or another mode of ``interpolate``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        reshape: How the layer's map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``reshape`` is not allowed.
    """

    layer: str | None = None
    interpolate_mode: str = "nearest"
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        freeze(self)
        check_reshape("GuidedGradCam", self.reshape)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped.

        Raises:
            ValueError: If the layer's map cannot be upsampled to the inputs.
        """
        needs_gradient(rows, "GuidedGradCam")
        cam = LayerGradCam(self.layer, self.attribute_to_layer_input, relu_attributions=True, reshape=self.reshape)
        found = cam.attribute(subject, rows)
        guided = as_tuple(attribute(captum.GuidedBackprop(subject.forward).attribute, rows))
        return bare(tuple(part * self._upsampled(found, part) for part in guided))

    def _upsampled(self, cam: Attribution, like: Tensor) -> Tensor:
        size = tuple(like.shape[2:])
        try:
            if not isinstance(cam, Tensor) or cam.ndim != like.ndim:
                raise ValueError("not a map of the inputs")
            upsampled: Tensor = captum.LayerAttribution.interpolate(cam, size, interpolate_mode=self.interpolate_mode)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ValueError(
                f"GuidedGradCam(layer={self.layer!r}, interpolate_mode={self.interpolate_mode!r}) cannot upsample the "
                f"layer's map to inputs {tuple(like.shape)}; it needs a layer with a map and image inputs."
            ) from error
        return upsampled
