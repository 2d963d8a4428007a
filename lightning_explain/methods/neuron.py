"""Methods that explain one unit inside the model instead of its output: f is the neuron."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum

from lightning_explain.baselines import check_baseline
from lightning_explain.masks import FeatureMask
from lightning_explain.methods._captum import attribute, check_integral, needs_gradient
from lightning_explain.methods._cloud import Stdevs
from lightning_explain.methods._neuron import OfNeuron, counted, select
from lightning_explain.methods.deeplift import AttributionFunc, DeepLift, DeepLiftShap
from lightning_explain.methods.gradient import Deconvolution, GuidedBackprop, Saliency
from lightning_explain.methods.path import GradientShap, IntegratedGradients
from lightning_explain.methods.perturbation import FeatureAblation
from lightning_explain.types import Attribution, Baseline, Method, Reference, Rows, Subject, bare


@dataclass(frozen=True)
class NeuronGradient(OfNeuron):
    """The gradient of a neuron (``captum.attr.NeuronGradient``).

    Cost: one forward and backward row for each row.

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
    """GuidedBackprop of a neuron (``captum.attr.NeuronGuidedBackprop``).

    Cost: one forward and backward row for each row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
    """

    def _primary(self) -> Method:
        return GuidedBackprop()


@dataclass(frozen=True)
class NeuronDeconvolution(OfNeuron):
    """Deconvolution of a neuron (``captum.attr.NeuronDeconvolution``).

    Cost: one forward and backward row for each row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
    """

    def _primary(self) -> Method:
        return Deconvolution()


@dataclass(frozen=True)
class NeuronIntegratedGradients(OfNeuron):
    """Integrated gradients of a neuron (``captum.attr.NeuronIntegratedGradients``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        n_steps: Points on the line; cost: ``n_steps`` forward and backward rows for each row.
        method: Quadrature, as in IntegratedGradients.
        baselines: Where the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline).

    Raises:
        ValueError: If an argument is not allowed.
    """

    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    multiply_by_inputs: bool = True

    def _primary(self) -> Method:
        return IntegratedGradients(self.n_steps, self.method, self.baselines, self.multiply_by_inputs)


@dataclass(frozen=True)
class NeuronGradientShap(OfNeuron):
    """GradientShap of a neuron (``captum.attr.NeuronGradientShap``), with draws that belong to the row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        n_samples: Random points for each row; cost: as many forward and backward rows.
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
    """DeepLIFT of a neuron (``captum.attr.NeuronDeepLift``).

    Every activation must be a module of its own. Cost: two forward and two backward rows for each row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        baselines: What rows are compared with: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
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
    """DeepLIFT of a neuron, averaged over K baselines (``captum.attr.NeuronDeepLiftShap``).

    Every activation must be a module of its own. Cost: 2 K forward and backward rows for each row.

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
    """How far a neuron falls when a feature is replaced by the baseline (``captum.attr.NeuronFeatureAblation``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        baselines: What replaces a feature: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        feature_mask: Which elements make up a feature, as in FeatureAblation. Cost: one forward row for each feature and row.

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

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        neuron_selector: The unit, as in NeuronGradient.
        attribute_to_neuron_input: The unit is one of what goes into the layer.
        n_steps: Points on the line; cost: ``n_steps`` forward rows and twice as many backward rows for each row.
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

    def focused(self, subject: Subject) -> Subject:
        """The subject itself: it is the output that flows through the neuron."""
        return subject

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "NeuronConductance")
        unit = self.unit(subject)
        explainer = captum.NeuronConductance(
            subject.forward, subject.layer(self.layer), multiply_by_inputs=self.multiply_by_inputs
        )
        return attribute(
            explainer.attribute,
            rows,
            neuron_selector=lambda activation: counted(select(activation, unit), subject.forward),
            baselines=bare(subject.baseline(self.baselines, rows)),
            n_steps=self.n_steps,
            method=self.method,
            internal_batch_size=max(subject.limit, len(rows)),
            attribute_to_neuron_input=self.attribute_to_neuron_input,
        )
