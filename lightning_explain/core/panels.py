"""What a picture consists of: modalities say which panels there are, and ``render/`` draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MOST_BARS = 16
"""How many units get a bar with a name and a value."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One column of a method's picture: a panel for each sample.

    Args:
        title: The words above the column.
        kind: What is drawn: a kind of Captum's ``visualize_image_attr``; ``"bars"``, the strongest units with name and value;
            ``"profile"``, all units side by side; or ``"pixels"``, the values themselves.
        values: ``(N, 1, H, W)`` for images; ``(N, U)`` for bars and profiles; uint8 ``(N, h, w, 3)`` for pixels.
        sign: Which part of the map an image shows.
        name: The name of each unit that has a bar.
    """

    title: str
    kind: str
    values: Tensor
    sign: str = "all"
    name: Callable[[int], str] = str
