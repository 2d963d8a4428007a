"""A color map's name, object or list of colors in; a table of 256 colors out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_explain.core.naming import nearest

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

ColorMap: TypeAlias = "str | Colormap | Sequence[tuple[float, str]]"
"""A matplotlib color map by name, as an object, or as ``(position, color)`` pairs from 0 to 1."""

SIGNS = ("all", "positive", "negative", "absolute_value")
"""Captum's ``sign`` argument."""

BLUE, ORANGE = "#0072b2", "#d55e00"
"""Against and for, in colors of Okabe and Ito, which color-blind people tell apart."""

_DEFAULTS: dict[str, ColorMap] = {
    "all": ((0.0, BLUE), (0.5, "white"), (1.0, ORANGE)),
    "positive": ((0.0, "white"), (1.0, ORANGE)),
    "negative": ((0.0, "white"), (1.0, BLUE)),
    "absolute_value": "inferno",
}


def table(cmap: ColorMap) -> Tensor:
    """The 256 colors of a color map, as a tensor.

    Args:
        cmap: A matplotlib name, a matplotlib ``Colormap``, or ``(position, color)`` pairs from position 0 to 1.

    Returns:
        ``(256, 3)`` float32 in [0, 1], red, green, blue.

    Raises:
        ValueError: If the name is unknown, or the pairs do not describe a color map.
        TypeError: If ``cmap`` has another type.
    """
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    found: Any = cmap
    if isinstance(cmap, str):
        if cmap not in matplotlib.colormaps:
            raise ValueError(f"cmap={cmap!r} is not a matplotlib color map: {nearest(cmap, matplotlib.colormaps)}")
        found = matplotlib.colormaps[cmap]
    elif isinstance(cmap, Sequence):
        try:
            found = LinearSegmentedColormap.from_list("custom", list(frozen_pairs(cmap)))
            # Checked at the first call.
            found(0)
        except (ValueError, IndexError) as error:
            raise _no_map(cmap) from error
    elif not callable(cmap):
        raise TypeError(
            f"cmap={cmap!r} is {type(cmap).__name__}; give a matplotlib name such as 'viridis', a Colormap, "
            "or (position, color) pairs such as [(0, 'white'), (1, 'black')]."
        )
    # Sampled in the middle of each of 256 bins, so that a map of 256 colors yields each color once.
    rgba = np.asarray(found((np.arange(256) + 0.5) / 256))
    return torch.from_numpy(rgba[:, :3].astype(np.float32))


def sign_table(sign: str, cmap: ColorMap | None = None) -> Tensor:
    """The 256 colors for a sign, ``(256, 3)``: those of ``cmap``, or the default for that sign.

    The defaults can be told apart by color-blind people: blue to white to orange for ``"all"``, white to orange for ``"positive"``,
    white to blue for ``"negative"``, and ``inferno`` for ``"absolute_value"``.
    """
    chosen = _DEFAULTS[sign] if cmap is None else cmap
    return _known(chosen) if isinstance(chosen, (str, tuple)) else table(chosen)


@lru_cache(maxsize=64)
def _known(cmap: ColorMap) -> Tensor:
    return table(cmap)


def frozen_pairs(pairs: Sequence[Any]) -> tuple[tuple[float, Any], ...]:
    """``(position, color)`` pairs with lists turned into tuples, so that values from YAML can be compared and cached.

    Raises:
        ValueError: If an item is not a pair of a number and a color.
    """
    try:
        return tuple((float(position), tuple(c) if isinstance(c, list) else c) for position, c in pairs)
    except (TypeError, ValueError):
        raise _no_map(pairs) from None


def _no_map(pairs: object) -> ValueError:
    return ValueError(
        f"cmap={pairs!r} does not describe a color map; give (position, color) pairs with positions rising from 0 to 1, "
        "such as [(0, '#ffffff'), (0.25, '#000000'), (1, '#000000')]."
    )
