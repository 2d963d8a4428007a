"""Methods that look at a layer inside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from captum import attr as captum
from captum._utils.gradient import compute_layer_gradients_and_eval
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_explain.maps import Reshape, arrange, grid_of, image_size
from lightning_explain.methods._captum import attribute
from lightning_explain.methods._layer import AtLayer
from lightning_explain.types import Attribution, Rows, Subject, as_tuple, bare


class Replaceable(nn.Module):
    """A layer whose activation Captum's hooks replace, by copies, for what follows may write into it.

    Args:
        layer: The layer itself.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._real = (layer,)

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Hooks the layer."""
        return self._real[0].register_forward_hook(lambda *arguments: _copied(hook(*arguments)), **options)

    def register_forward_pre_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Hooks the layer."""
        return self._real[0].register_forward_pre_hook(lambda *arguments: _copied(hook(*arguments)), **options)


def _copied(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_copied(part) for part in value)
    return value.clone() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class LayerGradCam(AtLayer):
    """Channels of a layer weighted by their mean gradient (Selvaraju et al. 2016; ``captum.attr.LayerGradCam``).

    Tokens and channels last are arranged as ``(N, C, h, w)`` first, so that the mean is over places as it is for a convolution;
    Captum would take it over channels. ``reshape="none"`` gives Captum's numbers.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        relu_attributions: Keep only positive values.
        attr_dim_summation: Sum over the channels; otherwise each keeps its own map.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.
    """

    layer: str | None = None
    attribute_to_layer_input: bool = False
    relu_attributions: bool = False
    attr_dim_summation: bool = True
    reshape: Reshape = None

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """``(N, 1, h, w)`` at the layer's resolution; ``(N, C, h, w)`` without the sum.

        Raises:
            ValueError: If ``reshape`` does not fit the layer.
        """
        layer, size = subject.layer(self.layer), image_size(rows.inputs)

        def grid(value: Tensor) -> Tensor:
            placed = grid_of(value, size, self.reshape, layer, self.attribute_to_layer_input)
            return value if placed is None else placed

        def call(inputs: Attribution, additional_forward_args: Any) -> Attribution:
            gradients, activations = compute_layer_gradients_and_eval(
                subject.forward,
                layer,
                as_tuple(inputs),
                additional_forward_args=additional_forward_args,
                attribute_to_layer_input=self.attribute_to_layer_input,
            )
            return bare(tuple(self._cam(grid(g), grid(a)) for g, a in zip(gradients, activations, strict=True)))

        return attribute(call, rows)

    def _cam(self, gradient: Tensor, activation: Tensor) -> Tensor:
        """Captum's formula for ``(N, C, ...)``."""
        weight = gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True) if gradient.ndim > 2 else gradient
        weighted = weight * activation
        found = weighted.sum(1, keepdim=True) if self.attr_dim_summation else weighted
        return torch.relu(found) if self.relu_attributions else found

    def arranged(self, subject: Subject, found: Attribution, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The map itself, for it is arranged already."""
        as_it_is = "channels_first" if isinstance(found, Tensor) and found.ndim == 4 else None
        return arrange(as_tuple(found), inputs, "none" if self.reshape == "none" else as_it_is)


@dataclass(frozen=True)
class LayerGradientXActivation(AtLayer):
    """A layer's activation times its gradient (``captum.attr.LayerGradientXActivation``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        multiply_by_inputs: Multiply by the activation; otherwise the gradient alone.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.
    """

    layer: str | None = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        explainer = captum.LayerGradientXActivation(
            subject.forward, subject.layer(self.layer), multiply_by_inputs=self.multiply_by_inputs
        )
        return attribute(explainer.attribute, rows, attribute_to_layer_input=self.attribute_to_layer_input)


@dataclass(frozen=True)
class LayerActivation(AtLayer):
    """What a layer says: its activation, without any explanation (``captum.attr.LayerActivation``).

    Cost: one forward row for each row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        attribute_to_layer_input: Return what goes into the layer instead of what comes out.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.
    """

    layer: str | None = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped and in units as the layer's output."""
        explainer = captum.LayerActivation(subject.forward, subject.layer(self.layer))
        return attribute(explainer.attribute, rows, attribute_to_layer_input=self.attribute_to_layer_input)


@dataclass(frozen=True)
class LayerFeatureAblation(AtLayer):
    """How far the output falls when parts of a layer's activation are replaced (``captum.attr.LayerFeatureAblation``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        layer_baselines: What replaces them: zero, a number, or a tensor that broadcasts to the activation.
        layer_mask: A tensor of whole numbers ``(1, ...)`` shaped as the activation: equal numbers are replaced together; by
            default each unit by itself. Cost: one forward row for each number and row, and two for the row.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        TypeError: If ``layer_baselines`` or ``layer_mask`` is of another type.
    """

    layer: str | None = None
    layer_baselines: float | Tensor | None = None
    layer_mask: Tensor | None = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("layer_baselines", (int, float, Tensor)), ("layer_mask", Tensor)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise TypeError(
                    f"LayerFeatureAblation({name}) is a {type(value).__name__}; allowed: None, a tensor"
                    f"{', a number' if name == 'layer_baselines' else ' of whole numbers'}."
                )

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        return attribute(
            captum.LayerFeatureAblation(subject.forward, Replaceable(subject.layer(self.layer))).attribute,
            rows,
            layer_baselines=self.layer_baselines,
            layer_mask=self.layer_mask,
            attribute_to_layer_input=self.attribute_to_layer_input,
            perturbations_per_eval=max(1, subject.limit // len(rows)),
        )
