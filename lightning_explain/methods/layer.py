"""Methods that look at a layer inside the model."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum

from lightning_explain.methods._captum import attribute
from lightning_explain.types import Attribution, Rows, Subject


@dataclass(frozen=True)
class LayerGradCam:
    """Channels of a layer weighted by their mean gradient (Selvaraju et al. 2016; ``captum.attr.LayerGradCam``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        relu_attributions: Keep only positive values.
    """

    layer: str | None = None
    attribute_to_layer_input: bool = False
    relu_attributions: bool = False

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """``(N, 1, h, w)`` at the layer's resolution."""
        return attribute(
            captum.LayerGradCam(subject.forward, subject.layer(self.layer)).attribute,
            rows,
            attribute_to_layer_input=self.attribute_to_layer_input,
            relu_attributions=self.relu_attributions,
        )


@dataclass(frozen=True)
class LayerGradientXActivation:
    """A layer's activation times its gradient (``captum.attr.LayerGradientXActivation``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        multiply_by_inputs: Multiply by the activation; otherwise the gradient alone.
    """

    layer: str | None = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        explainer = captum.LayerGradientXActivation(
            subject.forward, subject.layer(self.layer), multiply_by_inputs=self.multiply_by_inputs
        )
        return attribute(explainer.attribute, rows, attribute_to_layer_input=self.attribute_to_layer_input)
