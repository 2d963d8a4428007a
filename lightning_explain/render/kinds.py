"""Panels that have pages of their own in: words, features, series; pages, pictures of single samples, and maps for later pages out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_max_pool1d, adaptive_max_pool3d, interpolate

from lightning_explain.core.panels import FramesPanel, Panel, VolumePanel
from lightning_explain.core.probe import flat
from lightning_explain.render import features, frames, horizon, series, slices, spectrograms, words
from lightning_explain.render.notes import Notes, Page, Track, scaled

Pages: TypeAlias = Callable[[Panel, Sequence[Track], Notes], list[Page]]

_LEVELS = 127
_MOST_TIMES = 512
_MOST_VOXELS = 24
"""The most along each axis of a volume or video that is kept for later pages."""


class Kind(NamedTuple):
    """How panels of a kind are drawn.

    Args:
        pages: The pages of one map.
        several: The pages of several maps of the same samples, of methods or epochs.
        cells: A picture of each sample alone, ``(N, h, w, 3)``.
        of_all: Whether the pages show all samples together, so that nothing is lost where single samples are drawn.
    """

    pages: Pages
    several: Pages
    cells: Callable[[Panel], NDArray[np.uint8]]
    of_all: bool = False


KINDS = {
    "words": Kind(words.pages, words.pages, words.cells),
    "series": Kind(series.pages, series.pages, series.cells),
    "frames": Kind(frames.pages, frames.pages, frames.cells),
    "spectrogram": Kind(spectrograms.pages, spectrograms.pages, spectrograms.cells),
    "slices": Kind(slices.pages, slices.pages, slices.cells),
    "horizon": Kind(horizon.pages, horizon.pages, horizon.cells),
    "beeswarm": Kind(features.beeswarm, features.importance, features.cells, of_all=True),
    "importance": Kind(features.importance, features.importance, features.cells, of_all=True),
    "features": Kind(features.features, features.importance, features.cells),
    "waterfall": Kind(features.waterfall, features.importance, features.cells),
}
"""The one place where kinds of panels with pages of their own are entered."""


def of_samples(panels: Sequence[Panel]) -> list[Panel]:
    """The panels that show samples one by one; the first one if there are none."""
    found = [panel for panel in panels if panel.kind not in KINDS or not KINDS[panel.kind].of_all]
    return found or list(panels[:1])


def remembered(panel: Panel) -> tuple[Tensor, Tensor]:
    """The map as ``Snapshot`` keeps it: int8 ``(N, a, b)``, times 127, and ``(N,)``, its largest absolute values."""
    weights = scaled(panel.values, "sample")
    known = weights.nan_to_num(0.0).float()
    known = known[:, None] if known.ndim == 2 else known
    if isinstance(panel, (VolumePanel, FramesPanel)):
        high, low = (adaptive_max_pool3d(sign * known, _kept(panel)) for sign in (1, -1))
        known = torch.where(high >= low, high, -low).flatten(2)
    if panel.kind in ("series", "horizon") and known.shape[2] > _MOST_TIMES:
        high, low = adaptive_max_pool1d(known, _MOST_TIMES), -adaptive_max_pool1d(-known, _MOST_TIMES)
        known = torch.where(high >= -low, high, low)
    largest = flat(panel.values.nan_to_num(0.0)).abs().amax(1).float()
    missing = flat(weights).isnan().all(1)
    return (known * _LEVELS).round().to(torch.int8), torch.where(missing, torch.nan, largest)


def recalled(weights: Tensor, largest: Tensor, panel: Panel) -> Tensor:
    """The reverse of :func:`remembered`: a map in the form of a panel's values, NaN where the map was not finite."""
    values = weights.float() / _LEVELS * largest[:, None, None]
    if isinstance(panel, (VolumePanel, FramesPanel)):
        whole = values.unflatten(2, _kept(panel)[1:])[:, None]
        return interpolate(whole, panel.values.shape[1:], mode="trilinear")[:, 0]
    return values if panel.values.ndim == 3 else values[:, 0]


def _kept(panel: Panel) -> tuple[int, ...]:
    """The size of what is kept of a volume or video."""
    return tuple(min(n, _MOST_VOXELS) for n in panel.values.shape[1:])
