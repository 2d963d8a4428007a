"""A map without a place on an image in (units of a layer, features of a table); bar charts of its values out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.report import Image
from lightning_explain.render import letters as text
from lightning_explain.render.layout import BLACK, GRAY, LINE, SMALL, header

STRONGEST = 16
"""How many units get a bar with a name and a value."""

POSITIVE, NEGATIVE = (0, 128, 0), (220, 0, 0)
_WIDTH = 300
_PAD = 4
_NAME, _VALUE = 70, 58
_LINE = text.line_height(SMALL)
_FEWEST_LINES = 4


@dataclass(frozen=True)
class Charts:
    """The bar charts of one method: one column of panels per kind of chart, one panel per sample.

    Args:
        headers: The lines of text above each column.
        columns: The panels of each column, uint8 ``(N, h, w, 3)``.
        finite: For each sample whether all its values are finite.
    """

    headers: tuple[tuple[str, ...], ...]
    columns: tuple[NDArray[np.uint8], ...]
    finite: tuple[bool, ...]

    @property
    def size(self) -> tuple[int, int]:
        """The size ``(h, w)`` of a panel, in pixels."""
        return self.columns[0].shape[1], self.columns[0].shape[2]


def charts(found: tuple[Tensor, ...]) -> Charts:
    """Bar charts of a method's map: the 16 strongest units of each sample, and a panel of all units if there are more.

    Each sample has its own scale, set by its largest absolute value. Samples with non-finite values are drawn empty.

    Args:
        found: What a method returned, tensors ``(N, ...)`` on the CPU; every number is a unit.
    """
    values = torch.cat([part.reshape(len(part), -1).double() for part in found], dim=1)
    finite = torch.isfinite(values).all(1)
    values = torch.where(finite[:, None], values, 0)
    units = values.shape[1]
    slots = max(min(units, STRONGEST), _FEWEST_LINES)
    lines = [_lines(row, _names(row, found) if good else [], slots) for row, good in zip(values, finite, strict=True)]
    few = units <= STRONGEST
    words = "all units" if few else f"the {STRONGEST} strongest"
    columns = [np.stack(lines)] if few else [profile(values, len(lines[0])), np.stack(lines)]
    titles = (words,) if few else (f"all {units:,} units", words)
    return Charts(tuple(header(t, _WIDTH) for t in titles), tuple(columns), tuple(finite.tolist()))


def profile(values: Tensor, height: int) -> NDArray[np.uint8]:
    """All units side by side as vertical bars: ``(N, U)`` to uint8 ``(N, height, w, 3)``; positive up, negative down.

    If several units share a column of pixels, the column shows the largest and the smallest of them.
    """
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


def _names(row: Tensor, found: tuple[Tensor, ...]) -> list[tuple[int, str]]:
    """The strongest nonzero units of one sample ``(U,)``, index and name; up to 16 units are all listed, in order."""
    if len(row) <= STRONGEST:
        chosen = torch.arange(len(row))
    else:
        strengths, order = row.abs().sort(descending=True, stable=True)
        chosen = order[:STRONGEST][strengths[:STRONGEST] > 0]
    return [(unit, _name(unit, found)) for unit in chosen.tolist()]


def _name(unit: int, found: tuple[Tensor, ...]) -> str:
    """The name of a unit: ``7``; ``3,0`` in a layer of several dimensions; ``1: 7`` in the second of two tensors."""
    for i, part in enumerate(found):
        size = part[0].numel()
        if unit < size:
            index = np.unravel_index(unit, tuple(part.shape[1:])) if part.ndim > 1 else (unit,)
            where = ",".join(map(str, index))
            return f"{i}: {where}" if len(found) > 1 else where
        unit -= size
    raise IndexError(unit)


def _lines(row: Tensor, named: list[tuple[int, str]], slots: int) -> Image:
    """The chart of one sample ``(U,)``, with room for ``slots`` lines; each line: a unit's name, its bar, its value."""
    height = slots * _LINE + 2 * _PAD
    chart = np.full((height, _WIDTH, 3), 255, dtype=np.uint8)
    reach = (_WIDTH - _NAME - _VALUE) // 2
    middle = _NAME + reach
    chart[:, middle] = LINE
    most = float(row.abs().max()) or 1.0
    for i, (unit, name) in enumerate(named):
        y, value = _PAD + i * _LINE, float(row[unit])
        length = round(abs(value) / most * (reach - 1))
        left, right = (middle + 1, middle + 1 + length) if value > 0 else (middle - length, middle)
        chart[y + 2 : y + _LINE - 2, left:right] = POSITIVE if value > 0 else NEGATIVE
        _write_right(chart, name, _NAME - _PAD, y, BLACK)
        _write_right(chart, f"{value:.2g}", _WIDTH - _PAD, y, GRAY)
    return chart


def _write_right(chart: Image, words: str, end: int, y: int, color: tuple[int, int, int]) -> None:
    shown = text.shorten(words, SMALL, _NAME - 2 * _PAD)
    text.write(chart, shown, end - text.width(shown, SMALL), y, SMALL, color)
