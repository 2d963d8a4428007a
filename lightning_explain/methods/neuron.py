"""Neuron methods: samples in, input-shaped maps of one unit inside the model out; f is the neuron, not the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from captum import attr as captum

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Attribution, Baseline, Samples, bare
from lightning_explain.engine.captum_adapter import attribute
from lightning_explain.engine.features import FeatureMask
from lightning_explain.engine.noise import Scale
from lightning_explain.methods._base import AttributionFunc
from lightning_explain.methods._neuron import OfNeuron, OfUnit, counted, select
from lightning_explain.methods.deeplift import DeepLift, DeepLiftShap
from lightning_explain.methods.gradient import Deconvolution, GuidedBackprop, Saliency
from lightning_explain.methods.path import GradientShap, IntegratedGradients
from lightning_explain.methods.perturbation import FeatureAblation


@dataclass(frozen=True)
class NeuronGradient(OfNeuron):
    r"""Gradient of a neuron with respect to the input (Captum; ``captum.attr.NeuronGradient``).

    Formula: \phi_i = \frac{\partial a_j(x)}{\partial x_i}
    Cost: 1 forward, 1 backward; 1 more forward without ``neuron_selector``.
    Not for: why the model predicts what it does: it explains the unit; curves over epochs without ``neuron_selector``:
        the strongest unit can change.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        neuron_selector: The unit: an int, a tuple of ints and slices (slices are summed), or a callable that maps the
            layer's output to ``(N,)``. Default: the unit with the largest mean activation over the probe.
        attribute_to_neuron_input: Select the unit from the layer's input instead of its output.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronGradient("conv", (0, 4, 4))], metrics=[])
        >>> report.attributions["neuron_gradient"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = Saliency(abs=False)


@dataclass(frozen=True)
class NeuronGuidedBackprop(OfNeuron):
    r"""GuidedBackprop of a neuron (Springenberg et al. 2014; ``captum.attr.NeuronGuidedBackprop``).

    Formula: \phi = \phi^{\text{GuidedBackprop}}\ \text{of}\ a_j\ \text{instead of}\ f
    Cost: 1 forward, 1 backward; 1 more forward without ``neuron_selector``.
    Not for: evidence of what the unit has learned, as for GuidedBackprop (Adebayo et al. 2018); networks without ReLU
        before the unit.

    Further arguments: :class:`NeuronGradient`.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronGuidedBackprop()], metrics=[])
        >>> report.attributions["neuron_guided_backprop"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = GuidedBackprop()
    backward_rule = "guided"


@dataclass(frozen=True)
class NeuronDeconvolution(OfNeuron):
    r"""Deconvolution of a neuron (Zeiler & Fergus 2013; ``captum.attr.NeuronDeconvolution``).

    Formula: \phi = \phi^{\text{Deconvolution}}\ \text{of}\ a_j\ \text{instead of}\ f
    Cost: 1 forward, 1 backward; 1 more forward without ``neuron_selector``.
    Not for: evidence of what the unit has learned, as for Deconvolution (Nie et al. 2018); networks without ReLU before
        the unit.

    Further arguments: :class:`NeuronGradient`.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronDeconvolution()], metrics=[])
        >>> report.attributions["neuron_deconvolution"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = Deconvolution()
    backward_rule = "deconvolution"


@dataclass(frozen=True)
class NeuronIntegratedGradients(OfNeuron):
    r"""Integrated gradients of a neuron (Sundararajan et al. 2017; ``captum.attr.NeuronIntegratedGradients``).

    Formula: \phi_i = (x_i - b_i) \int_0^1 \frac{\partial a_j(b + \alpha (x - b))}{\partial x_i}\,d\alpha
    Cost: n_steps forward, n_steps backward; 1 more forward without ``neuron_selector``.
    Not for: features that equal the baseline, which get zero; curves over epochs without ``neuron_selector``: the
        strongest unit can change.

    Further arguments: :class:`NeuronGradient`, :class:`IntegratedGradients`.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> method = m.NeuronIntegratedGradients("conv", (0, 4, 4), n_steps=8)
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["neuron_integrated_gradients"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = IntegratedGradients()

    n_steps: int | str = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    multiply_by_inputs: bool = True
    tolerance: float = 0.01


@dataclass(frozen=True)
class NeuronGradientShap(OfNeuron):
    r"""GradientShap of a neuron (Lundberg & Lee 2017; ``captum.attr.NeuronGradientShap``).

    Random draws are keyed by sample id, as in GradientShap.

    Formula: \phi_i = \mathbb{E}_{b,\alpha,\varepsilon}\left[(x_i + \varepsilon_i - b_i)\,\frac{\partial a_j(b +
        \alpha (x + \varepsilon - b))}{\partial x_i}\right]
    Cost: n_samples forward, n_samples backward; 1 more forward without ``neuron_selector``.
    Not for: single pixels at few ``n_samples``: the map is a random mean; curves over epochs without
        ``neuron_selector``: the strongest unit can change.

    Further arguments: :class:`NeuronGradient`, :class:`GradientShap`.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronGradientShap("conv", (0, 4, 4))], metrics=[])
        >>> report.attributions["neuron_gradient_shap"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = GradientShap()
    takes_distribution = True

    n_samples: int = 5
    stdevs: Scale = 0.0
    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True


@dataclass(frozen=True)
class NeuronDeepLift(OfNeuron):
    r"""DeepLIFT of a neuron (Shrikumar et al. 2017; ``captum.attr.NeuronDeepLift``).

    Handles activations as DeepLift does.

    Formula: \phi = \phi^{\text{DeepLift}}\ \text{of}\ a_j\ \text{instead of}\ f
    Cost: 2 forward, 2 backward; 1 more forward without ``neuron_selector``.
    Not for: gates and squeeze-and-excitation (products), layer or group norms, recurrent layers before the unit: the map
        misses the sum, which is reported; attention and softmax before the unit (refused): use NeuronIntegratedGradients.

    Further arguments: :class:`NeuronGradient`, :class:`DeepLift`.

    Raises:
        ValueError: If ``baselines`` is not a known name.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronDeepLift("conv", (0, 4, 4))], metrics=[])
        >>> report.attributions["neuron_deep_lift"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary: ClassVar[Any] = DeepLift()
    backward_rule = "deeplift"

    baselines: Baseline = None
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None


@dataclass(frozen=True)
class NeuronDeepLiftShap(NeuronDeepLift):
    r"""DeepLIFT of a neuron, averaged over K baselines (Lundberg & Lee 2017; ``captum.attr.NeuronDeepLiftShap``).

    Handles activations as DeepLift does.

    Formula: \phi = \frac{1}{K} \sum_{k=1}^{K} \phi^{\text{NeuronDeepLift}}(x, b^{(k)})
    Cost: 2 * K forward, 2 * K backward; K baselines; 1 more forward without ``neuron_selector``.
    Not for: gates and squeeze-and-excitation (products), layer or group norms, recurrent layers before the unit: the map
        misses the sum, which is reported; attention and softmax before the unit (refused): use NeuronGradientShap.

    Further arguments: :class:`NeuronGradient`, :class:`DeepLiftShap`.

    Raises:
        ValueError: If ``baselines`` is not a known name.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronDeepLiftShap("conv", (0, 4, 4))], metrics=[])
        >>> report.attributions["neuron_deep_lift_shap"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = DeepLiftShap()
    takes_distribution = True

    baselines: Baseline = "probe"


@dataclass(frozen=True)
class NeuronFeatureAblation(OfNeuron):
    r"""Drop of a neuron when a feature is replaced (Captum; ``captum.attr.NeuronFeatureAblation``).

    Formula: \phi_g = a_j(x) - a_j(x_{g \leftarrow b})
    Cost: F + 1 forward, 0 backward; F features; 1 more forward without ``neuron_selector``.
    Not for: images without a ``feature_mask``: one pass for each channel of each pixel; redundant features: replacing
        one alone changes little.

    Further arguments: :class:`NeuronGradient`, :class:`FeatureAblation`.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> method = m.NeuronFeatureAblation("conv", (0, 4, 4), feature_mask={"grid": 4})
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["neuron_feature_ablation"].shape
        torch.Size([2, 3, 8, 8])
    """

    primary = FeatureAblation()
    backward_rule = "none"

    baselines: Baseline = None
    feature_mask: FeatureMask = None


@dataclass(frozen=True)
class NeuronConductance(OfUnit):
    r"""Flow from each input through a neuron to the output (Dhamdhere et al. 2018; ``captum.attr.NeuronConductance``).

    Formula: \phi_i = (x_i - b_i) \int_0^1 \frac{\partial f(b + \alpha (x - b))}{\partial a_j}\,\frac{\partial
        a_j}{\partial x_i}\,d\alpha
    Cost: n_steps forward, 2 * n_steps backward; 1 more forward without ``neuron_selector``.
    Not for: what excites the unit (use NeuronIntegratedGradients): the map shows what flows through it to the output;
        curves over epochs without ``neuron_selector``: the strongest unit can change.

    Args:
        n_steps: Points on the path.
        multiply_by_inputs: Multiply by (input - baseline).

    Further arguments: :class:`NeuronGradient`, :class:`IntegratedGradients`.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.NeuronConductance("conv", (0, 4, 4), n_steps=8)], metrics=[])
        >>> report.attributions["neuron_conductance"].shape
        torch.Size([2, 3, 8, 8])
    """

    through_neuron = True
    tensor_layers_only = True

    n_steps: int = 50
    method: str = "riemann_trapezoid"
    baselines: Baseline = None
    multiply_by_inputs: bool = True

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        unit = self.unit(explained)
        layer = explained.layer(self.layer)
        explainer = captum.NeuronConductance(explained.forward, layer, multiply_by_inputs=self.multiply_by_inputs)
        return attribute(
            explainer.attribute,
            samples,
            neuron_selector=lambda activation: counted(select(activation, unit), explained.forward, layer),
            baselines=bare(explained.baseline(self.baselines, samples)),
            n_steps=self.n_steps,
            method=self.method,
            internal_batch_size=max(explained.limit, len(samples)),
            attribute_to_neuron_input=self.attribute_to_neuron_input,
        )
