"""The reports of two or more trainings in; a moving picture of them, epoch by epoch, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lightning_explain.core.report import Picture, Report
from lightning_explain.render import letters
from lightning_explain.render.layout import BLACK, GAP, HEADING, MARGIN
from lightning_explain.render.stored import draw
from lightning_explain.store.files import replacing

METHOD = "ig"
"""The method that is shown."""
MILLISECONDS, AT_THE_END = 1100, 4000
"""How long a frame, and the last one, is shown."""
_DRAWING = {"max_rows": 3, "min_pixels": 112}
_PANELS = {"Image": (("original_image", "all"), ("heat_map", "all")), "Tabular": (("features", "all"),)}
"""By modality; of the others, all panels."""
_CURVES, _DPI = 150, 100
_NEARLY_WHITE = 248
# The color of each training, and how far its number stands above its point, so that two that agree can be read.
_STYLES = (("#c4500a", 6), ("#1f6fb2", -6))


@dataclass(frozen=True)
class Training:
    """One training, as the picture shows it.

    Args:
        reports: Of all its explanations, the oldest first.
        shares: Of each, the share of the map on the shortcut, in 0..1.
    """

    reports: Sequence[Report]
    shares: Sequence[float]


def write_epochs(trainings: Mapping[str, Training], unit: str, path: Path) -> Path:
    """Writes a GIF with one frame for each explanation: the maps of all trainings side by side, and the curves below them.

    Args:
        trainings: By name, as in "trained on marked data".
        unit: The shortcut in one word.
        path: Where to write.

    Returns:
        The path.
    """
    count = min(len(training.reports) for training in trainings.values())
    moments = [[_maps(training.reports[i]) for training in trainings.values()] for i in range(count)]
    height, width = (max(maps.shape[axis] for each in moments for maps in each) for axis in (0, 1))
    frames = []
    for i, each in enumerate(moments):
        heads = (f"trained on {name} data: {_when(training.reports[i])}" for name, training in trainings.items())
        blocks = [_block(head, maps, height, width) for head, maps in zip(heads, each, strict=True)]
        curves = _curves(trainings, unit, i, count, len(blocks) * (width + GAP))
        frames.append(Image.fromarray(np.concatenate([np.concatenate(blocks, axis=1), curves])))
    with replacing(path) as temporary:
        _save(frames, temporary)
    return path


def _save(frames: Sequence[Image.Image], path: Path) -> None:
    """All frames in the colors of the last one, which has all that occur; without dithering, which would flicker."""
    found = frames[-1].quantize(255)
    colors = np.array(found.getpalette()).reshape(-1, 3)
    colors[colors.min(1) >= _NEARLY_WHITE] = 255
    found.putpalette(colors.flatten().tolist())
    shown = [frame.quantize(palette=found, dither=Image.Dither.NONE) for frame in frames]
    times = [MILLISECONDS] * (len(frames) - 1) + [AT_THE_END]
    shown[0].save(path, format="GIF", save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=True)


def _maps(report: Report) -> Picture:
    """The maps of one explanation, as they are drawn from its files."""
    assert report.run is not None
    drawing = {**report.run.drawing, **_DRAWING}
    drawing["panels"] = _PANELS.get(report.run.modalities[0], drawing["panels"])
    return draw(replace(report, run=replace(report.run, drawing=drawing)), METHOD, layout="composite")


def _when(report: Report) -> str:
    return f"epoch {report.epoch}" if report.step else "before training"


def _block(head: str, maps: Picture, height: int, width: int) -> Picture:
    """A heading above the maps, which keep their place from frame to frame although captions are of different lengths."""
    missing = (height - maps.shape[0], width - maps.shape[1])
    below = np.pad(maps, ((0, missing[0]), (missing[1], GAP), (0, 0)), constant_values=255)
    above = np.full((letters.line_height(HEADING) + GAP, below.shape[1], 3), 255, dtype=np.uint8)
    letters.write(above, head, MARGIN, GAP, HEADING, BLACK)
    return np.concatenate([above, below])


def _curves(trainings: Mapping[str, Training], unit: str, i: int, count: int, width: int) -> Picture:
    """The share of each map on the shortcut, up to this frame."""
    figure = Figure(figsize=(width / _DPI, _CURVES / _DPI), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    for (name, training), (color, offset) in zip(trainings.items(), _STYLES, strict=True):
        axes.plot(range(i + 1), training.shares[: i + 1], color=color, marker="o", linewidth=2)
        here, words = (i, training.shares[i]), f"{name}: {training.shares[i]:.0%}"
        axes.annotate(words, here, (9, offset), color=color, fontsize=11, va="center", textcoords="offset points")
    labels = [_when(report) for report in next(iter(trainings.values())).reports[:count]]
    axes.set_title(f"how much of the map ({METHOD}) lies on the {unit}", loc="left", fontsize=11)
    axes.set(xlim=(-0.1, count - 0.4), ylim=(-0.25, 1.05), yticks=(0, 0.5, 1), yticklabels=("0%", "50%", "100%"))
    axes.set_xticks(range(count), labels)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(Image.open(drawn).convert("RGB"))
