"""The demo: a network that is right for the wrong reason, and the run that shows it.

In: real digits, with or without a mark that gives the class away. Out: a trained network, its explanations and a
summary. Must not import ``cli``.
Begin reading with ``digits.py`` (data and network), then ``training.py`` (the run).
"""

from lightning_explain.demo.digits import DigitsModel, MarkedDigits

__all__ = ["DigitsModel", "MarkedDigits"]
