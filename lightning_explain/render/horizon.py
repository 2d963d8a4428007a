"""Forecasts with a map of each step in; pages with one heat map for each sample, the steps over the lags of the history, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.panels import HorizonPanel, Panel, SeriesPanel
from lightning_explain.core.report import Picture, Report
from lightning_explain.render.captions import Caption, Short
from lightning_explain.render.layout import BLACK, GRAY, LINE
from lightning_explain.render.notes import GAP, MARGIN, PITCH, TOP, Notes, Page, Track, scaled, write, write_right
from lightning_explain.render.page import HEIGHT, WIDTH, brief
from lightning_explain.render.series import columns, time_axis

_CHANNELS = 3
"""The most channels that have a block each; more are summed."""
_LABELS, _CELL, _CELL_HEIGHT = 124, 320, 160


def firsts(report: Report) -> list[int]:
    """The first entry of each sample, if the report has a map of each step of a forecast; else nothing."""
    if "step" not in report.explained or "sample" not in report.explained:
        return []
    samples = report.samples.tolist()
    return [i for i, sample in enumerate(samples) if i == 0 or sample != samples[i - 1]]


def by_step(panel: SeriesPanel, report: Report) -> HorizonPanel:
    """The panel of entries ``(N * S, C, T)``, each of one step, as one of N samples."""
    first = firsts(report)
    steps = len(report.ids) // len(first)
    maps = panel.values[: len(panel.values) // steps * steps].unflatten(0, (-1, steps))
    if maps.shape[2] > _CHANNELS:
        maps = maps.sum(2, keepdim=True)
    values = maps.transpose(1, 2).flatten(1, 2)
    of_first = [int(step) for step in report.explained["step"][:steps]]
    series = panel.series[::steps][: len(values)]
    return HorizonPanel("horizon", values, series=series, channels=panel.channels, rate=panel.rate, steps=of_first)


def captions_of(report: Report, labels: Tensor | None) -> list[Caption]:
    """The id of each sample, and the mean absolute error of its forecast where the truth is known."""
    found = []
    for i in firsts(report):
        lines = [f"sample {int(report.samples[i])}"]
        if labels is not None and labels[i].shape == report.outputs[i].shape:
            error = (report.outputs[i].double() - labels[i].cpu().double()).abs().nanmean()
            lines.append(f"mean error {brief(float(error))}")
        found.append(Caption(tuple(lines), short=Short(lines[0], lines[1] if len(lines) > 1 else "")))
    return found


def pages(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """Two samples side by side, or one on narrow pages: a block for each of few channels, or for each track the sum over channels."""
    assert isinstance(panel, HorizonPanel)
    most, count = (2 if notes.width == WIDTH else 1), len(panel.values)
    blocks = _blocks(panel, tracks, notes)
    return [partial(_page, panel, blocks, notes, range(i, min(i + most, count))) for i in range(0, count, most)]


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each sample alone, ``(N, h, w, 3)``."""
    assert isinstance(panel, HorizonPanel)
    return np.stack([_heat(weights, (_CELL_HEIGHT, _CELL)) for weights in scaled(panel.values, "sample")])


def _blocks(panel: HorizonPanel, tracks: Sequence[Track], notes: Notes) -> list[tuple[tuple[str, ...], Tensor]]:
    """The words beside each block, and its weights ``(N, S, T)``."""
    steps = len(panel.steps)
    if len(tracks) > 1:
        sums = [track.values.unflatten(1, (-1, steps)).sum(1) for track in tracks]
        return [(track.label, notes.scaled(values)) for track, values in zip(tracks, sums, strict=True)]
    parts = notes.scaled(tracks[0].values).unflatten(1, (-1, steps)).unbind(1)
    names = panel.channels if len(parts) == len(panel.channels) > 1 else [""] * len(parts)
    return [((name,), part) for name, part in zip(names, parts, strict=True)]


def _page(
    panel: HorizonPanel, blocks: Sequence[tuple[tuple[str, ...], Tensor]], notes: Notes, samples: range
) -> Picture:
    canvas = notes.canvas()
    width = (notes.width - _LABELS) // (2 if notes.width == WIDTH else 1)
    top = TOP + (2 * PITCH if notes.captions else 0)
    pitch = (HEIGHT - top - PITCH - MARGIN) // len(blocks)
    size = (pitch - GAP, width - 3 * GAP)
    for k, (label, _) in enumerate(blocks):
        _steps(canvas, panel.steps, label, top + k * pitch, size[0])
    foot = top + pitch * len(blocks) - GAP
    write_right(canvas, "lag (s)" if panel.rate else "lag", _LABELS - GAP, foot + 3)
    for i, sample in enumerate(samples):
        x = _LABELS + i * width
        known = all(bool(weights[sample].isfinite().any()) for _, weights in blocks)
        maps = [] if known else [blocks[0][1][sample]]
        notes.title_in_two_lines(canvas, sample, maps, (x, TOP), size[1])
        for k, (_, weights) in enumerate(blocks):
            y = top + k * pitch
            canvas[y - 1 : y + size[0] + 1, x - 1 : x + size[1] + 1] = LINE
            canvas[y : y + size[0], x : x + size[1]] = _heat(weights[sample], size)
        time_axis(canvas, replace(panel, predicted=None), (x, foot), size[1], before=True)
    return canvas


def _heat(weights: Tensor, size: tuple[int, int]) -> Picture:
    """Weights ``(S, T)`` in [-1, 1] as a picture ``(h, w, 3)``, the first step at the top."""
    rows = np.stack([columns(row, size[1]) for row in weights])
    found: Picture = rows[np.arange(size[0]) * len(rows) // size[0]]
    return found


def _steps(canvas: Picture, steps: Sequence[int], label: Sequence[str], y: int, height: int) -> None:
    """The first and the last step beside a block, and what it shows between them."""
    middle = [*filter(None, label)] if height >= 4 * PITCH or not any(label) else []
    write_right(canvas, f"step {steps[0]}", _LABELS - GAP, y)
    write_right(canvas, f"step {steps[-1]}", _LABELS - GAP, y + height - PITCH + GAP)
    shown = middle or [*filter(None, label)][:1]
    start = y + (height - len(shown) * PITCH) // 2 + GAP // 2
    for i, words in enumerate(shown):
        write(canvas, words, MARGIN, start + i * PITCH, GRAY if i else BLACK, _LABELS - GAP - MARGIN)
