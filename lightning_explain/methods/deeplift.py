"""DeepLIFT and DeepLIFT SHAP: differences of activations against those at a baseline, at the input and at layers.

A sample and its baseline go through the model side by side, so that even ``limit=1`` sends two samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from captum.attr._utils.common import _call_custom_attribution_func
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Reference
from lightning_explain.core.points import DEEPLIFT, Evaluation, Read, Reducer
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.core.validation import check_callable
from lightning_explain.engine.baselines import DISTRIBUTIONS, check_baseline
from lightning_explain.engine.captum_adapter import freeze
from lightning_explain.engine.noise import narrowed, wide
from lightning_explain.engine.paths import Pairs, PairsWithEach
from lightning_explain.methods._base import AtLayer, OnPath, each, sum_of_evaluations
from lightning_explain.modalities.image import Reshape

AttributionFunc: TypeAlias = "Callable[..., tuple[Tensor, ...]] | None"


def summed(method: Any, distribution: bool = False) -> Reference | None:
    """What a DeepLIFT map promises to add up to, unless its arguments change what it is."""
    if method.multiply_by_inputs and method.custom_attribution_func is None:
        return Reference(method.baselines, distribution)
    return None


class Rescaling(OnPath):
    """DeepLIFT's differences from one or many baselines."""

    baselines: Baseline
    multiply_by_inputs: bool
    custom_attribution_func: AttributionFunc

    @property
    def rule(self) -> str:
        """The rescale rule, with Captum's own threshold."""
        return f"{DEEPLIFT}:{1e-10!r}"

    @property
    def reads(self) -> frozenset[Read]:
        """Multipliers at the inputs."""
        return frozenset({(self.rule, None)})

    def ends(self, evaluation: Evaluation) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Multipliers, and what they belong to at the samples and at their baselines."""
        return evaluation.gradient(self.rule), evaluation.point.samples.inputs, evaluation.point.against

    def differences(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """The map from one evaluation."""
        multipliers, values, references = self.ends(evaluation)
        if self.custom_attribution_func is not None:
            custom = self.custom_attribution_func
            found: tuple[Tensor, ...] = _call_custom_attribution_func(custom, multipliers, values, references)
            return found
        if not self.multiply_by_inputs:
            return multipliers
        return each(lambda m, x, b: (x - b) * m, multipliers, values, references)

    def mean(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """The mean of the maps over the set of baselines."""
        count = len(explained.distribution(self.baselines, samples)[0])
        total = yield from sum_of_evaluations(count, lambda evaluation: each(wide, self.differences(evaluation)))
        return narrowed(tuple(t / count for t in total), samples)


class RescalingAtLayer(AtLayer, Rescaling):
    """DeepLIFT's differences of a layer's activations."""

    floating: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[Read]:
        """Multipliers at the layer, and what it says."""
        return frozenset({(self.rule, self.site), (None, self.site)})

    def ends(self, evaluation: Evaluation) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Multipliers, and the activations at the samples and at their baselines."""
        pairs = evaluation.activation(self.site)
        return evaluation.gradient(self.rule, self.site), tuple(p[:, 0] for p in pairs), tuple(p[:, 1] for p in pairs)


@dataclass(frozen=True)
class DeepLift(Rescaling):
    """Differences from a baseline, carried back by the rescale rule (Shrikumar et al. 2017; ``captum.attr.DeepLift``).

    Activations that are functions, used twice, without a rule in Captum, or directly beside another (Captum issue 1104: ReLU and a
    maximum) are canonized while explaining: the map is Captum's on a model repaired by hand.

    Cost: 2 forward, 2 backward.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        (all refused): use IntegratedGradients.

    Args:
        baselines: What samples are compared with: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
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

    @property
    def path(self) -> Pairs:
        """Each sample beside its baseline."""
        return Pairs(self.baselines, self.eps)

    @property
    def rule(self) -> str:
        """The rescale rule."""
        return f"{DEEPLIFT}:{self.eps!r}"

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        return self.differences((yield))


@dataclass(frozen=True)
class DeepLiftShap(Rescaling):
    """DeepLIFT averaged over a set of K baselines (Lundberg & Lee 2017; ``captum.attr.DeepLiftShap``).

    Activations that are functions, used twice, without a rule in Captum, or directly beside another (Captum issue 1104: ReLU and a
    maximum) are canonized while explaining: the map is Captum's on a model repaired by hand.

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

    @property
    def path(self) -> PairsWithEach:
        """Each sample beside each baseline."""
        return PairsWithEach(self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        return self.mean(explained, samples)


@dataclass(frozen=True)
class LayerDeepLift(RescalingAtLayer):
    """DeepLIFT of a layer's activations (Shrikumar et al. 2017; ``captum.attr.LayerDeepLift``).

    Activations that are functions, used twice, without a rule in Captum, or directly beside another (Captum issue 1104: ReLU and a
    maximum) are canonized while explaining: the map is Captum's on a model repaired by hand.

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

    @property
    def path(self) -> Pairs:
        """Each sample beside its baseline."""
        return Pairs(self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped as the layer's output, in units of the explained output."""
        return self.differences((yield))


@dataclass(frozen=True)
class LayerDeepLiftShap(RescalingAtLayer):
    """DeepLIFT of a layer's activations, at K baselines (Lundberg & Lee 2017; ``captum.attr.LayerDeepLiftShap``).

    Activations that are functions, used twice, without a rule in Captum, or directly beside another (Captum issue 1104: ReLU and a
    maximum) are canonized while explaining: the map is Captum's on a model repaired by hand.

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

    @property
    def path(self) -> PairsWithEach:
        """Each sample beside each baseline."""
        return PairsWithEach(self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped as the layer's output, in units of the explained output."""
        return self.mean(explained, samples)
