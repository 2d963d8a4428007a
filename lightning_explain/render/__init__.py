"""Pictures from stored numbers.

In: a ``Report``, its ``Probe`` and ``Options``. Out: ``uint8`` arrays, drawn with tensor operations.
Must not import ``engine``, ``methods``, ``loggers`` or anything else above, nor Lightning, Captum or ``matplotlib.pyplot``.
Begin reading with ``figure.py``, then ``image.py`` for the panels and ``page.py`` for the page around them.
"""
