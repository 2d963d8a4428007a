"""A report and its probe in; one picture per method out, with one row per sample and one column per panel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from lightning_explain.core.contracts import Modality
from lightning_explain.core.panels import Panel
from lightning_explain.core.probe import Probe, all_finite, as_tuple
from lightning_explain.core.report import Image, Report
from lightning_explain.modalities import Plain, guess
from lightning_explain.modalities.placement import arrange, onto
from lightning_explain.render import bars
from lightning_explain.render import letters as text
from lightning_explain.render.captions import captions
from lightning_explain.render.color import sign_table
from lightning_explain.render.image import HEAT_KINDS, normalize, to_bytes, to_display
from lightning_explain.render.image import panel as image_panel
from lightning_explain.render.layout import GAP, GRAY, LINE, SMALL, Sheet, header, note, wrapped
from lightning_explain.render.options import Options, PanelStyle

_BAR = 11
_TICK = 8
_OUTLINE, _OUTLINE_EDGE = (255, 220, 0), (0, 0, 0)


def draw(report: Report, probe: Probe, options: Options | None = None) -> dict[str, Image]:
    """Draws the maps of every method: one picture per method.

    A method whose map has a place on the image is drawn with the panels in ``options``; the image is the first input of
    shape ``(N, C, H, W)``. If the method explains several inputs, the others follow in columns of their own. Other
    methods (at a layer without spatial dimensions, or of a model without image input) are drawn as bar charts. Samples
    whose map is not finite are drawn with an empty map and marked. If the probe has masks, their outline is drawn on
    the original image. Wrong predictions have a red title.

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
    if len(report.ids) != len(probe):
        raise ValueError(
            f"report has {len(report.ids)} samples, but probe has {len(probe)}; give the probe it came from."
        )
    options = options or Options()
    blocks = _blocks(probe, options)
    rows = len(blocks[0].inputs[0])
    names = options.class_names if options.class_names is not None else probe.class_names
    titles = wrapped(captions(report, probe, names, rows)) if options.titles else ()
    sheet = partial(Sheet, rows, titles, note=note(report, rows, len(probe)))
    return {name: _picture(name, report, blocks, sheet, options.of(name)) for name in report.attributions}


@dataclass(frozen=True)
class _Drawn:
    """The inputs of the samples that are drawn, what they are, and the index of the one that a block of columns shows.

    The first block also shows maps that have no place on an input. If the input has pixels: its images, their size in the
    picture, and the outline of their masks.
    """

    inputs: tuple[Tensor, ...]
    modalities: tuple[Modality, ...]
    index: int | None
    first: bool = True
    images: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    outline: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None


def _blocks(probe: Probe, options: Options) -> list[_Drawn]:
    """The input that maps are drawn on, if there is one; and after it, every other input."""
    inputs = tuple(x[: options.max_rows].cpu() for x in as_tuple(probe.inputs))
    modalities = guess(inputs)
    index = next((i for i, modality in enumerate(modalities) if modality.on_input), None)
    if index is None:
        return [_Drawn(inputs, modalities, None)]
    others = [i for i in range(len(inputs)) if i != index]
    return [_block(probe, inputs, modalities, i, i == index, options) for i in (index, *others)]


def _block(
    probe: Probe, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...], i: int, first: bool, options: Options
) -> _Drawn:
    pixels = modalities[i].pixels(inputs[i])
    if pixels is None:
        return _Drawn(inputs, modalities, i, first)
    # Further images need not be normalized as the first one is, nor be of its size.
    size, images = _shown_size(pixels, options), to_display(inputs[i], options.normalization if first else None)
    outline = None if probe.masks is None or not first else _outline(probe.masks[: options.max_rows].cpu(), size)
    return _Drawn(inputs, modalities, i, first, images, size, outline)


def _picture(name: str, report: Report, blocks: list[_Drawn], sheet: Callable[..., Sheet], style: PanelStyle) -> Image:
    panels: list[Panel] = []
    columns: list[NDArray[np.uint8]] = []
    finite = torch.ones(len(blocks[0].inputs[0]), dtype=torch.bool)
    for block in blocks:
        mine, fine = _panels(name, report, block, style)
        normalized: dict[str, Tensor] = {}
        columns += [_pixels(panel, block, normalized, style) for panel in mine]
        panels += [replace(p, title=f"input {block.index}: {p.title}") for p in mine] if len(blocks) > 1 else mine
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


def _panels(name: str, report: Report, drawn: _Drawn, style: PanelStyle) -> tuple[tuple[Panel, ...], Tensor]:
    """The panels of a method, and for each sample whether its map is finite."""
    inputs, modalities, index = drawn.inputs, drawn.modalities, drawn.index
    found, stored = (
        tuple(part.detach()[: len(inputs[0])].cpu() for part in as_tuple(maps.get(name, ())))
        for maps in (report.attributions, report.maps)
    )
    arranged = stored if name in report.maps else arrange(found, inputs, modalities)
    if not drawn.first:
        return _further(found, drawn, style)
    if index is None or not arranged:
        panels = Plain().panels(found, inputs, style.panels)
        return panels, all_finite(panels[0].values)
    whole, finite = onto(arranged, inputs, modalities)[index], all_finite(found[index if len(found) > index else 0])
    shown = torch.where(finite.reshape(-1, *(1,) * (whole.ndim - 1)), whole, torch.nan)
    return modalities[index].panels((shown,), (inputs[index],), style.panels), all_finite(shown)


def _further(found: tuple[Tensor, ...], drawn: _Drawn, style: PanelStyle) -> tuple[tuple[Panel, ...], Tensor]:
    """The panels of another input than the first that is drawn; none if the method has no map for it."""
    i, own = drawn.index, drawn.inputs[drawn.index or 0]
    if i is None or len(found) != len(drawn.inputs) or found[i].shape != own.shape:
        return (), torch.ones(len(own), dtype=torch.bool)
    modality = drawn.modalities[i] if drawn.modalities[i].on_input else Plain()
    return modality.panels((found[i],), (own,), style.panels), all_finite(found[i])


def _pixels(panel: Panel, drawn: _Drawn, normalized: dict[str, Tensor], style: PanelStyle) -> NDArray[np.uint8]:
    """The panels of one column, ``(N, h, w, 3)``; ``normalized`` keeps the map of each sign for the next column."""
    if panel.kind in bars.KINDS:
        return bars.KINDS[panel.kind](panel)
    if panel.kind == "pixels":
        return panel.values.numpy()
    if drawn.images is None:
        raise ValueError(
            f"A panel of the kind {panel.kind!r} needs an input with pixels; give 'bars', 'profile' or 'pixels'."
        )
    if panel.sign not in normalized:
        normalized[panel.sign] = normalize(panel.values, panel.sign, style.outlier_perc)
    found = image_panel(panel.kind, panel.sign, drawn.images, normalized[panel.sign], style.cmap, style.alpha_overlay)
    pixels = _resized(found, drawn.size)
    if panel.kind == "original_image" and drawn.outline is not None:
        pixels = pixels.copy()
        pixels[drawn.outline[0]], pixels[drawn.outline[1]] = _OUTLINE, _OUTLINE_EDGE
    return pixels


def _shown_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    short, long = min(size), max(size)
    if long > options.max_pixels:
        return cast("tuple[int, int]", tuple(max(1, round(s * options.max_pixels / long)) for s in size))
    factor = min(-(-options.min_pixels // short), max(1, options.max_pixels // long))
    return size[0] * factor, size[1] * factor


def _outline(masks: Tensor, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A line just inside each mask and a thinner one just outside: two boolean arrays ``(N, h, w)``."""
    inside = interpolate(masks[:, None].float(), size, mode="nearest")
    line = inside.bool() & (max_pool2d(1 - inside, 5, stride=1, padding=2) > 0)
    edge = ~inside.bool() & (max_pool2d(inside, 3, stride=1, padding=1) > 0)
    return line[:, 0].numpy(), edge[:, 0].numpy()


def _resized(panels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Panels ``(N, 3, H, W)`` as ``(N, h, w, 3)``: enlarged by repeating pixels, or reduced with antialiasing."""
    height, width = panels.shape[2:]
    if size[0] >= height and size[1] >= width:
        pixels = panels.permute(0, 2, 3, 1).contiguous().numpy()
        # Lines are repeated last, because whole lines are copied faster than single pixels.
        return pixels.repeat(size[1] // width, axis=2).repeat(size[0] // height, axis=1)
    reduced = interpolate(panels.float(), size, mode="bilinear", antialias=True).round()
    return reduced.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _scale_width(signs: tuple[str, ...]) -> int:
    named = max((text.width(s.replace("_", " "), SMALL) for s in signs), default=0) if len(signs) > 1 else 0
    return max(_BAR + _TICK + text.width("-1", SMALL) + GAP, named + GAP)


def _draw_scales(canvas: Image, signs: tuple[str, ...], sheet: Sheet, style: PanelStyle) -> None:
    for i, sign in enumerate(signs):
        x = sheet.column(len(sheet.headers)) + i * _scale_width(signs)
        if len(signs) > 1:
            above = sheet.top - text.line_height(SMALL) - 6
            text.write(canvas, sign.replace("_", " "), x, above, SMALL, GRAY)
        scale = _scale(sign, sheet.size[0], style)
        for row in range(sheet.rows):
            y = sheet.row(row)
            canvas[y - 4 : y - 4 + len(scale), x : x + scale.shape[1]] = scale


def _scale(sign: str, height: int, style: PanelStyle) -> Image:
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
