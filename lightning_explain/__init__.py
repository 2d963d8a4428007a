"""Watches why a model decides what it decides, while it trains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_explain import methods, metrics
    from lightning_explain.alerts import Alert
    from lightning_explain.callback import ExplanationMonitor
    from lightning_explain.pipeline import explain
    from lightning_explain.probe import ProbeSelection
    from lightning_explain.store import load_reports
    from lightning_explain.types import Probe, Report

__version__ = "0.1.0"

__all__ = [
    "Alert",
    "ExplanationMonitor",
    "Probe",
    "ProbeSelection",
    "Report",
    "__version__",
    "explain",
    "load_reports",
    "methods",
    "metrics",
]

_HOMES = {
    "Alert": "alerts",
    "ExplanationMonitor": "callback",
    "Probe": "types",
    "ProbeSelection": "probe",
    "Report": "types",
    "explain": "pipeline",
    "load_reports": "store",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that importing the package is instant."""
    if name in ("methods", "metrics"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
