"""Where four photos lie side by side, Grad-CAM finds the one whose class is explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mosaics

pytestmark = pytest.mark.slow

# Every photo in two places, none of which it shares with another.
TWO = ((0, 1, 2, 3), (3, 2, 1, 0))


def test_a_mosaic_holds_each_photo_where_its_mask_says() -> None:
    tiles = torch.arange(4.0)[:, None, None, None].expand(4, 3, mosaics.TILE, mosaics.TILE)
    samples = mosaics.probe(tiles, torch.tensor([10, 11, 12, 13]), mosaics.ARRANGEMENTS)
    assert isinstance(samples.inputs, torch.Tensor)
    assert samples.masks is not None
    assert samples.targets is not None
    assert len(samples) == 96
    for image, mask, target in zip(samples.inputs, samples.masks, samples.targets, strict=True):
        assert mask.float().mean() == 0.25
        assert (image[:, mask] + 10 == target).all()


def test_with_trained_weights_most_of_the_map_lies_on_the_right_photo() -> None:
    network = mosaics.efficientnet_lite0()
    samples = mosaics.probe(mosaics.tiles(network), mosaics.classes(network), TWO)
    found = mosaics.masses(network, samples)
    assert found.mean(1).amin() > 0.6
    assert found.mean(0).amin() > 0.5


def test_with_random_weights_it_is_a_quarter() -> None:
    found = mosaics.control(networks=1)
    assert found.nanmean().item() == pytest.approx(0.25, abs=0.1)
