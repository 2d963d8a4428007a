"""Pictures from numbers: arrays in, ``uint8`` arrays out."""

from lightning_explain.render.grid import draw
from lightning_explain.render.options import Options

__all__ = ["Options", "draw"]
