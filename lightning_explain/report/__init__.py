"""What is made of finished runs: a page that shows them, two of them compared, and checked by a gate.

In: reports, or folders of runs. Out: numbers about them, an HTML page, and an error where a score is out of bounds.
Must not train or explain anything, nor import Lightning.
Begin reading with ``comparison.py``; for the page with ``page.py``, whose template and scripts are in ``web/``.
"""
