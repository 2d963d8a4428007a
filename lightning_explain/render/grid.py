"""One composite picture for each method: rows are probe rows, columns are panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from lightning_explain.maps import to_input_space
from lightning_explain.render import image, text
from lightning_explain.render.captions import Caption, captions
from lightning_explain.render.color import sign_table
from lightning_explain.render.options import Options
from lightning_explain.types import Attribution, Image, Probe, Report, as_tuple

_GAP = 8
_MARGIN = 12
_BODY, _HEADING, _SMALL = 13, 18, 11
_WIDEST_TITLE = 170
_NARROWEST = 84
_BAR = 11
_TICK = 8
_NOT_FINITE = "not finite"
_BLACK, _GRAY, _RED, _AMBER, _LINE = (20, 20, 20), (105, 105, 105), (190, 20, 40), (150, 85, 0), (190, 190, 190)
_OUTLINE, _OUTLINE_EDGE = (255, 220, 0), (0, 0, 0)


def draw(report: Report, probe: Probe, options: Options | None = None) -> dict[str, Image]:
    """Draws every method that has a place in image space.

    The image is the first input of shape ``(N, C, H, W)``. Rows whose map is not finite are drawn as an empty map and
    marked. Where the probe has masks, the original image shows their outline. Wrong predictions have a red title.

    Args:
        report: The maps and the model's outputs, rows in the probe's order.
        probe: The inputs, their labels, masks and class names.
        options: How to draw; ``None`` for the defaults.

    Returns:
        For each drawn method its picture ``(H, W, 3)``. Methods without a place in image space are left out; without an
        image among the inputs there are no pictures.

    Raises:
        ValueError: If report and probe have different numbers of rows, or ``normalization`` does not fit the channels.
    """
    if len(report.ids) != len(probe):
        raise ValueError(f"report has {len(report.ids)} rows, but probe has {len(probe)}; give the probe it came from.")
    inputs = as_tuple(probe.inputs)
    index = next((i for i, x in enumerate(inputs) if x.ndim == 4), None)
    if index is None:
        return {}
    sheet = _sheet(report, probe, index, options or Options())
    placed = {name: _place(found, inputs, index, sheet.rows) for name, found in report.attributions.items()}
    return {name: _picture(name, maps, sheet) for name, maps in placed.items() if maps is not None}


def _place(found: Attribution, inputs: tuple[Tensor, ...], index: int, rows: int) -> Tensor | None:
    """The first rows of a map as ``(rows, C, H, W)`` on the CPU; a row that is not finite is NaN throughout."""
    maps = tuple(m.detach()[:rows].cpu() for m in as_tuple(found))
    finite = torch.isfinite(maps[index if len(maps) > index else 0]).flatten(1).all(1)
    placed = to_input_space(maps, tuple(x[:rows] for x in inputs))
    return None if placed is None else torch.where(finite[:, None, None, None], placed[index], torch.nan)


@dataclass(frozen=True)
class _Sheet:
    """What all methods share: the images, the titles, and where everything stands (pixels)."""

    options: Options
    display: Tensor
    outline: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None
    titles: tuple[Caption, ...]
    headers: tuple[tuple[str, ...], ...]
    signs: tuple[str, ...]
    note: str
    size: tuple[int, int]

    @property
    def rows(self) -> int:
        return len(self.display)

    @property
    def cell(self) -> int:
        return max(self.size[1], _NARROWEST)

    @property
    def left(self) -> int:
        """Where the first column begins."""
        widest = max((text.width(line, _BODY) for c in self.titles for line in (*c.lines, _NOT_FINITE)), default=0)
        return _MARGIN + (_GAP + widest + 2 * _GAP if self.titles else 0)

    def column(self, i: int) -> int:
        """Where column i begins; the scales follow the last column."""
        return self.left + i * (self.cell + _GAP)

    @property
    def scale_width(self) -> int:
        named = max((text.width(_words(s), _SMALL) for s in self.signs), default=0) if len(self.signs) > 1 else 0
        return max(_BAR + _TICK + text.width("-1", _SMALL) + _GAP, named + _GAP)

    @property
    def header_top(self) -> int:
        return _MARGIN + text.line_height(_HEADING) + (text.line_height(_SMALL) if self.note else 0) + _GAP // 2

    @property
    def top(self) -> int:
        """Where the first row begins."""
        return self.header_top + max(map(len, self.headers)) * text.line_height(_BODY) + _GAP // 2

    @property
    def pitch(self) -> int:
        """From one row to the next; titles have room for "not finite"."""
        lines = 1 + max(map(len, (c.lines for c in self.titles)), default=0) if self.titles else 0
        return max(self.size[0], lines * text.line_height(_BODY)) + _GAP

    @property
    def shape(self) -> tuple[int, int, int]:
        width = self.column(len(self.headers)) + len(self.signs) * self.scale_width - _GAP + _MARGIN
        return self.top + self.rows * self.pitch - _GAP + _MARGIN, width, 3


def _sheet(report: Report, probe: Probe, index: int, options: Options) -> _Sheet:
    rows = min(len(probe), options.max_rows)
    display = image.to_display(as_tuple(probe.inputs)[index][:rows].cpu(), options.normalization)
    size = _shown_size(cast("tuple[int, int]", tuple(display.shape[2:])), options)
    cell = max(size[1], _NARROWEST)
    names = options.class_names if options.class_names is not None else probe.class_names
    found = captions(report, probe, names, rows) if options.titles else []
    used = [sign for kind, sign in options.panels if kind in image.HEAT_KINDS]
    return _Sheet(
        options=options,
        display=display,
        outline=None if probe.masks is None else _outline(probe.masks[:rows].cpu(), size),
        titles=tuple(Caption(_wrapped(c.lines), c.wrong) for c in found),
        headers=tuple(text.wrap(_header(kind, sign), _BODY, cell, 3) for kind, sign in options.panels),
        signs=tuple(dict.fromkeys(used)) if options.colorbar else (),
        note=_note(report, rows, len(probe)),
        size=size,
    )


def _shown_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    short, long = min(size), max(size)
    if long > options.max_pixels:
        return cast("tuple[int, int]", tuple(max(1, round(s * options.max_pixels / long)) for s in size))
    factor = min(-(-options.min_pixels // short), max(1, options.max_pixels // long))
    return size[0] * factor, size[1] * factor


def _header(kind: str, sign: str) -> str:
    return _words(kind) if kind == "original_image" else f"{_words(kind)} ({_words(sign)})"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _note(report: Report, rows: int, available: int) -> str:
    known = [("epoch", report.epoch), ("step", report.step)]
    parts = [f"{name} {value}" for name, value in known if value is not None]
    return ", ".join([*parts, f"first {rows} of {available} rows"] if rows < available else parts)


def _wrapped(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for line in lines for part in text.wrap(line, _BODY, _WIDEST_TITLE, 3))


def _outline(masks: Tensor, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A line just inside each mask and a thinner one just outside, ``(N, h, w)`` each."""
    inside = interpolate(masks[:, None].float(), size, mode="nearest")
    line = inside.bool() & (max_pool2d(1 - inside, 5, stride=1, padding=2) > 0)
    edge = ~inside.bool() & (max_pool2d(inside, 3, stride=1, padding=1) > 0)
    return line[:, 0].numpy(), edge[:, 0].numpy()


def _picture(name: str, maps: Tensor, sheet: _Sheet) -> Image:
    canvas = np.full(sheet.shape, 255, dtype=np.uint8)
    finite = torch.isfinite(maps).flatten(1).all(1).tolist()
    _write_header(canvas, name, sheet)
    _write_titles(canvas, finite, sheet)
    normalized = {
        sign: image.normalize(maps, sign, sheet.options.outlier_perc) for sign in {s for _, s in sheet.options.panels}
    }
    for i, (kind, sign) in enumerate(sheet.options.panels):
        panels = image.panel(
            kind, sign, sheet.display, normalized[sign], sheet.options.cmap, sheet.options.alpha_overlay
        )
        _paste(canvas, _resized(panels, sheet.size), i, kind == "original_image", sheet)
    _draw_scales(canvas, sheet)
    return canvas


def _resized(panels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Panels ``(N, 3, H, W)`` as ``(N, h, w, 3)``: enlarged pixel by pixel, or reduced with antialiasing."""
    height, width = panels.shape[2:]
    if size[0] >= height and size[1] >= width:
        pixels = panels.permute(0, 2, 3, 1).contiguous().numpy()
        return pixels.repeat(size[0] // height, axis=1).repeat(size[1] // width, axis=2)
    reduced = interpolate(panels.float(), size, mode="bilinear", antialias=True).round()
    return reduced.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _paste(canvas: Image, pixels: NDArray[np.uint8], column: int, outlined: bool, sheet: _Sheet) -> None:
    height, width = sheet.size
    x = sheet.column(column) + (sheet.cell - width) // 2
    if outlined and sheet.outline is not None:
        pixels = pixels.copy()
        pixels[sheet.outline[0]] = _OUTLINE
        pixels[sheet.outline[1]] = _OUTLINE_EDGE
    for i, panel in enumerate(pixels):
        y = sheet.top + i * sheet.pitch
        # A frame, so that a white panel ends somewhere.
        frame = canvas[y - 1 : y + height + 1, x - 1 : x + width + 1]
        frame[[0, -1]], frame[:, [0, -1]] = _LINE, _LINE
        canvas[y : y + height, x : x + width] = panel


def _write_header(canvas: Image, name: str, sheet: _Sheet) -> None:
    room = canvas.shape[1] - 2 * _MARGIN
    text.write(canvas, text.shorten(name, _HEADING, room), _MARGIN, _MARGIN - 2, _HEADING, _BLACK)
    below = _MARGIN + text.line_height(_HEADING) - 2
    text.write(canvas, text.shorten(sheet.note, _SMALL, room), _MARGIN, below, _SMALL, _GRAY)
    most = max(map(len, sheet.headers))
    for i, lines in enumerate(sheet.headers):
        for j, line in enumerate(lines, start=most - len(lines)):
            x = sheet.column(i) + (sheet.cell - text.width(line, _BODY)) // 2
            text.write(canvas, line, x, sheet.header_top + j * text.line_height(_BODY), _BODY, _BLACK)


def _write_titles(canvas: Image, finite: Sequence[bool], sheet: _Sheet) -> None:
    for i, caption in enumerate(sheet.titles):
        y = sheet.top + i * sheet.pitch
        if caption.wrong:
            canvas[y : y + sheet.pitch - _GAP, _MARGIN : _MARGIN + 3] = _RED
        lines = [(line, _RED if caption.wrong else _BLACK) for line in caption.lines]
        if not finite[i]:
            lines.append((_NOT_FINITE, _AMBER))
        for j, (line, color) in enumerate(lines):
            text.write(canvas, line, _MARGIN + _GAP, y + j * text.line_height(_BODY), _BODY, color)


def _draw_scales(canvas: Image, sheet: _Sheet) -> None:
    for i, sign in enumerate(sheet.signs):
        x = sheet.column(len(sheet.headers)) + i * sheet.scale_width
        if len(sheet.signs) > 1:
            text.write(canvas, _words(sign), x, sheet.top - text.line_height(_SMALL) - 6, _SMALL, _GRAY)
        scale = _scale(sign, sheet)
        for row in range(sheet.rows):
            y = sheet.top + row * sheet.pitch
            canvas[y - 4 : y - 4 + len(scale), x : x + scale.shape[1]] = scale


def _scale(sign: str, sheet: _Sheet) -> Image:
    """A color bar with its ticks, four pixels higher and lower than a panel so that the end ticks are centered."""
    height = sheet.size[0]
    block = np.full((height + 8, _BAR + _TICK + text.width("-1", _SMALL), 3), 255, dtype=np.uint8)
    colors = image.to_bytes(sign_table(sign, sheet.options.cmap)).numpy()
    block[3 : height + 5, : _BAR + 2] = _LINE
    block[4 : height + 4, 1 : _BAR + 1] = colors[np.linspace(255, 0, height).round().astype(int), None]
    for label, share in {"-1": 0.0, "0": 0.5, "1": 1.0}.items() if sign == "all" else {"0": 0.0, "1": 1.0}.items():
        y = round((1 - share) * (height - 1)) + 4
        block[y, _BAR + 2 : _BAR + 4] = _GRAY
        text.write(block, label, _BAR + _TICK, y - text.line_height(_SMALL) // 2, _SMALL, _GRAY)
    return block
