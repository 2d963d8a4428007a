"""The model as a function, and the context that leaves the model unchanged.

In: the user's module, and what to explain (output, target, layer). Out: f(inputs) -> (N,), layers found by name, and a
context that restores every weight, buffer, gradient, hook, flag and random state on exit.
Must not import the packages above (``probes``, ``engine``, ``methods``, ...), nor Lightning.
Begin reading with ``isolation.py``, then ``function.py`` and ``targets.py``.
"""
