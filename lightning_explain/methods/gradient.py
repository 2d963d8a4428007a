"""Methods that take one gradient at the input."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum

from lightning_explain.methods._captum import attribute, needs_gradient
from lightning_explain.types import Attribution, Rows, Subject, as_tuple


@dataclass(frozen=True)
class Saliency:
    """The gradient of the explained output (Simonyan et al. 2013; ``captum.attr.Saliency``).

    Cost: 1 forward, 1 backward.
    Signed: with ``abs=False``.
    Not for: scores while ``abs=True``: Infidelity and its like need the sign; outputs that saturate (probabilities).

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
    """The input times the gradient (Shrikumar et al. 2016; ``captum.attr.InputXGradient``).

    Cost: 1 forward, 1 backward.
    Not for: inputs whose zero means something, for a zero always gets zero; outputs that saturate (probabilities).
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "InputXGradient")
        return attribute(captum.InputXGradient(subject.forward).attribute, rows)


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient with negative parts cut at every ReLU module (Springenberg et al. 2014; ``captum.attr.GuidedBackprop``).

    Only ReLU is guided, a module or mended into one; other activations pass their plain gradient.

    Cost: 1 forward, 1 backward.
    Not for: telling what the network has learned: maps outlive random weights (Adebayo et al. 2018); networks without
        ReLU, where it is the plain gradient.
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "GuidedBackprop")
        return attribute(captum.GuidedBackprop(subject.forward).attribute, rows)


@dataclass(frozen=True)
class Deconvolution:
    """The gradient that every ReLU lets through where it is positive (Zeiler & Fergus 2013; ``captum.attr.Deconvolution``).

    Only ReLU is changed, a module or mended into one; other activations pass their plain gradient.

    Cost: 1 forward, 1 backward.
    Not for: telling what the network has learned: maps redraw the input (Nie et al. 2018); networks without ReLU,
        where it is the plain gradient.
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output per unit of input."""
        needs_gradient(rows, "Deconvolution")
        return attribute(captum.Deconvolution(subject.forward).attribute, rows)


@dataclass(frozen=True)
class GuidedGradCam:
    """GuidedBackprop times the upsampled LayerGradCam (Selvaraju et al. 2016; ``captum.attr.GuidedGradCam``).

    Cost: 2 forward, 2 backward.
    Not for: telling what the network has learned: maps outlive random weights (Adebayo et al. 2018); inputs that are
        not images.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        interpolate_mode: How the layer's map is upsampled: ``nearest``, ``bilinear``, or another mode of ``interpolate``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
    """

    layer: str | None = None
    interpolate_mode: str = "nearest"
    attribute_to_layer_input: bool = False

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped.

        Raises:
            ValueError: If the layer's map cannot be upsampled to the inputs.
        """
        needs_gradient(rows, "GuidedGradCam")
        found = attribute(
            captum.GuidedGradCam(subject.forward, subject.layer(self.layer)).attribute,
            rows,
            interpolate_mode=self.interpolate_mode,
            attribute_to_layer_input=self.attribute_to_layer_input,
        )
        # Captum returns an empty tensor for an input to which it cannot interpolate.
        if any(part.numel() == 0 for part in as_tuple(found)):
            raise ValueError(
                f"GuidedGradCam(layer={self.layer!r}, interpolate_mode={self.interpolate_mode!r}) cannot upsample the "
                f"layer's map to inputs {[tuple(x.shape) for x in rows.inputs]}; it needs a layer with a map and image inputs."
            )
        return found
