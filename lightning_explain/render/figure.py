"""A report and its probe in; the pictures of every method, or of one sample, out."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.render.composite import composite
from lightning_explain.render.drawn import drawn_inputs, panels_of, pixels_of
from lightning_explain.render.layout import GAP
from lightning_explain.render.options import Options

draw = composite


def draw_sample(report: Report, probe: Probe, options: Options, method: str, index: int) -> Picture:
    """Draws the panels of one sample side by side, without words.

    Args:
        report: The maps, samples in the probe's order.
        probe: The inputs.
        options: How to draw.
        method: Name of a method in the report.
        index: The sample's place in the probe, from 0.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    style, panels = options.of(method), []
    for block in drawn_inputs(probe, options, slice(index, index + 1)):
        normalized: dict[str, Tensor] = {}
        panels += [
            pixels_of(panel, block, normalized, style)[0] for panel in panels_of(method, report, block, style)[0]
        ]
    height = max(len(panel) for panel in panels)
    canvas = np.full((height, sum(panel.shape[1] + GAP for panel in panels) - GAP, 3), 255, dtype=np.uint8)
    x = 0
    for panel in panels:
        canvas[: len(panel), x : x + panel.shape[1]] = panel
        x += panel.shape[1] + GAP
    return canvas
