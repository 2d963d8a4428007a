"""Layer-wise relevance propagation: samples in, shares of the output for each input element or layer unit out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from captum import attr as captum
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from captum.attr._utils.lrp_rules import EpsilonRule
from torch import Tensor, nn

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.engine.captum_adapter import RULED_LAYERS, attribute
from lightning_explain.engine.noise import column
from lightning_explain.methods._base import AtLayer, CaptumMethod
from lightning_explain.modalities.image import Reshape
from lightning_explain.model.hooks import at_layer, at_modules
from lightning_explain.model.inventory import TRANSPARENT, is_layer


class _Layered(nn.Module):
    """The explained function with the layers that run as its children, the form in which Captum's LRP takes a model.

    Captum restores weights by ``load_state_dict``, which would give them new storage; :meth:`kept` puts the original
    storage back instead.
    """

    def __init__(self, explained: ExplainedFunction) -> None:
        super().__init__()
        self.inner = explained.forward
        self._layers = explained.remembered(("relevance",), lambda: _layers(explained))
        self.outputs: list[Tensor] = []

    def children(self) -> Iterator[nn.Module]:
        return iter(self._layers)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {}

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        return None

    def forward(self, *arguments: Any) -> Tensor:
        output: Tensor = self.inner(*arguments)
        self.outputs.append(output.detach())
        return output

    def relevance(self, samples: Samples) -> Attribution:
        """Captum's LRP of the samples; restores weights and rules, because Captum deletes the rules that the user has set.

        Layers for which Captum has no default get the rule of the same layer of other dimensions. For batch normalization, whose input
        and output epsilon relates as it does those of the affine layer before or after it, that is what LRP is on a model in which the
        two are merged.
        """
        weights = [(parameter, parameter.data) for parameter in self.inner.parameters()]
        rules = [(layer, vars(layer)["rule"]) for layer in self._layers if "rule" in vars(layer)]
        for layer in self._layers:
            if (
                type(layer) in RULED_LAYERS
                and type(layer) not in SUPPORTED_LAYERS_WITH_RULES
                and "rule" not in vars(layer)
            ):
                layer.rule = EpsilonRule()
        try:
            return attribute(captum.LRP(self).attribute, samples)
        finally:
            for parameter, data in weights:
                parameter.data = data
            for layer, rule in rules:
                layer.rule = rule


@dataclass(frozen=True)
class LRP(CaptumMethod):
    r"""Output redistributed layer by layer to the input (Bach et al. 2015; ``captum.attr.LRP``).

    Each layer that runs needs a rule. Linear, convolution, pooling and batch normalization layers and ``Addition_Module`` use epsilon
    unless ``layer.rule`` is set, as in Captum, which knows 2-D ones only; ReLU, Tanh and dropout need none. Join
    branches with ``Addition_Module``: a plain ``+`` would count the relevance twice. A map sums to the output without
    the share of the biases.

    Formula: R_i = \sum_j \frac{a_i w_{ij}}{\varepsilon + \sum_{i'} a_{i'} w_{i'j}}\,R_j
    Cost: 2 forward, 1 backward; 1 forward sample more in each explanation.
    Not for: skip connections written as ``+``, attention, gates, recurrent layers (all refused); ReLU networks with the
        default rule, where it equals InputXGradient at a higher price.

    Example:
        >>> report = explain(model, probe, methods=[m.LRP()], metrics=[])
        >>> report.attributions["lrp"].shape
        torch.Size([2, 3, 8, 8])
    """

    backward_rule = "lrp"
    multiplies_by_inputs = True

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        return _Layered(explained).relevance(samples)


@dataclass(frozen=True)
class LayerLRP(AtLayer):
    r"""Relevance that LRP passes back to a layer (Bach et al. 2015; ``captum.attr.LayerLRP``).

    Works at any layer that returns a tensor, including blocks and activations, for which Captum finds no rule.

    Formula: R_j = \sum_k \frac{a_j w_{jk}}{\varepsilon + \sum_{j'} a_{j'} w_{j'k}}\,R_k
    Cost: 2 forward, 1 backward; 1 forward sample more in each explanation.
    Not for: skip connections written as ``+``, attention, gates, recurrent layers (all refused); ReLU networks with the
        default rule, where it equals LayerGradientXActivation at a higher price.

    Further arguments: :class:`LayerActivation`.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerLRP("conv")], metrics=[])
        >>> report.attributions["layer_lrp"].shape
        torch.Size([2, 4, 8, 8])
    """

    backward_rule = "lrp"
    multiplies_by_inputs = True

    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output.

        Raises:
            ValueError: If no relevance reaches this layer as a single tensor.
        """
        # Between layers the gradient of Captum's LRP is the relevance. Captum converts gradients to relevance in hooks on the
        # input of the next layer, and converts them back in hooks on the output of a layer with a rule. The copy taken here
        # lies between the two: past the first hook and before the second.
        model, layer, found = _Layered(explained), explained.layer(self.site.layer), list[Tensor]()
        ruled = type(layer) not in SUPPORTED_NON_LINEAR_LAYERS and any(layer is known for known in model.children())

        def note(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.requires_grad:
                return value
            value.register_hook(lambda gradient: found.append(gradient.detach().clone()))
            # Captum itself copies the output of a layer with a rule.
            return value if ruled and not self.of_input else value.clone()

        with at_layer(layer, self.of_input, lambda v: (note(v[0]), *v[1:]) if self.of_input else note(v)):
            model.relevance(samples)
        if not found:
            raise ValueError(f"LayerLRP: no relevance reaches {self.layer!r} as a single tensor; give another layer.")
        return found[-1] * column(model.outputs[0], found[-1])


def _layers(explained: ExplainedFunction) -> list[nn.Module]:
    """Layers that run, in order, found by sending one sample through the model; those that relevance passes unchanged are left out."""
    ran: list[nn.Module] = []
    with at_modules(explained.forward, leave=lambda module, inputs, output: ran.append(module)):
        explained.evaluate(explained.probe[:1])
    return [module for module in ran if is_layer(module) and not isinstance(module, TRANSPARENT)]
