"""The probe: the fixed samples that every explanation explains.

In: a data loader and a ``ProbeSelection``. Out: a ``Probe``: inputs, targets, further arguments of the model and sample ids.
Must not import ``engine``, ``monitor`` or anything else above, nor Lightning; nothing here runs the model.
Begin reading with ``selection.py``, which ``child.py`` runs in another process; ``binding.py`` binds a batch to the arguments of
``forward``, which ``signature.py`` reads.
"""
