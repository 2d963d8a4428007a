"""A report and its probe in; one picture per method out, with one row per sample and one column per panel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from lightning_explain.core.probe import Probe, all_finite, as_tuple
from lightning_explain.core.report import Image, Report
from lightning_explain.modalities.image import onto, to_input_space
from lightning_explain.render import bars, image
from lightning_explain.render import letters as text
from lightning_explain.render.captions import Caption, captions
from lightning_explain.render.color import sign_table
from lightning_explain.render.layout import GAP, GRAY, LINE, SMALL, Sheet, header, note, wrapped
from lightning_explain.render.options import Options, PanelStyle

_BAR = 11
_TICK = 8
_OUTLINE, _OUTLINE_EDGE = (255, 220, 0), (0, 0, 0)


def draw(report: Report, probe: Probe, options: Options | None = None) -> dict[str, Image]:
    """Draws the maps of every method: one picture per method.

    A method whose map has a place on the image is drawn with the panels in ``options``; the image is the first input of
    shape ``(N, C, H, W)``. Other methods (at a layer without spatial dimensions, or of a model without image input) are
    drawn as bar charts. Samples whose map is not finite are drawn with an empty map and marked. If the probe has masks,
    their outline is drawn on the original image. Wrong predictions have a red title.

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
    frame = _frame(report, probe, options)
    images = _images(probe, frame.rows, options)
    return {name: _picture(name, report, probe, images, frame, options.of(name)) for name in report.attributions}


@dataclass(frozen=True)
class _Frame:
    """What all pictures of a report have in common."""

    rows: int
    titles: tuple[Caption, ...]
    note: str


@dataclass(frozen=True)
class _Images:
    """The image of each sample, the index of the input it comes from, and the outline of its mask."""

    index: int
    display: Tensor
    size: tuple[int, int]
    outline: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None


def _frame(report: Report, probe: Probe, options: Options) -> _Frame:
    rows = min(len(probe), options.max_rows)
    names = options.class_names if options.class_names is not None else probe.class_names
    titles = wrapped(captions(report, probe, names, rows)) if options.titles else ()
    return _Frame(rows, titles, note(report, rows, len(probe)))


def _images(probe: Probe, rows: int, options: Options) -> _Images | None:
    inputs = as_tuple(probe.inputs)
    index = next((i for i, x in enumerate(inputs) if x.ndim == 4), None)
    if index is None:
        return None
    display = image.to_display(inputs[index][:rows].cpu(), options.normalization)
    size = _shown_size(cast("tuple[int, int]", tuple(display.shape[2:])), options)
    return _Images(index, display, size, None if probe.masks is None else _outline(probe.masks[:rows].cpu(), size))


def _picture(
    name: str, report: Report, probe: Probe, images: _Images | None, frame: _Frame, style: PanelStyle
) -> Image:
    inputs = tuple(x[: frame.rows] for x in as_tuple(probe.inputs))
    found = tuple(m.detach()[: frame.rows].cpu() for m in as_tuple(report.attributions[name]))
    placed = None if images is None else _placed(name, report, found, inputs)
    if images is None or placed is None:
        chart = bars.charts(found)
        sheet = Sheet(frame.rows, frame.titles, chart.headers, chart.size, frame.note)
        canvas = sheet.page(name, chart.finite)
        for i, panels in enumerate(chart.columns):
            sheet.paste(canvas, panels, i)
        return canvas
    finite = all_finite(found[images.index if len(found) > images.index else 0])
    maps = torch.where(finite[:, None, None, None], placed[images.index], torch.nan)
    return _panels(name, maps, images, frame, style)


def _placed(
    name: str, report: Report, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, ...] | None:
    """The map in input space, on the CPU, cut to the samples in ``inputs``; ``None`` if it has no place there."""
    if name not in report.maps:
        return to_input_space(found, inputs)
    arranged = tuple(m.detach()[: len(inputs[0])].cpu() for m in report.maps[name])
    return onto(arranged, inputs) if arranged else None


def _panels(name: str, maps: Tensor, images: _Images, frame: _Frame, style: PanelStyle) -> Image:
    used = [sign for kind, sign in style.panels if kind in image.HEAT_KINDS]
    signs = tuple(dict.fromkeys(used)) if style.colorbar else ()
    headers = tuple(header(_words(kind, sign), images.size[1]) for kind, sign in style.panels)
    sheet = Sheet(frame.rows, frame.titles, headers, images.size, frame.note, len(signs) * _scale_width(signs))
    canvas = sheet.page(name, all_finite(maps).tolist())
    normalized = {sign: image.normalize(maps, sign, style.outlier_perc) for sign in {s for _, s in style.panels}}
    for i, (kind, sign) in enumerate(style.panels):
        panels = image.panel(kind, sign, images.display, normalized[sign], style.cmap, style.alpha_overlay)
        pixels = _resized(panels, sheet.size)
        sheet.paste(canvas, _outlined(pixels, images) if kind == "original_image" else pixels, i)
    _draw_scales(canvas, signs, sheet, style)
    return canvas


def _shown_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    short, long = min(size), max(size)
    if long > options.max_pixels:
        return cast("tuple[int, int]", tuple(max(1, round(s * options.max_pixels / long)) for s in size))
    factor = min(-(-options.min_pixels // short), max(1, options.max_pixels // long))
    return size[0] * factor, size[1] * factor


def _words(kind: str, sign: str) -> str:
    plain = kind.replace("_", " ")
    return plain if kind == "original_image" else f"{plain} ({sign.replace('_', ' ')})"


def _outline(masks: Tensor, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A line just inside each mask and a thinner one just outside: two boolean arrays ``(N, h, w)``."""
    inside = interpolate(masks[:, None].float(), size, mode="nearest")
    line = inside.bool() & (max_pool2d(1 - inside, 5, stride=1, padding=2) > 0)
    edge = ~inside.bool() & (max_pool2d(inside, 3, stride=1, padding=1) > 0)
    return line[:, 0].numpy(), edge[:, 0].numpy()


def _outlined(pixels: NDArray[np.uint8], images: _Images) -> NDArray[np.uint8]:
    if images.outline is None:
        return pixels
    pixels = pixels.copy()
    pixels[images.outline[0]] = _OUTLINE
    pixels[images.outline[1]] = _OUTLINE_EDGE
    return pixels


def _resized(panels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Panels ``(N, 3, H, W)`` as ``(N, h, w, 3)``: enlarged by repeating pixels, or reduced with antialiasing."""
    height, width = panels.shape[2:]
    if size[0] >= height and size[1] >= width:
        pixels = panels.permute(0, 2, 3, 1).contiguous().numpy()
        return pixels.repeat(size[0] // height, axis=1).repeat(size[1] // width, axis=2)
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
    colors = image.to_bytes(sign_table(sign, style.cmap)).numpy()
    block[3 : height + 5, : _BAR + 2] = LINE
    block[4 : height + 4, 1 : _BAR + 1] = colors[np.linspace(255, 0, height).round().astype(int), None]
    for label, share in {"-1": 0.0, "0": 0.5, "1": 1.0}.items() if sign == "all" else {"0": 0.0, "1": 1.0}.items():
        y = round((1 - share) * (height - 1)) + 4
        block[y, _BAR + 2 : _BAR + 4] = GRAY
        text.write(block, label, _BAR + _TICK, y - text.line_height(SMALL) // 2, SMALL, GRAY)
    return block
