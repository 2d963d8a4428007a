"""Checks before the first explanation: do arguments, samples and model fit, and is each method right on this model?

In: model, methods, metrics and probe. Out: what of the request can be carried out, or one error that names all that cannot.
``preflight.py`` runs the model at most three times and records it (``trace.py``); every check reads that record: the doctor's
verdict on a method (``doctor.py``), what its backward rule needs (``findings.py``), whether samples are alike alone
(``measurements.py``), and what was asked for (``requests.py``).
Must not import ``methods``, ``metrics``, ``explainer`` or anything above them.
Start reading at ``preflight.py``, then ``doctor.py``.
"""
