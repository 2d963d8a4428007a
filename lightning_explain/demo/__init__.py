"""TODO-DOC."""

from lightning_explain.demo.digits import DigitsModel, MarkedDigits

__all__ = ["DigitsModel", "MarkedDigits"]
