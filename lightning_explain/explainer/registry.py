"""Builds methods and metrics from what the user writes, and checks limits."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lightning_explain import methods as method_classes
from lightning_explain import metrics as metric_classes
from lightning_explain.core.contracts import Method, Metric
from lightning_explain.core.naming import _either, nearest, snake_case, unwritable
from lightning_explain.core.validation import check_flag, check_whole, refused

Requests = Mapping[str, Any] | Sequence[Any] | None


METHODS: dict[str, type] = {name: getattr(method_classes, name) for name in method_classes.__all__}


METRICS: dict[str, type] = {name: getattr(metric_classes, name) for name in metric_classes.__all__}


AUTO_LIMIT = 64


class UncheckedError(RuntimeError):
    """The doctor itself failed on a model that runs, so the methods are unchecked."""


def build_methods(requests: Requests) -> dict[str, Method]:
    """Builds named methods from what the user writes; ``None`` gives saliency, integrated gradients and Grad-CAM."""
    if requests is None:
        requests = {
            "saliency": method_classes.Saliency(abs=False),
            "ig": method_classes.IntegratedGradients(n_steps=32),
            "cam": method_classes.LayerGradCam(),
        }
    if not requests:
        raise ValueError(
            "methods is empty, so there is nothing to explain; name one, such as ['Saliency'], or give "
            "ExplanationMonitor(enabled=False) to switch it off."
        )
    return _checked(build(requests, METHODS, "method", Method), "method")


def build_metrics(requests: Requests) -> dict[str, Metric]:
    """Builds named metrics from what the user writes; ``None`` gives infidelity and sensitivity."""
    if requests is None:
        requests = [metric_classes.Infidelity(), metric_classes.SensitivityMax()]
    return _checked(build(requests, METRICS, "metric", Metric), "metric")


def _checked(instances: dict[str, Any], kind: str) -> dict[str, Any]:
    for name, instance in instances.items():
        _check_kinds(instance, f"{kind}s[{name!r}]")
    return instances


def _check_kinds(instance: Any, where: str) -> None:
    """Checks flags and layer names in our own classes, and in methods inside them."""
    owner = f"{where}: {type(instance).__name__}"
    for field in fields(instance) if type(instance) in (*METHODS.values(), *METRICS.values()) else ():
        value = getattr(instance, field.name)
        if field.type == "bool":
            check_flag(owner, field.name, value)
        if field.name == "layer" and value is not None and not isinstance(value, str):
            raise refused(owner, "layer", value, "a module's name, such as 'layer4'", TypeError)
        if field.name == "attribution_method":
            _check_kinds(value, f"{where}.attribution_method")


def warn_of_unsigned(methods: Mapping[str, Method], metrics: Mapping[str, Metric]) -> None:
    """Warns of infidelity on maps of absolute values, which have lost the signs that it needs."""
    unsigned = [name for name, method in methods.items() if not method.signed]
    scored = [name for name, metric in metrics.items() if isinstance(metric, metric_classes.Infidelity)]
    if unsigned and scored:
        warnings.warn(
            f"{unsigned} take absolute values, but {scored} need signed maps; use abs=False.",
            stacklevel=3,
        )


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


_INSIDE = "attribution_method"
"""The argument that takes another method."""


def build(requests: Requests, classes: Mapping[str, type], kind: str, protocol: type | None = None) -> dict[str, Any]:
    """Turns what users write into instances by name.

    A request is an instance, a class, the name of a class, or a mapping ``{"name": ClassName, **arguments}`` whose
    arguments may be such mappings again. Names are looked up in ``classes`` only; nothing is imported.

    Args:
        requests: A mapping from names to requests, or a sequence of requests, each named by its snake_case class name.
        classes: The classes that may be named.
        kind: What they are, in the singular, for messages: ``"method"``.
        protocol: A runtime-checkable protocol; instances of other classes are accepted if they satisfy it.

    Raises:
        TypeError: If a request has another form, or an argument is missing.
        ValueError: If a class or argument is unknown, a class is listed twice, or a name is empty or cannot be written to files.
    """
    builder = _Builder(classes, kind, protocol)
    if isinstance(requests, Mapping):
        return {_key(key, kind): builder.instance(request, f"{kind}s[{key!r}]") for key, request in requests.items()}
    if isinstance(requests, (str, bytes)) or not isinstance(requests, Sequence):
        raise TypeError(
            f"{kind}s={requests!r} is of type {type(requests).__name__}; write a list of {kind}s, such as "
            f"[{requests!r}], or a mapping from names to {kind}s."
        )
    return _by_class_name([builder.instance(request, f"{kind}s[{i}]") for i, request in enumerate(requests)], kind)


def _key(key: object, kind: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{kind}s has the key {key!r} of type {type(key).__name__}; write names as str.")
    if not key.strip():
        raise ValueError(f"{kind}s has the empty key {key!r}; give the {kind} a name.")
    if fault := unwritable(key):
        raise ValueError(f"{kind}s has the key {key[:40]!r}, which {fault}; give the {kind} another name.")
    return key


def _by_class_name(instances: Sequence[Any], kind: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for instance in instances:
        name = snake_case(type(instance).__name__)
        if name in named:
            raise ValueError(
                f"{kind}s lists {type(instance).__name__} twice, and both would be named {name!r}; "
                f"give a mapping with a name for each: {{'{name}_1': ..., '{name}_2': ...}}."
            )
        named[name] = instance
    return named


class _Builder:
    """Builds one request at a time; ``where`` names it in messages."""

    def __init__(self, classes: Mapping[str, type], kind: str, protocol: type | None) -> None:
        self._classes = classes
        self._kind = kind
        self._protocol = protocol

    def instance(self, request: object, where: str) -> Any:
        found = self._made(request, where)
        if self._fits(found):
            return found
        if method_classes.is_captums(found):
            name = type(found).__name__
            raise TypeError(
                f"{where} is captum.attr.{name}, which is bound to a model; give "
                f"lightning_explain.methods.{name}(...), which takes the arguments of its attribute()."
            )
        raise TypeError(
            f"{where} is {found!r} of type {type(found).__name__}, which is not a {self._kind}; give an instance, "
            f"a class, the name of a class, or a mapping with 'name' and arguments. Names: {', '.join(self._classes)}."
        )

    def _made(self, request: object, where: str) -> Any:
        if isinstance(request, str):
            return self._call(self._class(request, where), {}, where)
        if isinstance(request, Mapping):
            return self._from_mapping(request, where)
        # A class has the attributes of its instances, so the protocol alone would accept it without calling it.
        if isinstance(request, type) and (request in self._classes.values() or self._has_protocol(request)):
            return self._call(request, {}, where)
        return request

    def _fits(self, found: object) -> bool:
        if isinstance(found, type):
            return False
        return isinstance(found, tuple(self._classes.values())) or self._has_protocol(found)

    def _has_protocol(self, found: object) -> bool:
        return self._protocol is not None and isinstance(found, self._protocol)

    def _from_mapping(self, request: Mapping[Any, Any], where: str) -> Any:
        if "name" not in request:
            raise ValueError(
                f"{where}={dict(request)!r} has no 'name'; write {{'name': ClassName, ...arguments}} "
                f"with one of {', '.join(self._classes)}."
            )
        name = request["name"]
        cls = name if isinstance(name, type) else self._class(name, where)
        arguments = {
            key: self._argument(key, value, f"{where}[{key!r}]") for key, value in request.items() if key != "name"
        }
        return self._call(cls, arguments, where)

    def _argument(self, key: str, value: Any, where: str) -> Any:
        named = isinstance(value, Mapping) and "name" in value
        # As everywhere, a name may stand for an instance.
        return self.instance(value, where) if named or (key == _INSIDE and isinstance(value, str)) else value

    def _class(self, name: object, where: str) -> type:
        if not isinstance(name, str):
            raise TypeError(f"{where} has the name {name!r} of type {type(name).__name__}; write the name of a class.")
        if name not in self._classes:
            raise ValueError(f"{where}: there is no {self._kind} {name!r}: {nearest(name, self._classes)}")
        return self._classes[name]

    def _call(self, cls: type, arguments: Mapping[Any, Any], where: str) -> Any:
        parameters = inspect.signature(cls).parameters
        _check_known(cls, arguments, parameters, where)
        missing = [name for name in _required(parameters) if name not in arguments]
        if missing:
            wanted = ", ".join(f"{name}=..." for name in missing)
            raise TypeError(f"{where}: {cls.__name__} needs {_either(missing)}; write {cls.__name__}({wanted}).")
        return cls(**arguments)


def _check_known(
    cls: type, arguments: Mapping[Any, Any], parameters: Mapping[str, inspect.Parameter], where: str
) -> None:
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    names = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    for argument in arguments:
        if argument not in names:
            raise ValueError(f"{where}: {cls.__name__} has no argument {argument!r}: {nearest(str(argument), names)}")


def _required(parameters: Mapping[str, inspect.Parameter]) -> Iterator[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic:
            yield name
