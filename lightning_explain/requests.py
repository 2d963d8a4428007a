"""Methods, metrics and limits as the user writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    return build(requests, METHODS, "method", Method)


def build_metrics(requests: Requests) -> dict[str, Metric]:
    """Metrics as the user writes them, by name; ``None``: infidelity and sensitivity."""
    if requests is None:
        requests = [metric_classes.Infidelity(), metric_classes.SensitivityMax()]
    return build(requests, METRICS, "metric", Metric)


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
