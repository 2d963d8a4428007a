"""The data that flows through the package, the base classes of whatever users extend, and argument checks.

In: nothing but tensors and plain values. Out: the types that every other package passes on (``Probe``, ``Report``,
``Point``, ``Verdict``, ``Alert``) and the interfaces of methods, metrics and sinks.
Must not import any other package of lightning_explain, nor Lightning, Captum or a logger.
Begin reading with ``probe.py`` and ``report.py``, then ``contracts.py`` and ``points.py``.
"""
