"""What the doctor must know of a method: declared by its class, or by Captum's name for it."""

from __future__ import annotations

from lightning_explain.core.contracts import Method

_RULES = {
    "DeepLift": "deeplift",
    "DeepLiftShap": "deeplift",
    "LayerDeepLift": "deeplift",
    "LayerDeepLiftShap": "deeplift",
    "NeuronDeepLift": "deeplift",
    "NeuronDeepLiftShap": "deeplift",
    "GuidedBackprop": "guided",
    "GuidedGradCam": "guided",
    "NeuronGuidedBackprop": "guided",
    "Deconvolution": "deconvolution",
    "NeuronDeconvolution": "deconvolution",
    "LRP": "lrp",
    "LayerLRP": "lrp",
    **dict.fromkeys(
        (
            "FeatureAblation",
            "FeaturePermutation",
            "KernelShap",
            "LayerActivation",
            "LayerFeatureAblation",
            "Lime",
            "NeuronFeatureAblation",
            "Occlusion",
            "ShapleyValueSampling",
            "ShapleyValues",
        ),
        "none",
    ),
}
_AT_THE_POINT = {
    "Deconvolution",
    "GuidedBackprop",
    "GuidedGradCam",
    "InputXGradient",
    "LayerGradCam",
    "LayerGradientXActivation",
    "Saliency",
}
# Layer methods that walk through input space, or go back to it.
_MOVES_THE_INPUT = {"GuidedGradCam", "InternalInfluence", "LayerConductance", "LayerGradientShap"}
_REPLACES_THE_LAYER = {"LayerFeatureAblation", "LayerIntegratedGradients"}
# Captum's classes look at the layer, and want nothing but tensors there.
_BY_CAPTUM = {
    *("LayerDeepLift", "LayerDeepLiftShap", "LayerFeatureAblation", "LayerGradientShap", "LayerIntegratedGradients"),
    "NeuronConductance",
}


def innermost(method: Method) -> Method:
    """The method inside a noise tunnel."""
    inner = getattr(method, "attribution_method", None)
    return method if inner is None else innermost(inner)


def rule(method: Method) -> str:
    """``"gradient"``, ``"deeplift"``, ``"guided"``, ``"deconvolution"``, ``"lrp"`` or ``"none"`` (it only looks forward)."""
    declared = getattr(type(method), "rule", None)
    return declared if isinstance(declared, str) else _RULES.get(type(method).__name__, "gradient")


def place(method: Method) -> str:
    """``"input"``; ``"layer"``: it explains with a layer; ``"neuron"``: it explains a unit of a layer with the input."""
    if not hasattr(method, "layer"):
        return "input"
    return "neuron" if hasattr(method, "neuron_selector") else "layer"


def goes_back(method: Method) -> str:
    """Where the rule ends: at the ``"input"``; at a ``"layer"``, coming from the output; at the input, coming from a ``"neuron"``."""
    return "input" if type(method).__name__ in _MOVES_THE_INPUT else place(method)


def goes_through(method: Method) -> bool:
    """Whether it explains the output, and not the unit of the layer, with the input."""
    return type(method).__name__ == "NeuronConductance"


def picks_tensors(method: Method) -> bool:
    """Whether it can look at a layer that returns other things beside tensors."""
    return type(method).__name__ not in _BY_CAPTUM


def of_input(method: Method) -> bool:
    """Whether it looks at what goes into its layer instead of what comes out."""
    return any(getattr(method, f"attribute_to_{part}_input", False) is True for part in ("layer", "neuron"))


def reads_input(method: Method) -> bool:
    """Whether it takes a gradient at the input, or at points on a line or in a cloud there."""
    return rule(method) != "none" and (place(method) != "layer" or type(method).__name__ in _MOVES_THE_INPUT)


def adds_noise(method: Method) -> bool:
    """Whether it is a noise tunnel."""
    return getattr(method, "attribution_method", None) is not None


def at_the_point(method: Method) -> bool:
    """Whether it takes one gradient, at the sample itself."""
    return type(method).__name__ in _AT_THE_POINT


def replaces_the_layer(method: Method) -> bool:
    """Whether it runs the model with another output of the layer."""
    return type(method).__name__ in _REPLACES_THE_LAYER
