"""Measures whether Grad-CAM finds the right one of four photos.

    python benchmarks/mosaics.py

The 2 x 2 mosaics cover all 24 arrangements of four photos, so that every photo appears equally often in every place. In
each mosaic, the class of every photo is explained, and ``RelevanceMass`` measures the share of the positive map on that
photo's tile. A map that does not depend on the class scores 0.25 on average; networks with random weights are the
control, each on the four rotations of one arrangement.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from skimage import data
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from tutorial_cat import CLASS_NAMES, Network, efficientnet_lite0

TILE = 112
NETWORKS = 6
"""Random networks in the control."""

ARRANGEMENTS = tuple(itertools.permutations(range(4)))
"""For each mosaic, the photo in each place: upper left, upper right, lower left, lower right."""


def photos() -> dict[str, NDArray[np.uint8]]:
    return {
        "chelsea": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "motorcycle": data.stereo_motorcycle()[0],
    }


def tiles(network: Network) -> Tensor:
    """The four photos as samples ``(4, 3, TILE, TILE)``."""
    return torch.cat([network.samples(photo, (TILE, TILE)) for photo in photos().values()])


def classes(network: Network) -> Tensor:
    """The predicted class of each photo alone, ``(4,)``."""
    samples = torch.cat([network.samples(photo, (2 * TILE, 2 * TILE)) for photo in photos().values()])
    with torch.no_grad():
        found: Tensor = network.module(samples).argmax(1)
    return found


def mosaic(tiles: Tensor, arrangement: Sequence[int]) -> Tensor:
    """Four tiles as one image ``(3, 2 TILE, 2 TILE)``."""
    return torch.cat([torch.cat([tiles[i] for i in arrangement[k : k + 2]], 2) for k in (0, 2)], 1)


def quadrant(place: int) -> Tensor:
    """The mask of a tile, ``(2 TILE, 2 TILE)`` boolean."""
    mask = torch.zeros(2, TILE, 2, TILE, dtype=torch.bool)
    mask[place // 2, :, place % 2] = True
    return mask.reshape(2 * TILE, 2 * TILE)


def probe(tiles: Tensor, classes: Tensor, arrangements: Sequence[Sequence[int]]) -> Probe:
    """Four samples for each mosaic: one per photo, in the photos' order, whose class is the target."""
    places = [arrangement.index(photo) for arrangement in arrangements for photo in range(4)]
    return Probe(
        torch.stack([mosaic(tiles, a) for a in arrangements]).repeat_interleave(4, dim=0),
        targets=classes.repeat(len(arrangements)),
        masks=torch.stack([quadrant(place) for place in places]),
        class_names=CLASS_NAMES,
    )


def masses(network: Network, samples: Probe) -> Tensor:
    """Share of the positive Grad-CAM on the right tile, ``(mosaics, 4)``."""
    report = explain(network.module, samples, {"cam": m.LayerGradCam(layer=network.layer)}, [q.RelevanceMass()])
    return report.scores["relevance_mass"]["cam"].reshape(-1, 4)


def summary(found: dict[str, Tensor], seen: Tensor) -> Table:
    """One line per photo and one for all: mean and range over the mosaics. Maps without a positive part are left out."""
    table = Table("photo", "explained class", *found, title="Share of the positive Grad-CAM on the photo's tile")
    for i, name in enumerate(photos()):
        table.add_row(name, CLASS_NAMES[int(seen[i])], *(_spread(values[:, i]) for values in found.values()))
    table.add_row("all", "", *(_spread(values) for values in found.values()))
    return table


def _spread(values: Tensor) -> str:
    return f"{values.nanmean():.2f} ({np.nanmin(values):.2f} to {np.nanmax(values):.2f})"


def control(networks: int) -> Tensor:
    """The shares for networks with random weights and four arbitrary classes, ``(4 * networks, 4)``."""
    rotations = [tuple((place + turn) % 4 for place in range(4)) for turn in range(4)]
    found = []
    for seed in range(networks):
        torch.manual_seed(seed)
        network = efficientnet_lite0(trained=False)
        found.append(masses(network, probe(tiles(network), torch.arange(4) * 250, rotations)))
    return torch.cat(found)


def main() -> None:
    network = efficientnet_lite0()
    seen = classes(network)
    trained = masses(network, probe(tiles(network), seen, ARRANGEMENTS))
    Console().print(
        summary({"trained": trained, f"{NETWORKS} random networks, arbitrary classes": control(NETWORKS)}, seen)
    )
    least = trained.mean(1).amin()
    print(f"{len(ARRANGEMENTS)} mosaics; the least mean share of a mosaic with trained weights is {least:.2f}.")


if __name__ == "__main__":
    main()
