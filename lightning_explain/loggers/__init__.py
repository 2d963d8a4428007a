"""Sinks: each writes explanations to one kind of logger, or to plain files.

In: a ``Publication`` (scalars, tables and pictures with their tags). Out: entries in TensorBoard, W&B, or files.
With ``monitor`` and ``demo`` the only packages that may import Lightning, and the only one that may import a logger.
Must not import ``engine``, ``methods``, ``metrics`` or anything else beside or above.
Begin reading with ``choose.py``, then ``tags.py`` and any of the sinks.
"""
