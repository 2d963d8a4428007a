"""Tensors and pictures in; compressed text that a page carries, each once, out. How fine maps may be, so that a page stays small."""

from __future__ import annotations

import hashlib
import json
import zlib
from base64 import b64encode
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_explain.core.png import to_png
from lightning_explain.core.report import Picture

MOST_PIXELS = 40_000_000
"""Of all maps of a page together."""
_FINE_PIXELS = 20_000_000
_SIDES = (16, 128)
_FINE, _COARSE = 127, 24
"""With the coarse ones, even maps of noise, so many that a page is full, take at most 40 megabytes."""
_TYPES = {torch.int8: "int8", torch.uint8: "uint8", torch.float32: "float32"}


class Resolution(NamedTuple):
    """How fine the maps of images are: the most pixels of a side, and the steps from 0 to the strongest place."""

    side: int
    levels: int


def resolution(maps: int, side: int) -> Resolution:
    """How fine so many maps, whose longer side has so many pixels, can be in one page.

    Example:
        >>> from lightning_explain.report.blocks import resolution
        >>> resolution(maps=160, side=224), resolution(maps=9_600, side=64)
        (Resolution(side=128, levels=127), Resolution(side=64, levels=24))
    """
    low, high = _SIDES
    found = min(side, max(low, min(high, isqrt(MOST_PIXELS // max(maps, 1)))))
    return Resolution(found, _FINE if maps * found**2 <= _FINE_PIXELS else _COARSE)


@dataclass
class Blocks:
    """What a page carries beside its text.

    Args:
        texts: Compressed bytes, in base64, by key.
        pictures: PNG files, in base64, by key.
        values: What JSON can hold, by key.
    """

    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def bytes(self, content: bytes) -> str:
        """Adds bytes, and returns their key."""
        key = _key(content)
        if key not in self.texts:
            self.texts[key] = b64encode(zlib.compress(content)).decode()
        return key

    def tensor(self, values: Tensor) -> dict[str, Any]:
        """Adds numbers, and returns how they are found: key, type and shape."""
        kind = _TYPES[values.dtype]
        return {"key": self.bytes(values.contiguous().numpy().tobytes()), "type": kind, "shape": list(values.shape)}

    def picture(self, picture: Picture) -> str:
        """Adds a picture ``(H, W, 3)``, and returns its key."""
        content = to_png(picture, {})
        key = _key(content)
        self.pictures.setdefault(key, b64encode(content).decode())
        return key

    def value(self, value: Any) -> str:
        """Adds what many explanations share, such as the words of texts, and returns its key."""
        key = _key(json.dumps(value).encode())
        self.values.setdefault(key, value)
        return key


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def number(value: Any) -> float | None:
    """A number with four digits, ``None`` if it is not finite: JSON has no NaN."""
    found = float(value)
    return float(f"{found:.4g}") if abs(found) < float("inf") else None


def numbers(values: Tensor) -> list[float | None]:
    """A tensor ``(N,)`` as numbers of four digits."""
    return [number(value) for value in values.tolist()]
