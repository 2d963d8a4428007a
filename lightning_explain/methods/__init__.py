"""Attribution methods: one frozen dataclass for each Captum class, with Captum's name and argument names, and a few beyond Captum.

In: an ``ExplainedFunction`` and samples. Out: one attribution per sample, input-shaped or in the shape of a layer.
Most methods declare a path, what they read on it, and a reducer (``_base.py``); the others run through Captum. An argument
has the same name, meaning and check in all of them (``CheckedArguments``).
Must not import ``metrics``, ``checks``, ``explainer`` or anything above them.
Start reading at ``gradient.py``, then ``path.py``.
"""

from captum.attr import Attribution

from lightning_explain.methods._adaptive import steps_taken as steps_taken
from lightning_explain.methods.attention import AttentionRollout
from lightning_explain.methods.cam import HiResCAM, LayerCAM
from lightning_explain.methods.deeplift import DeepLift, DeepLiftShap, LayerDeepLift, LayerDeepLiftShap
from lightning_explain.methods.gradient import Deconvolution, GuidedBackprop, GuidedGradCam, InputXGradient, Saliency
from lightning_explain.methods.layer import (
    LayerActivation,
    LayerFeatureAblation,
    LayerGradCam,
    LayerGradientXActivation,
)
from lightning_explain.methods.layer_path import (
    InternalInfluence,
    LayerConductance,
    LayerGradientShap,
    LayerIntegratedGradients,
)
from lightning_explain.methods.lrp import LRP, LayerLRP
from lightning_explain.methods.neuron import (
    NeuronConductance,
    NeuronDeconvolution,
    NeuronDeepLift,
    NeuronDeepLiftShap,
    NeuronFeatureAblation,
    NeuronGradient,
    NeuronGradientShap,
    NeuronGuidedBackprop,
    NeuronIntegratedGradients,
)
from lightning_explain.methods.noise_tunnel import NoiseTunnel
from lightning_explain.methods.path import GradientShap, IntegratedGradients
from lightning_explain.methods.perturbation import FeatureAblation, FeaturePermutation, Occlusion
from lightning_explain.methods.shapley import ShapleyValues, ShapleyValueSampling
from lightning_explain.methods.surrogate import KernelShap, Lime

CaptumAttribution = Attribution
"""Base class of Captum's own methods, which are bound to a model and lack our interface."""

__all__ = ["LRP", "AttentionRollout", "Deconvolution", "DeepLift", "DeepLiftShap", "FeatureAblation"]
__all__ += ["FeaturePermutation", "GradientShap"]
__all__ += ["GuidedBackprop", "GuidedGradCam", "HiResCAM", "InputXGradient", "IntegratedGradients", "InternalInfluence"]
__all__ += ["KernelShap", "Lime", "NoiseTunnel", "Occlusion", "Saliency", "ShapleyValueSampling", "ShapleyValues"]
__all__ += [
    "LayerActivation",
    "LayerCAM",
    "LayerConductance",
    "LayerDeepLift",
    "LayerDeepLiftShap",
    "LayerFeatureAblation",
]
__all__ += ["LayerGradCam", "LayerGradientShap", "LayerGradientXActivation", "LayerIntegratedGradients", "LayerLRP"]
__all__ += ["NeuronConductance", "NeuronDeconvolution", "NeuronDeepLift", "NeuronDeepLiftShap", "NeuronFeatureAblation"]
__all__ += ["NeuronGradient", "NeuronGradientShap", "NeuronGuidedBackprop", "NeuronIntegratedGradients"]
