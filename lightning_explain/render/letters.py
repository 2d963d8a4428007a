"""Text in, pixels out."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_explain.core.report import Picture

Color = tuple[int, int, int]

_ELLIPSIS = "..."


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_file(), size)


@lru_cache(maxsize=1)
def _file() -> str:
    # Pillow's own font has only ASCII letters; this one has Latin, Greek, Cyrillic, Arabic and Hebrew ones, too.
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_file()).get_charmap())


@lru_cache(maxsize=1024)
def _drawable(text: str) -> str:
    """The text, with the escaped code of each letter that the font does not have instead of a box."""
    return "".join(c if ord(c) in _letters() else c.encode("ascii", "backslashreplace").decode() for c in text)


def line_height(size: int) -> int:
    """The distance in pixels from one line to the next, for a font size in pixels."""
    return math.ceil(1.3 * size)


@lru_cache(maxsize=1024)
def width(text: str, size: int) -> int:
    """The width of a line of text in pixels."""
    return math.ceil(_font(size).getlength(_drawable(text)))


def shorten(text: str, size: int, limit: int) -> str:
    """A line of text, cut and ended with an ellipsis if it is wider than ``limit`` pixels."""
    if width(text, size) <= limit:
        return text
    kept = next((k for k in range(len(text), 0, -1) if width(text[:k] + _ELLIPSIS, size) <= limit), 0)
    return text[:kept].rstrip() + _ELLIPSIS


@lru_cache(maxsize=128)
def wrap(text: str, size: int, limit: int, lines: int) -> tuple[str, ...]:
    """A text broken between words into at most ``lines`` lines of ``limit`` pixels; lines that are too long are cut."""
    broken: list[str] = []
    for word in text.split():
        longer = f"{broken[-1]} {word}" if broken else word
        if broken and (width(longer, size) <= limit or len(broken) == lines):
            broken[-1] = longer
        else:
            broken.append(word)
    return tuple(shorten(line, size, limit) for line in broken)


def write(canvas: Picture, text: str, x: int, y: int, size: int, color: Color) -> None:
    """Draws a line of text on a white canvas ``(H, W, 3)``, top left corner at (x, y); what lies outside is cut off."""
    left, top = max(0, x), max(0, y)
    line = _line(text, size, color)[top - y :, left - x :]
    region = canvas[top : top + line.shape[0], left : left + line.shape[1]]
    np.minimum(region, line[: region.shape[0], : region.shape[1]], out=region)


def stamp(picture: Picture, text: str, x: int, y: int, size: int, color: Color) -> None:
    """Draws a line of text with a dark edge on any ground ``(H, W, 3)``, top left corner at (x, y), which must be inside."""
    for shade, moves in (((0, 0, 0), [(0, 1), (1, 0), (2, 1), (1, 2)]), (color, [(1, 1)])):
        for right, down in moves:
            opacity = 1 - _line(text, size, (0, 0, 0))[..., :1] / 255
            part = picture[y + down : y + down + len(opacity), x + right : x + right + opacity.shape[1]]
            opacity = opacity[: len(part), : part.shape[1]]
            part[:] = (part * (1 - opacity) + np.array(shade) * opacity).round()


@lru_cache(maxsize=1024)
def _line(text: str, size: int, color: Color) -> Picture:
    """A line of text on white. Captions and ticks are the same in the pictures of all methods."""
    drawn = Image.new("RGB", (width(text, size), line_height(size)), (255, 255, 255))
    ImageDraw.Draw(drawn).text((0, 0), _drawable(text), fill=color, font=_font(size))
    return np.asarray(drawn)
