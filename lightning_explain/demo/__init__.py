"""The demos: a network that is right for the wrong reason, and the run that shows it.

In: data with or without a shortcut that gives the class away. Out: a trained network, its explanations and a summary. Must not
import ``cli``. Begin reading with ``digits.py`` (data and network of one demo; ``text.py``, ``tabular.py`` and ``series.py`` are the
others), then ``training.py`` (the run); ``shortcut.py`` holds what they share.
"""

from lightning_explain.demo.digits import DigitsModel, MarkedDigits

__all__ = ["DigitsModel", "MarkedDigits"]
