"""The engine: evaluates the model where the methods need it, with as few passes as possible.

In: an ``ExplainedFunction``, samples and methods. Out: one attribution per method, and what that costs.
A path yields points, reads name what is recorded at each point, and a reducer turns the evaluations into a map.
``plan.py`` merges equal paths, ``executor.py`` evaluates every point once, ``evaluate.py`` is one forward and backward
pass, ``rules.py`` holds the backward rules. Methods that fit no path run through Captum (``captum_adapter.py``).
Must not import ``methods``, ``metrics``, ``checks`` or anything above them.
Start reading at ``plan.py``, then ``executor.py``.
"""
