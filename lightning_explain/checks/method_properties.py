"""What the doctor needs to know about a method: declared by its class, or looked up by Captum's class name."""

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
# Layer methods whose points, or gradients, lie in input space.
_MOVES_THE_INPUT = {"GuidedGradCam", "InternalInfluence", "LayerConductance", "LayerGradientShap"}
_REPLACES_THE_LAYER = {"LayerFeatureAblation", "LayerIntegratedGradients"}
# These run Captum's classes, which accept only tensors at the layer.
_BY_CAPTUM = {
    *("LayerDeepLift", "LayerDeepLiftShap", "LayerFeatureAblation", "LayerGradientShap", "LayerIntegratedGradients"),
    "NeuronConductance",
}


def innermost(method: Method) -> Method:
    """Returns the method inside a NoiseTunnel, or the method itself."""
    inner = getattr(method, "attribution_method", None)
    return method if inner is None else innermost(inner)


def rule(method: Method) -> str:
    """Returns the backward rule of a method, by name.

    One of ``"gradient"``, ``"deeplift"``, ``"guided"``, ``"deconvolution"``, ``"lrp"`` and ``"none"``; with
    ``"none"``, a method needs only forward passes.
    """
    declared = getattr(type(method), "rule", None)
    return declared if isinstance(declared, str) else _RULES.get(type(method).__name__, "gradient")


def place(method: Method) -> str:
    """Returns what a method attributes: ``"input"``, ``"layer"``, or ``"neuron"`` (a unit of a layer, to the input)."""
    if not hasattr(method, "layer"):
        return "input"
    return "neuron" if hasattr(method, "neuron_selector") else "layer"


def goes_back(method: Method) -> str:
    """Returns the span of the backward pass.

    Output to ``"input"``, output to ``"layer"``, or from a ``"neuron"`` to the input.
    """
    return "input" if type(method).__name__ in _MOVES_THE_INPUT else place(method)


def goes_through(method: Method) -> bool:
    """Returns whether a neuron method's backward pass starts at the output and goes through the neuron."""
    return type(method).__name__ == "NeuronConductance"


def picks_tensors(method: Method) -> bool:
    """Returns whether a method can read a layer that returns other objects beside tensors."""
    return type(method).__name__ not in _BY_CAPTUM


def of_input(method: Method) -> bool:
    """Returns whether a method reads the input of its layer instead of the output."""
    return any(getattr(method, f"attribute_to_{part}_input", False) is True for part in ("layer", "neuron"))


def reads_input(method: Method) -> bool:
    """Returns whether a method takes gradients at the input, or at other points in input space."""
    return rule(method) != "none" and (place(method) != "layer" or type(method).__name__ in _MOVES_THE_INPUT)


def adds_noise(method: Method) -> bool:
    """Returns whether a method is a NoiseTunnel."""
    return getattr(method, "attribution_method", None) is not None


def at_the_point(method: Method) -> bool:
    """Returns whether a method takes a single gradient, at the sample itself."""
    return type(method).__name__ in _AT_THE_POINT


def replaces_the_layer(method: Method) -> bool:
    """Returns whether a method replaces the output of its layer and runs the rest of the model."""
    return type(method).__name__ in _REPLACES_THE_LAYER
