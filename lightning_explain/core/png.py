"""A picture in, the bytes of a PNG file out: quickly, because pictures are drawn while a training waits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def to_png(picture: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    """The file of a picture, about four times as fast as Pillow's.

    Pillow tries five filters for each line. Drawn pictures have many lines that equal the one above, for which the filter
    "up" is best, and little else matters.

    Args:
        picture: ``(H, W, 3)``.
        texts: ASCII texts by keyword, which readers find in the file.

    Raises:
        TypeError: If it is no such picture of bytes.

    Example:
        >>> import io, numpy as np
        >>> from PIL import Image
        >>> from lightning_explain.core.png import to_png
        >>> Image.open(io.BytesIO(to_png(np.full((4, 6, 3), 7, dtype=np.uint8), {"epoch": "3"}))).info
        {'epoch': '3'}
    """
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,):
        came = f"{picture.dtype} {picture.shape}"
        raise TypeError(f"Cannot handle this data type: {came} instead of a picture, uint8 (H, W, 3).")
    height, width = picture.shape[:2]
    lines = picture.reshape(height, -1)
    filtered = np.empty((height, lines.shape[1] + 1), dtype=np.uint8)
    filtered[:, 0] = 2  # The filter "up".
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    notes = [_chunk(b"tEXt", f"{key}\0{text}".encode("ascii")) for key, text in texts.items()]
    parts = [_chunk(b"IHDR", head), *notes, _chunk(b"IDAT", zlib.compress(filtered.data, 1)), _chunk(b"IEND", b"")]
    return b"".join((b"\x89PNG\r\n\x1a\n", *parts))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
