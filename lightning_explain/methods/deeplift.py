"""DeepLIFT and DeepLIFT SHAP: samples and baselines in, contributions to the output difference out.

At the input and at layers. Each sample goes through the model together with its baseline, so even ``limit=1`` sends two
samples at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from captum.attr._utils.common import _call_custom_attribution_func
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import DEEPLIFT, Evaluation, Read, Reducer
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.engine.noise import narrowed, wide
from lightning_explain.engine.paths import Pairs
from lightning_explain.methods._base import AtLayer, AttributionFunc, OnPath, SumsUp, each, sum_of_evaluations
from lightning_explain.modalities.image import Reshape


class Rescaling(SumsUp, OnPath):
    """Base class: compares samples with one or many baselines by DeepLIFT's rescale rule."""

    backward_rule = "deeplift"

    eps: float = 1e-10

    @property
    def rule(self) -> str:
        """Key of the rescale rule with the threshold ``eps``."""
        return f"{DEEPLIFT}:{self.eps!r}"

    @property
    def reads(self) -> frozenset[Read]:
        """Multipliers at the inputs."""
        return frozenset({(self.rule, None)})

    @property
    def path(self) -> Pairs:
        """Each sample paired with its baseline, or with each baseline of a set."""
        return Pairs(self.baselines, self.eps, self.takes_distribution)

    def ends(self, evaluation: Evaluation) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Multipliers, and the values they apply to: those of the samples and those of their baselines."""
        return evaluation.gradient(self.rule), evaluation.point.samples.inputs, evaluation.point.against

    def differences(self, evaluation: Evaluation) -> tuple[Tensor, ...]:
        """Map from one evaluation, each ``(N, ...)``."""
        multipliers, values, references = self.ends(evaluation)
        if self.custom_attribution_func is not None:
            custom = self.custom_attribution_func
            found: tuple[Tensor, ...] = _call_custom_attribution_func(custom, multipliers, values, references)
            return found
        if not self.multiply_by_inputs:
            return multipliers
        return each(lambda m, x, b: (x - b) * m, multipliers, values, references)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        if not self.takes_distribution:
            return self.differences((yield))
        count = len(explained.distribution(self.baselines, samples)[0])
        total = yield from sum_of_evaluations(count, lambda evaluation: each(wide, self.differences(evaluation)))
        return narrowed(tuple(t / count for t in total), samples)


@dataclass(frozen=True)
class DeepLift(Rescaling):
    r"""Differences from a baseline, attributed by the rescale rule (Shrikumar et al. 2017; ``captum.attr.DeepLift``).

    The rule holds for every activation and maximum that is called, as a module, a function or a method, in place or
    reused; the map equals Captum's on a model rewritten by hand. Everything is computed in float32 or higher: autocast is
    off, and 16-bit weights are copied as float32 for the pass, 4 bytes for each. ``Report.completeness_errors`` has
    what each map misses of f(x) - f(baseline); a warning names the methods that miss more than rounding.

    Formula: \phi_i = (x_i - b_i)\,m_i,\quad m: \text{the gradient with}\ \frac{\Delta\text{out}}{\Delta\text{in}}\
        \text{for the derivative of each activation}
    Cost: 2 forward, 2 backward.
    Not for: gates and squeeze-and-excitation (products), layer or group norms, recurrent layers: the map
        misses the sum, which is reported; attention and softmax inside the model (refused): use IntegratedGradients.

    Args:
        baselines: Baseline that each sample is compared with: ``None`` (zero), a number, a tensor, ``"black"``,
            ``"mean"``, or ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline); the map then sums to f(x) - f(baseline).
        eps: Differences of activations below this count as zero.
        custom_attribution_func: Function of (multipliers, inputs, baselines) that replaces this product.

    Raises:
        ValueError: If ``baselines`` or ``eps`` is not allowed.
        TypeError: If ``custom_attribution_func`` is not callable.

    Example:
        >>> report = explain(model, probe, methods=[m.DeepLift(baselines="mean")], metrics=[])
        >>> report.attributions["deep_lift"].shape
        torch.Size([2, 3, 8, 8])
    """

    baselines: Baseline = None
    multiply_by_inputs: bool = True
    eps: float = 1e-10
    custom_attribution_func: AttributionFunc = None


@dataclass(frozen=True)
class DeepLiftShap(Rescaling):
    r"""DeepLIFT averaged over a set of K baselines (Lundberg & Lee 2017; ``captum.attr.DeepLiftShap``).

    Handles activations as DeepLift does.

    Formula: \phi = \frac{1}{K} \sum_{k=1}^{K} \phi^{\text{DeepLift}}(x, b^{(k)})
    Cost: 2 * K forward, 2 * K backward; K baselines.
    Not for: gates and squeeze-and-excitation (products), layer or group norms, recurrent layers: the map
        misses the sum, which is reported; attention and softmax inside the model (refused): use GradientShap.

    Args:
        baselines: Set of K baselines: a tensor ``(K, ...)``, ``"probe"`` (the probe samples), a tuple such as
            ``("zero", "probe")``, or a function of the probe's inputs, or of nothing, that returns a set.
        multiply_by_inputs: Multiply by (input - baseline); the map then sums to f(x) minus the mean of f over the
            baselines.

    Further arguments: :class:`DeepLift`.

    Raises:
        ValueError: If ``baselines`` is not a known name.
        TypeError: If ``custom_attribution_func`` is not callable.

    Example:
        >>> report = explain(model, probe, methods=[m.DeepLiftShap()], metrics=[])
        >>> report.attributions["deep_lift_shap"].shape
        torch.Size([2, 3, 8, 8])
    """

    takes_distribution = True

    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None


@dataclass(frozen=True)
class LayerDeepLift(AtLayer, Rescaling):
    r"""DeepLIFT of a layer's activations (Shrikumar et al. 2017; ``captum.attr.LayerDeepLift``).

    Handles activations as DeepLift does.

    Formula: \phi_j = (a_j(x) - a_j(b))\,m_j,\quad m\ \text{the multipliers of DeepLift at the layer}
    Cost: 2 forward, 2 backward.
    Returns: Shaped as the layer's output, in units of the explained output.
    Not for: gates and squeeze-and-excitation (products), layer or group norms, recurrent layers after the layer: the map
        misses the sum, which is reported; attention and softmax inside the model (refused): use LayerIntegratedGradients.

    Args:
        baselines: Input whose activations each sample is compared with: ``None`` (zero), a number, a tensor,
            ``"black"``, ``"mean"``, or ``"blur"``.
        multiply_by_inputs: Multiply by the difference between the activations at the sample and at the baseline.
        custom_attribution_func: Function of (multipliers, activations, baseline activations) that replaces this
            product.

    Further arguments: :class:`LayerActivation`.

    Raises:
        ValueError: If ``baselines`` is not a known name.
        TypeError: If ``custom_attribution_func`` is not callable.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerDeepLift("conv")], metrics=[])
        >>> report.attributions["layer_deep_lift"].shape
        torch.Size([2, 4, 8, 8])
    """

    tensor_layers_only = True

    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None
    reshape: Reshape = None

    @property
    def reads(self) -> frozenset[Read]:
        """Multipliers and activations at the layer."""
        return frozenset({(self.rule, self.site), (None, self.site)})

    def ends(self, evaluation: Evaluation) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Multipliers, and the activations of the samples and of their baselines."""
        pairs = evaluation.activation(self.site)
        return evaluation.gradient(self.rule, self.site), tuple(p[:, 0] for p in pairs), tuple(p[:, 1] for p in pairs)


@dataclass(frozen=True)
class LayerDeepLiftShap(LayerDeepLift):
    r"""DeepLIFT of a layer's activations, averaged over K baselines (Lundberg & Lee 2017; ``captum.attr.LayerDeepLiftShap``).

    Handles activations as DeepLift does.

    Formula: \phi = \frac{1}{K} \sum_{k=1}^{K} \phi^{\text{LayerDeepLift}}(x, b^{(k)})
    Cost: 2 * K forward, 2 * K backward; K baselines.
    Returns: Shaped as the layer's output, in units of the explained output.
    Not for: gates and squeeze-and-excitation (products), layer or group norms, recurrent layers after the layer: the map
        misses the sum, which is reported; attention and softmax inside the model (refused): use LayerGradientShap.

    Args:
        baselines: Set of K inputs whose activations are compared with, as in :class:`DeepLiftShap`.

    Further arguments: :class:`LayerDeepLift`.

    Raises:
        ValueError: If ``baselines`` is not a known name.
        TypeError: If ``custom_attribution_func`` is not callable.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerDeepLiftShap("conv")], metrics=[])
        >>> report.attributions["layer_deep_lift_shap"].shape
        torch.Size([2, 4, 8, 8])
    """

    takes_distribution = True

    baselines: Baseline = "probe"
