"""Methods, metrics and limits as the user writes them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from lightning_explain import methods as method_classes
from lightning_explain import metrics as metric_classes
from lightning_explain.naming import build
from lightning_explain.types import Method, Metric

Requests = Mapping[str, Any] | Sequence[Any] | None

METHODS: dict[str, type] = {name: getattr(method_classes, name) for name in method_classes.__all__}
METRICS: dict[str, type] = {name: getattr(metric_classes, name) for name in metric_classes.__all__}
AUTO_LIMIT = 64


class UncheckedError(RuntimeError):
    """The doctor itself failed on a model that runs, so that nothing can be said of the methods."""


def build_methods(requests: Requests) -> dict[str, Method]:
    """Methods as the user writes them, by name; ``None``: saliency, integrated gradients, Grad-CAM."""
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
    """Metrics as the user writes them, by name; ``None``: infidelity and sensitivity."""
    if requests is None:
        requests = [metric_classes.Infidelity(), metric_classes.SensitivityMax()]
    return _checked(build(requests, METRICS, "metric", Metric), "metric")


def _checked(instances: dict[str, Any], kind: str) -> dict[str, Any]:
    for name, instance in instances.items():
        if method_classes.is_captums(instance):
            kind_of = type(instance).__name__
            raise TypeError(
                f"{kind}s[{name!r}] is captum.attr.{kind_of}, which is bound to a model; give "
                f"lightning_explain.methods.{kind_of}(...), which takes the arguments of its attribute()."
            )
        _check_kinds(instance, f"{kind}s[{name!r}]")
    return instances


def _check_kinds(instance: Any, where: str) -> None:
    """Refuses what is no flag or no layer's name, in our own classes and what is inside them."""
    for field in fields(instance) if type(instance) in (*METHODS.values(), *METRICS.values()) else ():
        value = getattr(instance, field.name)
        if field.type == "bool" and not isinstance(value, bool):
            raise TypeError(f"{where}: {type(instance).__name__}({field.name}={value!r}); allowed: True or False.")
        if field.name == "layer" and value is not None and not isinstance(value, str):
            raise TypeError(
                f"{where}: {type(instance).__name__}(layer={value!r}); allowed: a module's name, such as 'layer4'."
            )
        if field.name == "attribution_method":
            _check_kinds(value, f"{where}.attribution_method")


def warn_of_unsigned(methods: Mapping[str, Method], metrics: Mapping[str, Metric]) -> None:
    """Tells of scores that cannot be right on a map without signs."""
    unsigned = [name for name, method in methods.items() if getattr(method, "abs", False) is True]
    scored = [name for name, metric in metrics.items() if isinstance(metric, metric_classes.Infidelity)]
    if unsigned and scored:
        warnings.warn(
            f"{unsigned} take absolute values, and {scored} cannot be right on a map without signs; use abs=False.",
            stacklevel=3,
        )


def check_seed(value: object) -> None:
    """Refuses what is no seed.

    Raises:
        ValueError: If it is no whole number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"seed={value!r}; allowed: a whole number of at least 0.")


def auto_limit(batch: int | None) -> int:
    """The most rows in a pass that take no more memory than a training step: an eighth is left for the rows' own copies and sums.

    Args:
        batch: Rows of a training batch, if there is one.
    """
    return AUTO_LIMIT if batch is None else max(1, min(batch - batch // 8, AUTO_LIMIT))


def check_limit(value: int | str) -> int | None:
    """``max_examples_per_pass`` as a number, ``None`` for ``"auto"``.

    Raises:
        ValueError: If it is neither.
    """
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'max_examples_per_pass={value!r}; allowed: "auto" or a whole number of at least 1.')
    return value
