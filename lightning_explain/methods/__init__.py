"""Attribution methods: one frozen dataclass for each Captum class, with its name and argument names."""

from lightning_explain.methods.gradient import GuidedBackprop, InputXGradient, Saliency
from lightning_explain.methods.layer import LayerGradCam, LayerGradientXActivation
from lightning_explain.methods.noise import NoiseTunnel
from lightning_explain.methods.path import GradientShap, IntegratedGradients
from lightning_explain.methods.perturbation import Occlusion

__all__ = [
    "GradientShap",
    "GuidedBackprop",
    "InputXGradient",
    "IntegratedGradients",
    "LayerGradCam",
    "LayerGradientXActivation",
    "NoiseTunnel",
    "Occlusion",
    "Saliency",
]
