from __future__ import annotations

import pytest
import torch
from torch import Tensor

from given import Given, Linear
from lightning_explain import Probe, explain
from lightning_explain import metrics as q
from lightning_explain.metrics.localisation import pointing_game, relevance_rank

INSIDE = torch.tensor([[True, True], [False, False]])


def at(function: object, *images: list[list[float]], mask: Tensor = INSIDE, **options: int) -> list[float]:
    maps = torch.tensor(images)[:, None]
    return function(maps, mask.expand(len(maps), *mask.shape), **options).tolist()  # type: ignore[operator]


def test_relevance_rank_is_the_share_of_the_most_relevant_pixels_that_lies_inside() -> None:
    found = at(relevance_rank, [[9.0, 8], [1, 2]], [[9.0, 1], [8, 2]], [[1.0, 2], [8, 9]])
    assert found == [1.0, 0.5, 0.0]


def test_relevance_rank_shares_the_last_places_among_ties() -> None:
    # One place is the 9's; the other is shared by three pixels, of which one is inside.
    assert at(relevance_rank, [[9.0, 1], [1, 1]]) == pytest.approx([(1 + 1 / 3) / 2])
    # Both places are shared by three pixels, of which two are inside.
    assert at(relevance_rank, [[1.0, 1], [1, 0]]) == pytest.approx([2 * 2 / 3 / 2])


def test_the_pointing_game_is_won_where_the_largest_value_lies_inside() -> None:
    found = at(pointing_game, [[9.0, 8], [1, 2]], [[1.0, 2], [8, 9]], [[-1.0, -2], [-3, -4]])
    assert found == [1.0, 0.0, 1.0]
    assert at(pointing_game, [[9.0, 1], [9, 9]]) == pytest.approx([1 / 3]), "three pixels tie, one is inside"


def test_the_pointing_game_forgives_a_miss_by_the_tolerance() -> None:
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[0, 0] = True
    for place, distance in (((1, 1), 1), ((2, 0), 2), ((2, 3), 3)):
        image = torch.zeros(5, 5)
        image[place] = 1.0
        hits = [at(pointing_game, image.tolist(), mask=mask, tolerance=t)[0] for t in range(4)]
        assert hits == [float(t >= distance) for t in range(4)]


@pytest.mark.parametrize("function", [relevance_rank, pointing_game])
def test_constant_maps_empty_masks_and_nan_have_no_rank(function: object) -> None:
    nan = torch.nan
    assert torch.tensor(at(function, [[0.0, 0], [0, 0]], [[1.0, nan], [0, 0]])).isnan().all()
    assert torch.tensor(at(function, [[1.0, 2], [3, 4]], mask=~INSIDE & INSIDE)).isnan().all()


@pytest.mark.parametrize("function", [relevance_rank, pointing_game])
def test_a_mask_that_covers_everything_is_always_hit(function: object) -> None:
    assert at(function, [[1.0, 2], [3, 4]], mask=INSIDE | ~INSIDE) == [1.0]


def test_channels_are_summed_first() -> None:
    maps = torch.tensor([[[9.0, 1], [0, 5]], [[-9.0, 1], [0, 5]]])
    probe = Probe(torch.ones(3, 2, 2, 2), masks=INSIDE.expand(3, 2, 2))
    report = explain(Linear(torch.ones(2, 2, 2)), probe, {"it": Given(maps)}, [q.PointingGame(), q.RelevanceRank()])
    assert report.scores["pointing_game"]["it"].tolist() == [0, 0, 0]
    assert report.scores["relevance_rank"]["it"].tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("metric", [q.PointingGame(), q.RelevanceRank(), q.RelevanceMass()])
def test_localisation_without_masks_is_refused_before_anything_runs(metric: object) -> None:
    with pytest.raises(ValueError, match=r"needs masks; give Probe\(masks="):
        explain(Linear(torch.ones(3)), Probe(torch.ones(2, 3)), {"it": Given(torch.ones(3))}, [metric])


def test_masks_that_are_regions_of_no_input_are_refused() -> None:
    probe = Probe(torch.ones(2, 3), masks=INSIDE.expand(2, 2, 2))
    with pytest.raises(
        ValueError,
        match=r"'pointing_game' \(PointingGame\): it got Probe\(masks=...\) of shape \(2, 2, 2\); give masks of shape \(2, 3\)",
    ):
        explain(Linear(torch.ones(3)), probe, {"it": Given(torch.ones(3))}, [q.PointingGame()])


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"PointingGame\(tolerance=-1\); give a whole number of at least 0"):
        q.PointingGame(tolerance=-1)
