"""The benchmark of published tables: its data, its arithmetic, and that it can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import published

import _arma
import _decoys


@pytest.mark.parametrize("n", [1, 2, 5])
def test_areas_are_those_of_a_staircase_on_paper(n: int) -> None:
    truth = torch.arange(2 * n) >= n
    maps = torch.cat([torch.zeros(n), torch.arange(1, n + 1.0)])
    precision, recall = _arma.areas(maps[None], truth[None])
    # At the thresholds 0, 1/n, ..., 1: precision 1/2, 1, ..., 1; recall 1, 1, 1 - 1/n, ..., 1/n.
    assert precision == pytest.approx(1 - 1 / (4 * n), abs=1e-4)
    assert recall == pytest.approx(1 / n + (1 - 1 / n**2) / 2, abs=1e-4)


def test_each_map_is_scaled_by_itself() -> None:
    truth = torch.tensor([[False, True]])
    one = _arma.areas(torch.tensor([[0.0, 1.0]]), truth)
    both = _arma.areas(torch.tensor([[0.0, 1.0], [-300.0, 500.0]]), truth.expand(2, 2))
    assert both == pytest.approx(one, abs=1e-4)


def test_the_process_answers_an_impulse_as_its_recurrence_does() -> None:
    impulse = torch.zeros(1, 5, 1)
    impulse[0, 0] = 1
    expected = [1, -0.25, 0.25**2 - 0.1, -0.05 + 2 * 0.25 * 0.1 - 0.25**3]
    y = _arma.arma(impulse)[0, :, 0].tolist()
    assert y[:4] == pytest.approx(expected, abs=1e-6)
    assert 2 * y[4] == pytest.approx(-0.5 * y[3] - 0.2 * y[2] - 0.1 * y[1], abs=1e-6)


@pytest.mark.parametrize(("kind", "times", "features"), [("rare features", 25, 5), ("rare time", 5, 25)])
def test_what_matters_is_a_block_of_times_and_features(kind: str, times: int, features: int) -> None:
    truth = _arma.truth_of(kind, torch.Generator().manual_seed(0))
    assert (int(truth.any(1).sum()), int(truth.any(0).sum()), int(truth.sum())) == (times, features, 125)


def test_maps_of_the_white_box_are_their_closed_forms() -> None:
    series = _arma.arma(torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)))[0]
    truth = torch.tensor([True, True, False, False]).expand(6, 4)
    maps = published.maps_of(series, truth, seed=0)
    squares, at_mean = series.square() * truth, series.mean(0).square() * truth
    torch.testing.assert_close(maps["IntegratedGradients"], squares)
    torch.testing.assert_close(maps["Occlusion"], (squares - at_mean).abs())
    torch.testing.assert_close(maps["ShapleyValueSampling"], (squares - at_mean).abs())
    # The number of another time in its place: for each feature, the distance to one of the squares.
    distances = (squares[:, None] - squares).abs() - maps["FeaturePermutation"][:, None]
    assert distances.abs().amin(1).max() < 1e-5
    assert maps["FeaturePermutation"][:, :2].any(0).all()


def test_tumors_come_with_the_flower_of_their_class() -> None:
    columns, classes = _decoys.iris_cancer()
    assert columns.shape == (100, 34)
    assert classes.bincount().tolist() == [50, 50]
    # A virginica's petals are longer; malignant tumors are larger.
    petal, radius = columns[:, 2], columns[:, 4]
    assert petal[classes == 1].mean() > petal[classes == 0].mean() + 1
    assert radius[classes == 0].mean() > radius[classes == 1].mean() + 3
    alone = _decoys.without_flower(columns)
    assert not alone[:, :4].any()
    assert torch.equal(alone[:, 4:], columns[:, 4:])


def test_the_flower_is_counted_among_the_strongest() -> None:
    maps = torch.tensor([[9.0, -8, 0, 0, 7, 1], [0, 0, 0, 1, 2, 3]])
    assert published.flower_among_strongest(maps, count=3) == (2 + 1) / 2


def test_squares_lie_in_a_corner_and_say_the_digit() -> None:
    torch.manual_seed(0)
    shades = torch.arange(10).repeat(8)
    images = _decoys.with_squares(torch.zeros(80, 28, 28), shades)
    each, together = _decoys.corners()
    assert torch.equal(images.flatten(1).amax(1), 255.0 - 25 * shades)
    assert not images[:, ~together].any()
    squares = (images[:, None] > 0) & each
    assert squares.flatten(2).sum(2).sort().values.unique(dim=0).tolist() == [[0, 0, 0, 16]]
    assert squares.flatten(2).any(2).any(0).all()


def test_deformed_copies_are_other_images_of_the_same_digits() -> None:
    image = torch.zeros(1, 28, 28)
    image[0, 8:20, 12:16] = 255
    first, *copies = _decoys.deformed(image.expand(2, -1, -1), 20, torch.Generator().manual_seed(0))
    assert torch.equal(first, image[0])
    # The first copy of each comes before the second of any.
    assert torch.equal(copies[0], image[0])
    ink = torch.stack(copies[1:]).flatten(1)
    assert len(ink.unique(dim=0)) == 40
    assert (ink.sum(1) / image.sum() - 1).abs().max() < 0.5
    assert ink.max() < 255.01


def test_a_figure_out_of_its_tolerance_or_a_broken_order_fails() -> None:
    near, far = (published.Row("x", 1.0, ours, within=0.02) for ours in (0.99, 0.97))
    assert published.Outcome([near], {"holds": True}, "").passed
    assert not published.Outcome([near, far], {"holds": True}, "").passed
    assert not published.Outcome([near], {"holds": False}, "").passed
    assert not published.Row("x", 1.0, float("nan"), within=0.02).passed
