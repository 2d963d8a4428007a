"""Reports as files, and back.

In: a ``Report``, or a folder of a run. Out: one safetensors file per explanation, or the reports read from them.
Must not import ``engine``, ``loggers`` or anything else above, nor Lightning; nothing is ever unpickled.
Begin reading with ``report_files.py``.
"""
