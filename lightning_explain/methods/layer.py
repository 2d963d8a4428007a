"""Layer methods: samples in, one value for each unit of a layer out, from passes at the samples themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from captum import attr as captum
from packaging.version import Version
from torch import Tensor, nn

from lightning_explain.core.contracts import Arrangement, ExplainedFunction
from lightning_explain.core.points import PLAIN, Evaluation, LayerSite, Read, Reducer
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple, bare
from lightning_explain.engine.captum_adapter import attribute
from lightning_explain.engine.evaluate import intercept
from lightning_explain.methods._base import AtLayer, AtOnce, OnPath, each
from lightning_explain.methods.gradient import grad_cam, mean_over_places
from lightning_explain.modalities.image import Reshape


class _StandIn(nn.Module):
    def forward(self, *tensors: Tensor) -> Attribution:
        return bare(tensors)


@contextmanager
def replaceable(explained: ExplainedFunction, site: LayerSite) -> Iterator[nn.Module]:
    """A module for Captum to hook: what Captum puts in the place of its output goes on from the layer site."""
    stand_in = _StandIn()
    with intercept(explained.layer(site.layer), site, lambda tensors: as_tuple(stand_in(*tensors))):
        yield stand_in


class _Inputs(nn.Module):
    """A function with modules in the place of some of its inputs, through which these pass."""

    def __init__(self, forward: nn.Module, modules: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.inner, self._modules_at = forward, dict(modules)

    def forward(self, *values: Any) -> Any:
        return self.inner(*(self._modules_at[i](x) if i in self._modules_at else x for i, x in enumerate(values)))


@contextmanager
def replaceable_together(explained: ExplainedFunction, method: AtLayer) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """The function, and a module for Captum to hook for each of a method's layers, and of the inputs among them."""
    stand_ins, at_inputs = list[nn.Module](), dict[int, nn.Module]()
    with ExitStack() as stack:
        for name in method.layers:
            if isinstance(name, int):
                at_inputs[name] = _StandIn()
                stand_ins.append(at_inputs[name])
            else:
                stand_ins.append(stack.enter_context(replaceable(explained, LayerSite(name, method.of_input))))
        yield _Inputs(explained.forward, at_inputs) if at_inputs else explained.forward, stand_ins


@dataclass(frozen=True)
class LayerGradCam(AtLayer, OnPath):
    r"""Channels of a layer weighted by their mean gradient (Selvaraju et al. 2016; ``captum.attr.LayerGradCam``).

    Tokens and channels-last layers are first arranged as ``(N, C, h, w)``, so that the mean runs over positions, as for
    a convolution; Captum averages over channels there. ``reshape="none"`` gives Captum's numbers.

    Formula: \phi = \sum_c \bar{g}_c\,a_c,\quad \bar{g}_c\ \text{the mean of}\ \frac{\partial f(x)}{\partial a_c}\
        \text{over the places}
    Cost: 1 forward, 1 backward.
    Signed: unless ``relu_attributions``.
    Not for: layers right before a flattened linear layer, whose weights vary with the position while Grad-CAM averages
        them; layers without a feature map (vectors).

    Args:
        relu_attributions: Keep only positive values.
        attr_dim_summation: Sum over the channels; otherwise return one map for each channel.

    Further arguments: :class:`LayerActivation`.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerGradCam("conv")], metrics=[])
        >>> report.attributions["layer_grad_cam"].shape
        torch.Size([2, 1, 8, 8])
    """

    at_sample = True
    averages_places = True
    multiplies_by_inputs = True

    attribute_to_layer_input: bool = False
    relu_attributions: bool = False
    attr_dim_summation: bool = True
    reshape: Reshape = None

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """``(N, 1, h, w)`` at the layer's resolution; ``(N, C, h, w)`` without the sum.

        Raises:
            ValueError: If ``reshape`` does not fit the layer.
        """
        found = grad_cam((yield), self.site, explained, self.reshape, self.attr_dim_summation, self.weights)
        return each(torch.relu, found) if self.relu_attributions else found

    def weights(self, gradient: Tensor) -> Tensor:
        """What the activation is multiplied by, from its gradient ``(N, C, ...)``: the mean of each channel."""
        return mean_over_places(gradient)

    def arrangement(self, explained: ExplainedFunction, found: Attribution) -> Arrangement:
        """As it is: it is arranged on the image already."""
        as_it_is = "channels_first" if isinstance(found, Tensor) and found.ndim == 4 else None
        return Arrangement("none" if self.reshape == "none" else as_it_is)


@dataclass(frozen=True)
class LayerGradientXActivation(AtLayer, AtOnce):
    r"""Activation of a layer times its gradient (Captum; ``captum.attr.LayerGradientXActivation``).

    Formula: \phi_j = a_j(x)\,\frac{\partial f(x)}{\partial a_j}
    Cost: 1 forward, 1 backward.
    Not for: layers whose zeros carry meaning, such as normalized ones: it compares with zero; saturated outputs, whose
        gradient vanishes.

    Args:
        multiply_by_inputs: Multiply by the activation; otherwise return the gradient.

    Further arguments: :class:`LayerActivation`.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerGradientXActivation("conv")], metrics=[])
        >>> report.attributions["layer_gradient_x_activation"].shape
        torch.Size([2, 4, 8, 8])
    """

    at_sample = True

    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    def finish(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Shaped as the layer's output, in units of the explained output."""
        gradient = evaluation.gradient(PLAIN, self.site)
        return each(torch.mul, gradient, evaluation.activation(self.site)) if self.multiply_by_inputs else gradient


@dataclass(frozen=True)
class LayerActivation(AtLayer, AtOnce):
    r"""Activation of a layer, without any attribution (Captum; ``captum.attr.LayerActivation``).

    Formula: \phi_j = a_j(x)
    Cost: 1 forward, 0 backward.
    Signed: as the activation.
    Not for: what the prediction depends on: the activation is the same for every target, and scores of it mean nothing.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        attribute_to_layer_input: Take the layer's input instead of its output.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerActivation("conv")], metrics=[])
        >>> report.attributions["layer_activation"].shape
        torch.Size([2, 4, 8, 8])
    """

    backward_rule = "none"
    multiplies_by_inputs = True

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
    r"""Drop of the output when parts of a layer are replaced (Captum; ``captum.attr.LayerFeatureAblation``).

    Formula: \phi_g = f(x) - f(x;\ a_{g \leftarrow a'})
    Cost: F + 2 forward, 0 backward; F different numbers in ``layer_mask``, by default the units of the layer.
    Not for: large layers without a ``layer_mask``: one pass for each unit; redundant channels: replacing one alone
        changes little.

    Args:
        layer_baselines: Value that replaces them: ``None`` (zero), a number, or a tensor that broadcasts to one
            sample's activation ``(1, ...)``; a tuple with one for each tensor of a layer that returns several.
        layer_mask: Tensor of whole numbers ``(1, ...)`` shaped as the activation, or a tuple of them; units with equal
            numbers are replaced together, those of several tensors as well. Default: each unit by itself.

    Further arguments: :class:`LayerActivation`.

    Raises:
        TypeError: If ``layer_baselines`` or ``layer_mask`` is of another type.

    Example:
        >>> channels = torch.arange(4).reshape(1, 4, 1, 1).expand(1, 4, 8, 8)
        >>> method = m.LayerFeatureAblation("conv", layer_mask=channels)
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["layer_feature_ablation"].shape
        torch.Size([2, 4, 8, 8])
    """

    backward_rule = "none"
    replaces_layer = True
    tensor_layers_only = True
    multiplies_by_inputs = True

    layer_baselines: Baseline = None
    layer_mask: Attribution | None = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in (("layer_baselines", (int, float, Tensor)), ("layer_mask", (Tensor,))):
            wrong = [type(part).__name__ for part in self._parts(name) if not isinstance(part, kinds)]
            if wrong:
                what = "a tensor of whole numbers" if name == "layer_mask" else "a number, a tensor"
                raise TypeError(f"LayerFeatureAblation({name}) is a {wrong[0]}; give None, {what}, or a tuple of them.")

    def _parts(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return () if value is None else value if isinstance(value, tuple) else (value,)

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Any) -> None:
        """Refuses arguments that do not fit one sample of the layer.

        Raises:
            ValueError: If ``layer_baselines`` or ``layer_mask`` does not broadcast to it, or does not have an entry for
                each of its tensors; with Captum before 0.9, if one number is in several masks.
        """
        found = activation if isinstance(activation, (tuple, list)) else (activation,)
        for name in ("layer_baselines", "layer_mask"):
            parts = self._parts(name)
            if len(parts) != len(found) and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} has {len(parts)} entries for {len(found)} tensors of the layer; give one for each."
                )
            for part, like in zip(parts, found, strict=False):
                try:
                    torch.as_tensor(part).expand_as(like)
                except RuntimeError as error:
                    shapes = f"shape {tuple(part.shape)}, which does not fit a sample of the layer, {tuple(like.shape)}"
                    raise ValueError(f"{name} has {shapes}; give one that broadcasts to it.") from error
        numbers = [set(mask.unique().tolist()) for mask in self._parts("layer_mask")]
        if len(set().union(*numbers)) < sum(map(len, numbers)) and Version(version("captum")) < Version("0.9"):
            raise ValueError(
                "layer_mask has one number in several tensors of the layer, which Captum before 0.9 takes for several features; "
                "give each tensor numbers of its own, or install captum>=0.9"
            )

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        with replaceable(explained, self.site) as layer:
            return attribute(
                captum.LayerFeatureAblation(explained.forward, layer).attribute,
                samples,
                layer_baselines=self.layer_baselines,
                layer_mask=self.layer_mask,
                perturbations_per_eval=max(1, explained.limit // len(samples)),
            )
