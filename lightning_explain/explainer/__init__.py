"""``explain()``: one explanation from start to end, without a Trainer.

In: a model, a probe, methods and metrics. Out: a ``Report`` with attributions, scores, failures and costs.
Must not import ``monitor``, ``loggers``, ``demo`` or ``cli``, nor Lightning.
Begin reading with ``explainer.py``; ``run.py`` is one explanation while it runs, ``cost.py`` predicts its cost.
"""
