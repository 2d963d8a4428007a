"""The data that flows through the house: frozen dataclasses, and the protocols of a method and a metric."""

from lightning_explain.types.contracts import Case, Draws, Method, Metric, Prospect, Reference, Score, Sink, Subject
from lightning_explain.types.report import Image, PassCount, Publication, Report
from lightning_explain.types.rows import Attribution, Baseline, Probe, Rows, Shared, as_tuple, bare
from lightning_explain.types.verdict import Mend, Verdict

__all__ = [
    "Attribution",
    "Baseline",
    "Case",
    "Draws",
    "Image",
    "Mend",
    "Method",
    "Metric",
    "PassCount",
    "Probe",
    "Prospect",
    "Publication",
    "Reference",
    "Report",
    "Rows",
    "Score",
    "Shared",
    "Sink",
    "Subject",
    "Verdict",
    "as_tuple",
    "bare",
]
