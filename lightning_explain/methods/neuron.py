"""Methods that explain one unit inside the model instead of its output: f is the neuron."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum

from lightning_explain.core.contracts import ExplainedFunction, Method, Reference
from lightning_explain.core.probe import Attribution, Baseline, Samples, bare
from lightning_explain.core.validation import check_integral
from lightning_explain.engine.baselines import check_baseline
from lightning_explain.engine.captum_adapter import attribute, needs_gradient
from lightning_explain.engine.features import FeatureMask
from lightning_explain.engine.noise import Stdevs
from lightning_explain.methods._neuron import OfNeuron, counted, select
from lightning_explain.methods.deeplift import AttributionFunc, DeepLift, DeepLiftShap
from lightning_explain.methods.gradient import Deconvolution, GuidedBackprop, Saliency
from lightning_explain.methods.path import GradientShap, IntegratedGradients
from lightning_explain.methods.perturbation import FeatureAblation


@dataclass(frozen=True)
class NeuronGradient(OfNeuron):
    """The gradient of a neuron (Captum; ``captum.attr.NeuronGradient``).

    Cost: 1 forward, 1 backward; 1 more forward without ``neuron_selector``.
    Not for: why the model predicts what it does: it explains the unit; curves over epochs without ``neuron_selector``,
        for the strongest unit can change.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit: an int, a tuple of ints and slices (sums), a callable on the layer's output that returns
            ``(N,)``; by default the unit with the largest mean activation over the probe.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
    """

    def _primary(self) -> Method:
        return Saliency(abs=False)


@dataclass(frozen=True)
class NeuronGuidedBackprop(OfNeuron):
    """GuidedBackprop of a neuron (Springenberg et al. 2014; ``captum.attr.NeuronGuidedBackprop``).

    Cost: 1 forward, 1 backward; 1 more forward without ``neuron_selector``.
    Not for: telling what the unit has learned, as with GuidedBackprop (Adebayo et al. 2018); networks without ReLU in
        front of the unit.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
    """

    def _primary(self) -> Method:
        return GuidedBackprop()


@dataclass(frozen=True)
class NeuronDeconvolution(OfNeuron):
    """Deconvolution of a neuron (Zeiler & Fergus 2013; ``captum.attr.NeuronDeconvolution``).

    Cost: 1 forward, 1 backward; 1 more forward without ``neuron_selector``.
    Not for: telling what the unit has learned, as with Deconvolution (Nie et al. 2018); networks without ReLU in front
        of the unit.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
    """

    def _primary(self) -> Method:
        return Deconvolution()


@dataclass(frozen=True)
class NeuronIntegratedGradients(OfNeuron):
    """Integrated gradients of a neuron (Sundararajan et al. 2017; ``captum.attr.NeuronIntegratedGradients``).

    Cost: n_steps forward, n_steps backward; 1 more forward without ``neuron_selector``.
    Not for: features that equal the baseline, which get zero; curves over epochs without ``neuron_selector``, for the
        strongest unit can change.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        n_steps: Points on the line, or ``"auto"`` as in IntegratedGradients.
        method: Quadrature, as in IntegratedGradients.
        baselines: Where the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline).
        tolerance: With ``"auto"``, as in IntegratedGradients.

    Raises:
        ValueError: If an argument is not allowed.
    """

    n_steps: int | str = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    multiply_by_inputs: bool = True
    tolerance: float = 0.01

    def _primary(self) -> Method:
        return IntegratedGradients(self.n_steps, self.method, self.baselines, self.multiply_by_inputs, self.tolerance)


@dataclass(frozen=True)
class NeuronGradientShap(OfNeuron):
    """GradientShap of a neuron (Lundberg & Lee 2017; ``captum.attr.NeuronGradientShap``).

    The draws belong to the sample, as in GradientShap.

    Cost: n_samples forward, n_samples backward; 1 more forward without ``neuron_selector``.
    Not for: single pixels at few ``n_samples``: it is a random mean; curves over epochs without ``neuron_selector``,
        for the strongest unit can change.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        n_samples: Random points for each sample.
        stdevs: Standard deviation of the noise added to the input, one number or one for each input.
        baselines: The set baselines are drawn from: a tensor ``(K, ...)``, ``"probe"``, or a tuple such as ``("zero", "probe")``.
        multiply_by_inputs: Multiply by (input - baseline).

    Raises:
        ValueError: If an argument is not allowed.
    """

    n_samples: int = 5
    stdevs: Stdevs = 0.0
    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True

    def _primary(self) -> Method:
        return GradientShap(self.n_samples, self.stdevs, self.baselines, self.multiply_by_inputs)


@dataclass(frozen=True)
class NeuronDeepLift(OfNeuron):
    """DeepLIFT of a neuron (Shrikumar et al. 2017; ``captum.attr.NeuronDeepLift``).

    Activations that are functions, used twice, without a rule in Captum, or directly beside another (Captum issue 1104: ReLU and a
    maximum) are canonized while explaining: the map is Captum's on a model repaired by hand.

    Cost: 2 forward, 2 backward; 1 more forward without ``neuron_selector``.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        in front of the unit (all refused): use NeuronIntegratedGradients.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        baselines: What samples are compared with: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline).
        custom_attribution_func: A function of (multipliers, inputs, baselines) instead of that product.

    Raises:
        ValueError: If ``baselines`` is an unknown name.
    """

    baselines: Baseline = None
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None

    def _primary(self) -> Method:
        custom = self.custom_attribution_func
        return DeepLift(self.baselines, self.multiply_by_inputs, custom_attribution_func=custom)


@dataclass(frozen=True)
class NeuronDeepLiftShap(OfNeuron):
    """DeepLIFT of a neuron, averaged over K baselines (Lundberg & Lee 2017; ``captum.attr.NeuronDeepLiftShap``).

    Activations that are functions, used twice, without a rule in Captum, or directly beside another (Captum issue 1104: ReLU and a
    maximum) are canonized while explaining: the map is Captum's on a model repaired by hand.

    Cost: 2 * K forward, 2 * K backward; K baselines; 1 more forward without ``neuron_selector``.
    Not for: attention, gates and squeeze-and-excitation (products), softmax, layer or group norms, recurrent layers
        in front of the unit (all refused): use NeuronGradientShap.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        baselines: The set: a tensor ``(K, ...)``, ``"probe"``, or a tuple such as ``("zero", "probe")``.
        multiply_by_inputs: Multiply by (input - baseline).
        custom_attribution_func: A function of (multipliers, inputs, baselines) instead of that product.

    Raises:
        ValueError: If ``baselines`` is an unknown name.
    """

    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True
    custom_attribution_func: AttributionFunc = None

    def _primary(self) -> Method:
        return DeepLiftShap(self.baselines, self.multiply_by_inputs, self.custom_attribution_func)


@dataclass(frozen=True)
class NeuronFeatureAblation(OfNeuron):
    """How far a neuron falls when a feature is replaced (Captum; ``captum.attr.NeuronFeatureAblation``).

    Cost: F + 1 forward, 0 backward; F features; 1 more forward without ``neuron_selector``.
    Not for: images without a ``feature_mask``, one pass a pixel and channel; features that stand in for each other:
        each alone changes little.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        baselines: What replaces a feature: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        feature_mask: Which elements make up a feature, as in FeatureAblation.

    Raises:
        ValueError: If an argument is not allowed.
    """

    baselines: Baseline = None
    feature_mask: FeatureMask = None

    def _primary(self) -> Method:
        return FeatureAblation(self.baselines, self.feature_mask)


@dataclass(frozen=True)
class NeuronConductance(OfNeuron):
    """How much of each input flows to the output through a neuron (Dhamdhere et al. 2018; ``captum.attr.NeuronConductance``).

    Cost: n_steps forward, 2 * n_steps backward; 1 more forward without ``neuron_selector``.
    Not for: what excites the unit: it is what flows through it to the output (NeuronIntegratedGradients explains the
        unit); curves over epochs without ``neuron_selector``, for the strongest unit can change.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        n_steps: Points on the line.
        method: Quadrature, as in IntegratedGradients.
        baselines: Where the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline).

    Raises:
        ValueError: If an argument is not allowed.
    """

    n_steps: int = 50
    method: str = "riemann_trapezoid"
    baselines: Baseline = None
    multiply_by_inputs: bool = True

    def _check_arguments(self) -> None:
        check_integral("NeuronConductance", self.n_steps, self.method)
        check_baseline(self.baselines)

    @property
    def reference(self) -> Reference | None:
        """Nothing: it is a part of what flows."""
        return None

    def focused(self, explained: ExplainedFunction) -> ExplainedFunction:
        """The explained itself: it is the output that flows through the neuron."""
        return explained

    def inside(self, explained: ExplainedFunction) -> tuple[Method, ExplainedFunction]:
        """Itself, for it is no method of another name inside the neuron."""
        return self, explained

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(samples, "NeuronConductance")
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
