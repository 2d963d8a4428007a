"""A map of units in (of a layer, features of a table); bar charts of its values out, one for each sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageColor
from torch import Tensor

from lightning_explain.core.panels import MOST_BARS, FeaturesPanel, Panel
from lightning_explain.core.probe import all_finite
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.captions import percent
from lightning_explain.render.color import BLUE, ORANGE
from lightning_explain.render.layout import BLACK, GRAY, LINE, SMALL

POSITIVE, NEGATIVE = ImageColor.getrgb(ORANGE), ImageColor.getrgb(BLUE)
_WIDTH = 300
_PAD = 4
_NAME, _VALUE = 70, 58
_LINE = text.line_height(SMALL)
_FEWEST_LINES = 4
_TINT = 0.5
"""How strong the color of a bar is behind letters."""


def lines(panel: Panel) -> NDArray[np.uint8]:
    """The strongest units of each sample, each with its name, its bar and its value: uint8 ``(N, h, w, 3)``.

    Each sample has its own scale, set by its largest absolute value. Samples with non-finite values are drawn empty.
    """
    size = (_height(panel.values), _WIDTH)
    return np.stack([_lines(sample, panel.name, size, SMALL, MOST_BARS) for sample in panel.values])


def chart(panel: Panel, size: tuple[int, int], letters: int) -> NDArray[np.uint8]:
    """The same in the size ``(h, w)``, with letters of another size, and as many units as there is space for."""
    most = max(1, (size[0] - 2 * _PAD) // text.line_height(letters))
    return np.stack([_lines(sample, panel.name, size, letters, most) for sample in panel.values])


def behind(panel: Panel, size: tuple[int, int], letters: int, totals: Tensor | None = None) -> NDArray[np.uint8]:
    """The strongest units of each sample, for narrow places: uint8 ``(N, h, w, 3)``.

    Each has its share of the absolute map in percent, and behind it a bar, which is as wide as the picture at 100%. Samples with
    non-finite values are drawn empty.

    Args:
        panel: The units.
        size: Height and width.
        letters: The size of letters.
        totals: ``(N,)`` the sum of the absolute map of each sample over all inputs. Default: over these units.
    """
    line, (height, width) = text.line_height(letters), size
    chart = np.full((len(panel.values), height, width, 3), 255, dtype=np.uint8)
    sums = (panel.values.abs().nansum(1) if totals is None else totals).tolist()
    for picture, sample, total in zip(chart, panel.values, sums, strict=True):
        for i, unit in enumerate(_strongest(sample, max(1, height // line))):
            y, value = i * line, float(sample[unit])
            share = min(abs(value) / total, 1.0) if total > 0 else 0.0
            bar = picture[y + 1 : y + line - 1, : round(share * width)]
            bar[:] = np.add(_TINT * np.array(POSITIVE if value > 0 else NEGATIVE), (1 - _TINT) * 255)
            number = percent(share)
            _write_right(picture, number, width - _PAD, y, letters, width, BLACK)
            space = width - 3 * _PAD - text.width(number, letters)
            text.write(picture, text.shorten(_called(panel, unit), letters, space), _PAD, y, letters, BLACK)
    return chart


def _called(panel: Panel, unit: int) -> str:
    return panel.names[unit] if isinstance(panel, FeaturesPanel) else panel.name(unit)


def profile(panel: Panel) -> NDArray[np.uint8]:
    """All units side by side as vertical bars, uint8 ``(N, h, w, 3)``; positive up, negative down.

    If several units share a column of pixels, the column shows the largest and the smallest of them.
    """
    values = torch.where(all_finite(panel.values)[:, None], panel.values, 0)
    height = _height(values)
    up, down = _columns(values.clamp(min=0)), _columns((-values).clamp(min=0))
    middle = height // 2
    most = values.abs().amax(1).clamp(min=torch.finfo(values.dtype).tiny)[:, None]
    # Rounded up, so that a unit that is not zero has at least one pixel.
    above, below = ((side / most * (middle - _PAD)).ceil()[:, None] for side in (up, down))
    distance = torch.arange(height)[None, :, None] - middle
    chart = np.full((len(values), height, _WIDTH, 3), 255, dtype=np.uint8)
    chart[:, middle] = LINE
    chart[((distance < 0) & (-distance <= above)).numpy()] = POSITIVE
    chart[((distance > 0) & (distance <= below)).numpy()] = NEGATIVE
    return chart


KINDS = {"bars": lines, "profile": profile}
"""The kinds of panels that are drawn here."""


def _height(values: Tensor) -> int:
    return max(min(values.shape[1], MOST_BARS), _FEWEST_LINES) * _LINE + 2 * _PAD


def _columns(values: Tensor) -> Tensor:
    """The largest unit in each column of pixels: ``(N, U)`` to ``(N, w)``, padded on both sides."""
    n, units = values.shape
    space = _WIDTH - 2 * _PAD
    if units <= space:
        found = values[:, torch.arange(space) * units // space]
    else:
        bins = (torch.arange(units) * space // units).expand(n, -1)
        found = torch.zeros(n, space, dtype=values.dtype).scatter_reduce(1, bins, values, "amax")
    return torch.nn.functional.pad(found, (_PAD, _PAD))


def _strongest(sample: Tensor, most: int) -> list[int]:
    """The strongest nonzero units of one sample ``(U,)``; if there are no more than ``most`` units, all of them in order."""
    if not sample.isfinite().all():
        return []
    if len(sample) <= most:
        return list(range(len(sample)))
    strengths, order = sample.abs().sort(descending=True, stable=True)
    chosen: list[int] = order[:most][strengths[:most] > 0].tolist()
    return chosen


def _lines(sample: Tensor, name: Callable[[int], str], size: tuple[int, int], letters: int, most: int) -> Picture:
    """The chart of one sample ``(U,)``."""
    chart, line, width = np.full((*size, 3), 255, dtype=np.uint8), text.line_height(letters), size[1]
    named, valued = _NAME * letters // SMALL, _VALUE * letters // SMALL
    if named + valued > 0.7 * width:
        named, valued = int(0.33 * width), int(0.37 * width)
    reach = (width - named - valued) // 2
    middle = named + reach
    chart[:, middle] = LINE
    largest = float(sample.abs().max()) or 1.0
    for i, unit in enumerate(_strongest(sample, most)):
        y, value = _PAD + i * line, float(sample[unit])
        length = round(abs(value) / largest * (reach - 1))
        left, right = (middle + 1, middle + 1 + length) if value > 0 else (middle - length, middle)
        chart[y + 2 : y + line - 2, left:right] = POSITIVE if value > 0 else NEGATIVE
        _write_right(chart, name(unit), named - _PAD, y, letters, named - 2 * _PAD, BLACK)
        _write_right(chart, f"{value:.2g}", width - _PAD, y, letters, valued - _PAD, GRAY)
    return chart


def _write_right(
    chart: Picture, words: str, end: int, y: int, letters: int, space: int, color: tuple[int, int, int]
) -> None:
    shown = text.shorten(words, letters, space)
    text.write(chart, shown, end - text.width(shown, letters), y, letters, color)
