"""Explains samples without a Trainer: ``explain()``, from configuration to report.

In: a model, a ``Probe``, methods and metrics as the user writes them. Out: a ``Report``, or a forecast of its cost.
``registry.py`` builds methods and metrics, ``explainer.py`` checks them on the model and starts the explanation,
``run.py`` carries it out on one or several ranks, ``history.py`` keeps maps for later ones, ``cost.py`` forecasts.
Must not import ``monitor``, Lightning, or anything above them.
Start reading at ``explain`` in ``explainer.py``, then ``run.py``.
"""
