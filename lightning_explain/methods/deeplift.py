"""DeepLIFT and DeepLIFT SHAP: differences of activations against those at a baseline, at the input and at layers.

A row and its baseline go through the model side by side, so that even ``limit=1`` sends two rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from captum import attr as captum
from torch import Tensor

from lightning_explain.baselines import DISTRIBUTIONS, check_baseline
from lightning_explain.maps import Reshape
from lightning_explain.methods._captum import attribute, check_callable, freeze, in_pieces, needs_gradient
from lightning_explain.methods._cloud import mean_over_draws, narrowed
from lightning_explain.methods._layer import AtLayer
from lightning_explain.types import Attribution, Baseline, Reference, Rows, Subject, as_tuple, bare

AttributionFunc: TypeAlias = "Callable[..., tuple[Tensor, ...]] | None"


def against_one(subject: Subject, rows: Rows, baselines: Baseline, explainer: Any, **arguments: Any) -> Attribution:
    """A Captum DeepLIFT of each row against its baseline."""

    def call(part: Rows) -> Attribution:
        points = bare(subject.baseline(baselines, part))
        return attribute(explainer.attribute, part, baselines=points, **arguments)

    return in_pieces(rows, subject.limit // 2, call)


def against_many(subject: Subject, rows: Rows, baselines: Baseline, explainer: Any, **arguments: Any) -> Attribution:
    """The mean of a Captum DeepLIFT of each row over a set of baselines, as in Captum's DeepLiftShap."""
    references = subject.distribution(baselines, rows)
    halved = replace(subject, limit=max(1, subject.limit // 2))

    def one(part: Rows, indices: Tensor) -> tuple[Tensor, ...]:
        chosen = bare(tuple(r[indices.to(r.device)] for r in references))
        return as_tuple(attribute(explainer.attribute, part, baselines=chosen, **arguments))

    def call(part: Rows) -> Attribution:
        return bare(narrowed(mean_over_draws(halved, part, len(references[0]), one, powers=(1,))[0], part))

    return in_pieces(rows, halved.limit, call)


def summed(method: Any, distribution: bool = False) -> Reference | None:
    """What a DeepLIFT map promises to add up to, unless its arguments change what it is."""
    if method.multiply_by_inputs and method.custom_attribution_func is None:
        return Reference(method.baselines, distribution)
    return None


@dataclass(frozen=True)
class DeepLift:
    """Differences from a baseline, carried back by the rescale rule (Shrikumar et al. 2017; ``captum.attr.DeepLift``).

    Activations that are functions or used twice are mended while explaining.

    Cost: 2 forward, 2 backward.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        (all refused): use IntegratedGradients.

    Args:
        baselines: What rows are compared with: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline), so that the map sums to f(x) - f(baseline).
        eps: Differences of activations below it count as none.
        custom_attribution_func: A function of (multipliers, inputs, baselines) instead of that product.

    Raises:
        ValueError: If ``baselines`` or ``eps`` is not allowed.
        TypeError: If ``custom_attribution_func`` is not a callable.
    """

    baselines: Baseline = None
    multiply_by_inputs: bool = True
    eps: float = 1e-10
    custom_attribution_func: AttributionFunc = None

    def __post_init__(self) -> None:
        freeze(self)
        check_baseline(self.baselines)
        check_callable("DeepLift(custom_attribution_func", self.custom_attribution_func)
        if not self.eps > 0:
            raise ValueError(f"DeepLift(eps={self.eps!r}); allowed: a number above 0.")

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return summed(self)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "DeepLift")
        explainer = captum.DeepLift(subject.forward, multiply_by_inputs=self.multiply_by_inputs, eps=self.eps)
        custom = self.custom_attribution_func
        return against_one(subject, rows, self.baselines, explainer, custom_attribution_func=custom)


@dataclass(frozen=True)
class DeepLiftShap:
    """DeepLIFT averaged over a set of K baselines (Lundberg & Lee 2017; ``captum.attr.DeepLiftShap``).

    Activations that are functions or used twice are mended while explaining.

    Cost: 2 * K forward, 2 * K backward; K baselines.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        (all refused): use GradientShap.

    Args:
        baselines: The set: a tensor ``(K, ...)``, ``"probe"``, or a tuple such as ``("zero", "probe")``.
        multiply_by_inputs: Multiply by (input - baseline), so that the map sums to f(x) - mean of f(baselines).
        custom_attribution_func: A function of (multipliers, inputs, baselines) instead of that product.

    Raises:
        ValueError: If ``baselines`` is an unknown name.
        TypeError: If ``custom_attribution_func`` is not a callable.
    """

    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None

    def __post_init__(self) -> None:
        freeze(self)
        check_baseline(self.baselines, DISTRIBUTIONS)
        check_callable("DeepLiftShap(custom_attribution_func", self.custom_attribution_func)

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return summed(self, distribution=True)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "DeepLiftShap")
        explainer = captum.DeepLift(subject.forward, multiply_by_inputs=self.multiply_by_inputs)
        custom = self.custom_attribution_func
        return against_many(subject, rows, self.baselines, explainer, custom_attribution_func=custom)


@dataclass(frozen=True)
class LayerDeepLift(AtLayer):
    """DeepLIFT of a layer's activations (Shrikumar et al. 2017; ``captum.attr.LayerDeepLift``).

    Activations that are functions or used twice are mended while explaining.

    Cost: 2 forward, 2 backward.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        behind the layer (all refused): use LayerIntegratedGradients.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        baselines: Inputs whose activations are compared with: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        multiply_by_inputs: Multiply by the difference of the activations.
        custom_attribution_func: A function of (multipliers, activations, baseline activations) instead of that product.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``baselines`` is an unknown name.
        TypeError: If ``custom_attribution_func`` is not a callable.
    """

    layer: str | None = None
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baselines)
        check_callable("LayerDeepLift(custom_attribution_func", self.custom_attribution_func)

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return summed(self)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        return against_one(
            subject, _differentiable(rows), self.baselines, _at_layer(self, subject), **_layer_arguments(self)
        )


@dataclass(frozen=True)
class LayerDeepLiftShap(AtLayer):
    """DeepLIFT of a layer's activations, at K baselines (Lundberg & Lee 2017; ``captum.attr.LayerDeepLiftShap``).

    Activations that are functions or used twice are mended while explaining.

    Cost: 2 * K forward, 2 * K backward; K baselines.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        behind the layer (all refused): use LayerGradientShap.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        baselines: The set of inputs: a tensor ``(K, ...)``, ``"probe"``, or a tuple such as ``("zero", "probe")``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        multiply_by_inputs: Multiply by the difference of the activations.
        custom_attribution_func: A function of (multipliers, activations, baseline activations) instead of that product.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``baselines`` is an unknown name.
        TypeError: If ``custom_attribution_func`` is not a callable.
    """

    layer: str | None = None
    baselines: Baseline = "probe"
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline(self.baselines, DISTRIBUTIONS)
        check_callable("LayerDeepLiftShap(custom_attribution_func", self.custom_attribution_func)

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return summed(self, distribution=True)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        return against_many(
            subject, _differentiable(rows), self.baselines, _at_layer(self, subject), **_layer_arguments(self)
        )


def _differentiable(rows: Rows) -> Rows:
    """Captum hooks the gradients of all activations, also of those before the layer, where no weight needs one."""
    return rows.at(tuple(x.detach().requires_grad_(x.is_floating_point()) for x in rows.inputs))


def _at_layer(method: LayerDeepLift | LayerDeepLiftShap, subject: Subject) -> Any:
    layer = subject.layer(method.layer)
    return captum.LayerDeepLift(subject.forward, layer, multiply_by_inputs=method.multiply_by_inputs)


def _layer_arguments(method: LayerDeepLift | LayerDeepLiftShap) -> dict[str, Any]:
    return {
        "attribute_to_layer_input": method.attribute_to_layer_input,
        "custom_attribution_func": method.custom_attribution_func,
    }
