"""A report and its probe in; one tall picture per method out, with one row per sample and one column per panel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.panels import Panel
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.modalities import of_probe
from lightning_explain.render import letters as text
from lightning_explain.render.captions import captions
from lightning_explain.render.color import sign_table
from lightning_explain.render.drawn import DrawnInput, check_samples, drawn_inputs, panels_of, pixels_of
from lightning_explain.render.image import HEAT_KINDS, to_bytes
from lightning_explain.render.kinds import of_samples
from lightning_explain.render.layout import GAP, GRAY, LINE, SMALL, Sheet, header, note, wrapped
from lightning_explain.render.options import Options, PanelStyle

_BAR = 11
_TICK = 8


def composite(report: Report, probe: Probe, options: Options | None = None) -> dict[str, Picture]:
    """Draws the maps of every method: one picture per method.

    A method whose map has a place on the image is drawn with the panels in ``options``; the image is the first input of
    shape ``(N, C, H, W)``. If the method explains several inputs, the others follow in columns of their own. Other
    methods (at a layer without spatial dimensions, or of a model without image input) are drawn as bar charts. Samples
    whose map is not finite are drawn with an empty map and marked. If the probe has masks, their outline is drawn on
    the original image. Of a segmentation, the prediction has a white line around it, the label a green one inside, and the explained
    pixels a white one on the overlay. Wrong predictions have a red title.

    Args:
        report: The maps and the model's outputs, samples in the probe's order.
        probe: The inputs, their labels, masks and class names.
        options: How to draw; ``None`` for the defaults.

    Returns:
        Method name to picture, uint8 ``(H, W, 3)``.

    Raises:
        ValueError: If report and probe have different numbers of samples, or ``normalization`` does not fit the
            channels.
    """
    check_samples(report, probe)
    options = options or Options()
    options.check_kinds(of_probe(probe))
    blocks = drawn_inputs(probe, options, explained=report.explained)
    rows = len(blocks[0].inputs[0])
    names = options.class_names if options.class_names is not None else probe.class_names
    titles = wrapped(captions(report, probe, names, rows)) if options.titles else ()
    sheet = partial(Sheet, rows, titles, note=note(report, rows, len(probe)))
    return {name: _picture(name, report, blocks, sheet, options.of(name)) for name in report.attributions}


def _picture(
    name: str, report: Report, blocks: list[DrawnInput], sheet: Callable[..., Sheet], style: PanelStyle
) -> Picture:
    panels: list[Panel] = []
    columns: list[NDArray[np.uint8]] = []
    finite = torch.ones(len(blocks[0].inputs[0]), dtype=torch.bool)
    for block in blocks:
        shown, fine = panels_of(name, report, block, style)
        mine = of_samples(shown)
        normalized: dict[str, Tensor] = {}
        columns += [pixels_of(panel, block, normalized, style) for panel in mine]
        panels += [replace(p, title=f"{block.name}: {p.title}") for p in mine] if len(blocks) > 1 else mine
        finite &= fine
    signs = tuple(dict.fromkeys(p.sign for p in panels if p.kind in HEAT_KINDS)) if style.colorbar else ()
    headers = tuple(header(p.title, column.shape[2]) for p, column in zip(panels, columns, strict=True))
    size = (max(c.shape[1] for c in columns), max(c.shape[2] for c in columns))
    page = sheet(headers=headers, size=size, right=len(signs) * _scale_width(signs))
    canvas = page.page(name, finite.tolist())
    for i, column in enumerate(columns):
        page.paste(canvas, column, i)
    _draw_scales(canvas, signs, page, style)
    return canvas


def _scale_width(signs: tuple[str, ...]) -> int:
    named = max((text.width(s.replace("_", " "), SMALL) for s in signs), default=0) if len(signs) > 1 else 0
    return max(_BAR + _TICK + text.width("-1", SMALL) + GAP, named + GAP)


def _draw_scales(canvas: Picture, signs: tuple[str, ...], sheet: Sheet, style: PanelStyle) -> None:
    for i, sign in enumerate(signs):
        x = sheet.column(len(sheet.headers)) + i * _scale_width(signs)
        if len(signs) > 1:
            above = sheet.top - text.line_height(SMALL) - 6
            text.write(canvas, sign.replace("_", " "), x, above, SMALL, GRAY)
        scale = _scale(sign, sheet.size[0], style)
        for row in range(sheet.rows):
            y = sheet.row(row)
            canvas[y - 4 : y - 4 + len(scale), x : x + scale.shape[1]] = scale


def _scale(sign: str, height: int, style: PanelStyle) -> Picture:
    """A color bar with ticks; it extends four pixels above and below a panel, so that the end ticks can be centered."""
    block = np.full((height + 8, _BAR + _TICK + text.width("-1", SMALL), 3), 255, dtype=np.uint8)
    colors = to_bytes(sign_table(sign, style.cmap)).numpy()
    block[3 : height + 5, : _BAR + 2] = LINE
    block[4 : height + 4, 1 : _BAR + 1] = colors[np.linspace(255, 0, height).round().astype(int), None]
    for label, share in {"-1": 0.0, "0": 0.5, "1": 1.0}.items() if sign == "all" else {"0": 0.0, "1": 1.0}.items():
        y = round((1 - share) * (height - 1)) + 4
        block[y, _BAR + 2 : _BAR + 4] = GRAY
        text.write(block, label, _BAR + _TICK, y - text.line_height(SMALL) // 2, SMALL, GRAY)
    return block
