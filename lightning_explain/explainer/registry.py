"""Builds methods and metrics from what the user writes, and checks limits."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_explain import methods as method_classes
from lightning_explain import metrics as metric_classes
from lightning_explain import modalities as modality_classes
from lightning_explain import targets as target_classes
from lightning_explain.checks.doctor import DoctorContext
from lightning_explain.core.contracts import Method, Metric, Modality, Target
from lightning_explain.core.naming import either, nearest, snake_case, unwritable
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.schema import brief
from lightning_explain.core.validation import check_choice, check_whole
from lightning_explain.core.warn import warn_or_log
from lightning_explain.modalities import Tabular, Text, TimeSeries, Video, Volume, of_probe
from lightning_explain.modalities.image import Pixels
from lightning_explain.model.targets import check_target
from lightning_explain.model.tasks import TASKS

Requests = Mapping[str, Any] | Sequence[Any] | None


METHODS: dict[str, type] = {name: getattr(method_classes, name) for name in method_classes.__all__}
METRICS: dict[str, type] = {name: getattr(metric_classes, name) for name in metric_classes.__all__}
TARGETS: dict[str, type] = {name: getattr(target_classes, name) for name in target_classes.__all__}
MODALITIES: dict[str, type] = {name: getattr(modality_classes, name) for name in modality_classes.__all__}


MOST = 1_000
"""The most methods, and the most metrics."""
AUTO_LIMIT = 64
MOST_ABLATED = 128
"""The most units that are ablated by default, each of which takes a forward pass."""
# Chosen by benchmarks/default_cost.py: 65 forward and backward evaluations of each sample, and 32 forward ones.
DEFAULT_STEPS, DEFAULT_DRAWS, REMOVALS = 16, 3, 32
# On the path in the space of a layer, behind which a network is nearly linear.
LAYER_STEPS = 4
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build_methods(requests: Requests) -> dict[str, Method]:
    """Builds named methods from what the user writes; ``None`` gives saliency, integrated gradients and Grad-CAM."""
    if requests is None:
        requests = {
            "saliency": method_classes.Saliency(abs=False),
            "ig": method_classes.IntegratedGradients(n_steps=DEFAULT_STEPS),
            "cam": method_classes.LayerGradCam(),
        }
    if not requests:
        raise ValueError("methods is empty, so there is nothing to explain; name one, or use enabled=False.")
    return build(requests, METHODS, "method", Method)


def every_default() -> dict[str, Method]:
    """The default methods of all modalities together, among which :func:`fitting` chooses once the model has been seen."""
    return {**build_methods(None), "ablation": method_classes.FeatureAblation()}


def fitting(probe: Probe, context: DoctorContext) -> dict[str, Method]:
    """The default methods for what the inputs are: those of images and series; for text and tables, those that have a place on them.

    Images and series, also beside tables of numbers: ``cam`` is Grad-CAM. Where its mean over places is wrong, it is HiResCAM if the
    outputs have places, and integrated gradients of the layer where a class token reads the tokens, one linear layer a flattened map, or
    a recurrent network the frames, and where features below zero are read place by place.

    Text and categories: integrated gradients at all embeddings that look them up, and at the floating-point inputs beside. Text and
    tables: ablation of each unit, where there are at most 128 of them.
    """
    found, modalities, inputs = build_methods(None), of_probe(probe), as_tuple(probe.inputs)
    if not any(isinstance(modality, (Text, Tabular)) for modality in modalities):
        return {**found, "cam": _cam(context)}
    cam = {"cam": _cam(context)} if _lies_on_one(inputs, modalities) else {}
    del found["cam"]
    if layers := _at_embeddings(inputs, modalities, context):
        layer = layers if len(layers) > 1 else str(layers[0])
        found = {"ig": method_classes.LayerIntegratedGradients(layer=layer, n_steps=DEFAULT_STEPS)}
    elif any(isinstance(modality, Text) for modality in modalities) and not any(x.is_floating_point() for x in inputs):
        found = {}
    found |= cam
    if sum(modality.units(x)[1:].numel() for modality, x in zip(modalities, inputs, strict=True)) <= MOST_ABLATED:
        found["ablation"] = every_default()["ablation"]
        blind = [name for name, method in found.items() if method.differentiates_input]
        if blind and context.blind is not None:
            found = {name: method for name, method in found.items() if name not in blind}
            warn_or_log(f"{', '.join(map(repr, blind))} are left out: {context.blind.reason}.")
    return found


def _cam(context: DoctorContext) -> Method:
    """Grad-CAM, or what takes its place where its mean over places is wrong."""
    if not context.averaging_misleads:
        return method_classes.LayerGradCam()
    other = method_classes.LayerIntegratedGradients(n_steps=LAYER_STEPS)
    return method_classes.HiResCAM() if context.record.dense else other


def _lies_on_one(inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> bool:
    """Whether a layer's map has its place on an image, video, volume or series, because the other inputs are tables of numbers."""
    placed = (Pixels, TimeSeries, Video, Volume)
    return any(isinstance(modality, placed) for modality in modalities) and all(
        isinstance(modality, placed) or (isinstance(modality, Tabular) and x.is_floating_point())
        for x, modality in zip(inputs, modalities, strict=True)
    )


def _at_embeddings(
    inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...], context: DoctorContext
) -> tuple[str | int, ...]:
    """The embeddings that look up the inputs, and the floating-point inputs beside; none if something is read otherwise, too."""
    lookups = context.explained.lookups
    for i, (x, modality) in enumerate(zip(inputs, modalities, strict=True)):
        own = {element for lookup in lookups.values() if lookup.input == i for element in lookup.elements or ()}
        if not x.is_floating_point() and not (own if isinstance(modality, Text) else len(own) == x[0].numel()):
            return ()
    if not lookups or context.blind_beside_lookups is not None:
        return ()
    return (*lookups, *(i for i, x in enumerate(inputs) if x.is_floating_point()))


def alternatives(model: nn.Module) -> dict[str, Method]:
    """Returns methods to propose where none of the user's can be used on a model."""
    embeddings = [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    found = {f"ig_{name}": method_classes.LayerIntegratedGradients(layer=name) for name in embeddings[:1]}
    return {**build_methods(None), **found, "feature_ablation": method_classes.FeatureAblation()}


def build_metrics(requests: Requests, default_methods: bool = False) -> dict[str, Metric]:
    """Builds named metrics from what the user writes; ``None`` gives infidelity and sensitivity.

    Beside the default methods, sensitivity is that of the integrated gradients: a gradient alone jumps at the kinks of a network, so
    that few draws say little of it.
    """
    if requests is None:
        smooth = ("ig",) if default_methods else None
        sensitivity = metric_classes.SensitivityMax(n_perturb_samples=DEFAULT_DRAWS, methods=smooth)
        requests = [metric_classes.Infidelity(n_perturb_samples=REMOVALS), sensitivity]
    return build(requests, METRICS, "metric", Metric)


def build_modalities(requests: Any) -> Any:
    """Modalities as the user writes them, with instances in place of names: one, one for each input, or a mapping of inputs to them."""
    kind = _Kind("modalitie", MODALITIES, Modality)

    def built(request: Any) -> Any:
        return _instance(request, "modalities", kind)

    if requests is None:
        return None
    if isinstance(requests, Mapping) and "name" not in requests:
        return {key: built(value) for key, value in requests.items()}
    if isinstance(requests, Sequence) and not isinstance(requests, (str, bytes)):
        return [built(value) for value in requests]
    return built(requests)


def build_target(request: Any) -> Any:
    """The target as the user writes it, checked.

    An instance takes the place of a class and of ``{"name": ClassName, **arguments}``, a tuple that of a list. Other mappings are of the
    names of several targets.
    """
    if isinstance(request, Mapping) and "name" not in request:
        return _several_targets(request)
    if isinstance(request, Mapping) or (isinstance(request, type) and issubclass(request, Target)):
        return _instance(request, "target", _Kind("target", TARGETS, Target))
    check_target(request)
    return tuple(request) if isinstance(request, list) else request


def _several_targets(request: Mapping[Any, Any]) -> dict[str, Any]:
    if not request:
        raise ValueError(
            'target is an empty mapping; give names and targets, such as {"age": "label", "sex": "predicted"}.'
        )
    for name, target in request.items():
        if "@" in str(name):
            raise ValueError(
                f"target has the key {brief(name)}; give names without @, which separates method and target."
            )
        if isinstance(target, Mapping) and "name" not in target:
            raise TypeError(f"target[{brief(name)}] is a mapping of targets again; give one target for each name.")
    return {_key(name, "target"): build_target(target) for name, target in request.items()}


def warn_of_unsigned(methods: Mapping[str, Method], metrics: Mapping[str, Metric]) -> None:
    """Warns of infidelity on maps that have lost the signs that it needs, as those of absolute values."""
    unsigned = [n for n, method in methods.items() if not (method.signed or method.innermost.reads_attention)]
    scored = [name for name, metric in metrics.items() if isinstance(metric, metric_classes.Infidelity)]
    if unsigned and scored:
        reason = f"{unsigned} hold no evidence against the output, but {scored} need signed maps"
        warnings.warn(f"{reason}; use Saliency(abs=False), HiResCAM instead of LayerCAM.", stacklevel=3)


def auto_limit(batch: int | None) -> int:
    """Returns the most samples per pass that take no more memory than a training step.

    An eighth of a training batch is reserved for copies and sums of the samples.

    Args:
        batch: Samples in a training batch; ``None`` without a Trainer.
    """
    return AUTO_LIMIT if batch is None else max(1, min(batch - batch // 8, AUTO_LIMIT))


def check_limit(value: int | str) -> int | None:
    """Returns ``max_examples_per_pass`` as a number, or ``None`` for ``"auto"``.

    Raises:
        ValueError: If it is neither ``"auto"`` nor a whole number of at least 1.
    """
    check_whole("", "max_examples_per_pass", value, also=("auto",))
    return None if value == "auto" else int(value)


def check_task(value: str) -> str:
    """Returns ``task``.

    Raises:
        ValueError: If it is neither ``"auto"`` nor one of the tasks.
    """
    check_choice("", "task", value, ("auto", *TASKS))
    return value


def build(requests: Requests, classes: Mapping[str, type], kind: str, base: type) -> dict[str, Any]:
    """Turns what users write into instances by name.

    A request is an instance, a class, the name of a class, or a mapping ``{"name": ClassName, **arguments}`` whose
    arguments may be such mappings again. Names are looked up in ``classes`` only; nothing is imported.

    Args:
        requests: A mapping from names to requests, or a sequence of requests, each named by its snake_case class name.
        classes: The classes that may be named.
        kind: What they are, in the singular, for messages: ``"method"``.
        base: What they are instances of; other classes are accepted if theirs are too.

    Raises:
        TypeError: If a request has another form, or an argument is missing.
        ValueError: If a class or argument is unknown, a class is listed twice, or a name is empty or cannot be written to files.
    """
    found = _Kind(kind, classes, base)
    if isinstance(requests, (Mapping, Sequence)) and not isinstance(requests, (str, bytes)) and len(requests) > MOST:
        raise ValueError(f"{kind}s names {len(requests)} of them; give at most {MOST}.")
    if isinstance(requests, Mapping):
        return {_key(key, kind): _instance(request, f"{kind}s[{key!r}]", found) for key, request in requests.items()}
    if isinstance(requests, (str, bytes)) or not isinstance(requests, Sequence):
        raise TypeError(
            f"{kind}s={brief(requests)} is of type {type(requests).__name__}; write a list of {kind}s, such as "
            f"[{brief(requests)}], or a mapping from names to {kind}s."
        )
    named: dict[str, Any] = {}
    for i, request in enumerate(requests):
        made = _instance(request, f"{kind}s[{i}]", found)
        name = snake_case(type(made).__name__)
        if name in named:
            raise ValueError(
                f"{kind}s lists {type(made).__name__} twice, and both would be named {name!r}; "
                f"give a mapping with a name for each: {{'{name}_1': ..., '{name}_2': ...}}."
            )
        named[name] = made
    return named


@dataclass(frozen=True)
class _Kind:
    name: str
    classes: Mapping[str, type]
    base: type


def _instance(request: Any, where: str, kind: _Kind) -> Any:
    if isinstance(request, str) or (isinstance(request, type) and issubclass(request, kind.base)):
        request = {"name": request}
    found = _made(request, where, kind) if isinstance(request, Mapping) else request
    if isinstance(found, kind.base) and not isinstance(found, type):
        return found
    name = type(found).__name__
    if isinstance(found, method_classes.CaptumAttribution):
        raise TypeError(
            f"{where} is captum.attr.{name}, which is bound to a model; give "
            f"lightning_explain.methods.{name}(...), which takes the arguments of its attribute()."
        )
    raise TypeError(
        f"{where} is {brief(found)} of type {name}, which is not a {kind.name}; give an instance, "
        f"a class, the name of a class, or a mapping with 'name' and arguments. Names: {', '.join(kind.classes)}."
    )


def _made(request: Mapping[Any, Any], where: str, kind: _Kind) -> Any:
    if "name" not in request:
        raise ValueError(
            f"{where}={brief(dict(request))} has no 'name'; write {{'name': ClassName, ...arguments}} "
            f"with one of {', '.join(kind.classes)}."
        )
    name = request["name"]
    if not isinstance(name, (str, type)):
        raise TypeError(f"{where} has the name {brief(name)} of type {type(name).__name__}; write the name of a class.")
    if isinstance(name, str) and name not in kind.classes:
        raise ValueError(f"{where}: there is no {kind.name} {brief(name)}: {nearest(name, kind.classes)}")
    arguments = {key: value for key, value in request.items() if key != "name"}
    for key, value in arguments.items():
        # As everywhere, a name may stand for an instance.
        named = isinstance(value, str) and key == "attribution_method"
        if named or (isinstance(value, Mapping) and "name" in value):
            arguments[key] = _instance(value, f"{where}[{key!r}]", kind)
    return construct(kind.classes[name] if isinstance(name, str) else name, arguments, where)


def _key(key: object, kind: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{kind}s has the key {brief(key)} of type {type(key).__name__}; write names as str.")
    if fault := "is empty" if not key.strip() else unwritable(key):
        raise ValueError(f"{kind}s has the key {key[:40]!r}, which {fault}; give the {kind} another name.")
    return key


def construct(cls: type, arguments: Mapping[Any, Any], where: str) -> Any:
    """Calls a class with arguments from a configuration; ``where`` names the place in it for errors.

    Raises:
        TypeError: If an argument is missing.
        ValueError: If an argument is unknown; the message lists the nearest names.
    """
    parameters = inspect.signature(cls).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    for argument in arguments:
        if argument not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(
                f"{where}: {cls.__name__} has no argument {brief(argument)}: {nearest(str(argument), parameters)}"
            )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC and name not in arguments
    ]
    if missing:
        call = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(f"{where}: {cls.__name__} needs {either(missing)}; write {cls.__name__}({call}).")
    return cls(**arguments)
