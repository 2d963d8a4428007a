"""Watches why a model decides what it decides, while it trains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_explain.core.version import __version__

if TYPE_CHECKING:
    from lightning_explain import methods, metrics, modalities, targets
    from lightning_explain.core.alert import Alert
    from lightning_explain.core.contracts import Method, Metric, Modality, Sink, Target
    from lightning_explain.core.probe import Probe
    from lightning_explain.core.report import Report
    from lightning_explain.explainer.explainer import explain
    from lightning_explain.monitor.callback import ExplanationMonitor
    from lightning_explain.monitor.replay import replay
    from lightning_explain.probes.selection import ProbeSelection
    from lightning_explain.render.stored import draw
    from lightning_explain.report.clusters import clusters
    from lightning_explain.report.comparison import compare
    from lightning_explain.report.gate import check
    from lightning_explain.store.report_files import load_reports

__all__ = ["ExplanationMonitor", "Probe", "ProbeSelection", "Report", "__version__"]
__all__ += ["check", "clusters", "compare", "draw", "explain", "load_reports", "replay"]
__all__ += ["Alert", "Method", "Metric", "Modality", "Sink", "Target"]
__all__ += ["methods", "metrics", "modalities", "targets"]

_HOMES = {
    **dict.fromkeys(("Method", "Metric", "Modality", "Sink", "Target"), "core.contracts"),
    "Alert": "core.alert",
    "ExplanationMonitor": "monitor.callback",
    "Probe": "core.probe",
    "ProbeSelection": "probes.selection",
    "Report": "core.report",
    "check": "report.gate",
    "clusters": "report.clusters",
    "compare": "report.comparison",
    "draw": "render.stored",
    "explain": "explainer.explainer",
    "load_reports": "store.report_files",
    "replay": "monitor.replay",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that importing the package is instant."""
    if name in ("methods", "metrics", "modalities", "targets"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
