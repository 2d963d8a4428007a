"""Checks before the first explanation: do arguments, samples and model fit, and is each method right on this model?

In: model, methods, metrics and probe. Out: errors and warnings (``preflight.py``), one ``Verdict`` per method
(``doctor.py``), and what becomes of it (``verdicts.py``).
The doctor records one forward pass (``trace.py``), compares it with what each backward rule needs (``findings.py``), and
measures what the structure does not show (``measurements.py``).
Must not import ``methods``, ``metrics``, ``explainer`` or anything above them.
Start reading at ``doctor.py``, then ``findings.py``.
"""
