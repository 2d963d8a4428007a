"""All faults of the table."""

from __future__ import annotations

from faults import in_checkpoints, in_methods, in_model, in_sinks

FAULTS = (
    *in_model.samples(),
    *in_model.model(),
    *in_methods.methods_and_metrics(),
    *in_sinks.pictures(),
    *in_sinks.loggers(),
    *in_sinks.files(),
    *in_checkpoints.checkpoints(),
)
