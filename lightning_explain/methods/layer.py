"""Layer methods: samples in, one value for each unit of a layer out, from passes at the samples themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from captum import attr as captum
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, Evaluation, Read, Reducer
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.engine.captum_adapter import attribute
from lightning_explain.methods._base import AtLayer, AtOnce, each
from lightning_explain.methods.gradient import grad_cam
from lightning_explain.modalities.image import Reshape
from lightning_explain.modalities.placement import arrange


class Replaceable(nn.Module):
    """A layer whose activation Captum's hooks replace by a copy, because later modules may write into it in place.

    Args:
        layer: The layer itself.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._real = (layer,)

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Hooks the layer; the hook's result is cloned."""
        return self._real[0].register_forward_hook(lambda *arguments: _copied(hook(*arguments)), **options)

    def register_forward_pre_hook(self, hook: Callable[..., Any], **options: Any) -> RemovableHandle:
        """Hooks the layer; the hook's result is cloned."""
        return self._real[0].register_forward_pre_hook(lambda *arguments: _copied(hook(*arguments)), **options)


def _copied(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_copied(part) for part in value)
    return value.clone() if isinstance(value, Tensor) else value


class ReadOnce(AtLayer, AtOnce):
    """Base class of methods that read a layer once, at the samples themselves."""

    floating: ClassVar[bool] = False


@dataclass(frozen=True)
class LayerGradCam(ReadOnce):
    """Channels of a layer weighted by their mean gradient (Selvaraju et al. 2016; ``captum.attr.LayerGradCam``).

    Tokens and channels-last layers are first arranged as ``(N, C, h, w)``, so that the mean runs over positions, as for
    a convolution; Captum averages over channels there. ``reshape="none"`` gives Captum's numbers.

    Cost: 1 forward, 1 backward.
    Signed: unless ``relu_attributions``.
    Not for: layers right before a flattened linear layer, whose weights vary with the position while Grad-CAM averages
        them; layers without a feature map (vectors).

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        relu_attributions: Keep only positive values.
        attr_dim_summation: Sum over the channels; otherwise return one map for each channel.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerGradCam("conv")], metrics=[])
        >>> report.attributions["layer_grad_cam"].shape
        torch.Size([2, 1, 8, 8])
    """

    at_sample: ClassVar[bool] = True

    layer: str | None = None
    attribute_to_layer_input: bool = False
    relu_attributions: bool = False
    attr_dim_summation: bool = True
    reshape: Reshape = None

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """``(N, 1, h, w)`` at the layer's resolution; ``(N, C, h, w)`` without the sum.

        Raises:
            ValueError: If ``reshape`` does not fit the layer.
        """
        found = grad_cam((yield), self.site, explained, self.reshape, self.attr_dim_summation)
        return each(torch.relu, found) if self.relu_attributions else found

    def arranged(
        self, explained: ExplainedFunction, found: Attribution, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...] | None:
        """The map itself: it is arranged on the image already."""
        as_it_is = "channels_first" if isinstance(found, Tensor) and found.ndim == 4 else None
        reshape = "none" if self.reshape == "none" else as_it_is
        return arrange(as_tuple(found), inputs, explained.modalities, reshape)


@dataclass(frozen=True)
class LayerGradientXActivation(ReadOnce):
    """Activation of a layer times its gradient (Captum; ``captum.attr.LayerGradientXActivation``).

    Cost: 1 forward, 1 backward.
    Not for: layers whose zeros carry meaning, such as normalized ones: it compares with zero; saturated outputs, whose
        gradient vanishes.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        multiply_by_inputs: Multiply by the activation; otherwise return the gradient.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerGradientXActivation("conv")], metrics=[])
        >>> report.attributions["layer_gradient_x_activation"].shape
        torch.Size([2, 4, 8, 8])
    """

    at_sample: ClassVar[bool] = True

    layer: str | None = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    @property
    def multiplies_by_inputs(self) -> bool:
        """As its argument says."""
        return self.multiply_by_inputs

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Shaped as the layer's output, in units of the explained output."""
        gradient = evaluation.gradient(PLAIN, self.site)
        return each(torch.mul, gradient, evaluation.activation(self.site)) if self.multiply_by_inputs else gradient


@dataclass(frozen=True)
class LayerActivation(ReadOnce):
    """Activation of a layer, without any attribution (Captum; ``captum.attr.LayerActivation``).

    Cost: 1 forward, 0 backward.
    Signed: as the activation.
    Not for: what the prediction depends on: the activation is the same for every target, and scores of it mean nothing.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        attribute_to_layer_input: Return the layer's input instead of its output.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerActivation("conv")], metrics=[])
        >>> report.attributions["layer_activation"].shape
        torch.Size([2, 4, 8, 8])
    """

    backward_rule: ClassVar[str] = "none"

    layer: str | None = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    @property
    def reads(self) -> frozenset[Read]:
        """The activation."""
        return frozenset({(None, self.site)})

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Shaped as the layer's output, in units of the activation."""
        return evaluation.activation(self.site)


@dataclass(frozen=True)
class LayerFeatureAblation(AtLayer):
    """Drop of the output when parts of a layer are replaced (Captum; ``captum.attr.LayerFeatureAblation``).

    Cost: F + 2 forward, 0 backward; F different numbers in ``layer_mask``, by default the units of the layer.
    Not for: large layers without a ``layer_mask``: one pass for each unit; redundant channels: replacing one alone
        changes little.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        layer_baselines: Value that replaces them: ``None`` (zero), a number, or a tensor that broadcasts to one
            sample's activation ``(1, ...)``.
        layer_mask: Tensor of whole numbers ``(1, ...)`` shaped as the activation; units with equal numbers are replaced
            together. Default: each unit by itself.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Raises:
        TypeError: If ``layer_baselines`` or ``layer_mask`` is of another type.

    Example:
        >>> channels = torch.arange(4).reshape(1, 4, 1, 1).expand(1, 4, 8, 8)
        >>> method = m.LayerFeatureAblation("conv", layer_mask=channels)
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["layer_feature_ablation"].shape
        torch.Size([2, 4, 8, 8])
    """

    backward_rule: ClassVar[str] = "none"
    replaces_layer: ClassVar[bool] = True
    tensor_layers_only: ClassVar[bool] = True
    multiplies_by_inputs = True

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
                    f"LayerFeatureAblation({name}) is a {type(value).__name__}; give None, a tensor"
                    f"{', a number' if name == 'layer_baselines' else ' of whole numbers'}."
                )

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Any) -> None:
        """Refuses arguments that do not fit one sample of the layer.

        Raises:
            ValueError: If ``layer_baselines`` or ``layer_mask`` does not broadcast to it, or the layer returns several
                tensors.
        """
        if not isinstance(activation, Tensor):
            raise ValueError(
                f"the layer {self.layer!r} returns several tensors, which Captum cannot ablate; choose another layer"
            )
        for name in ("layer_baselines", "layer_mask"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                _check_broadcast(name, value, activation)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        return attribute(
            captum.LayerFeatureAblation(explained.forward, Replaceable(explained.layer(self.layer))).attribute,
            samples,
            layer_baselines=self.layer_baselines,
            layer_mask=self.layer_mask,
            attribute_to_layer_input=self.attribute_to_layer_input,
            perturbations_per_eval=max(1, explained.limit // len(samples)),
        )


def _check_broadcast(name: str, value: Tensor, like: Tensor) -> None:
    try:
        value.expand_as(like)
    except RuntimeError as error:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not fit a sample of the layer, {tuple(like.shape)}; give "
            "one that broadcasts to it, the same for all samples."
        ) from error
