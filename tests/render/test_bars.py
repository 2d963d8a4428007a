"""Bar charts of units."""

import numpy as np
import pytest
import torch

from lightning_explain.core.report import Image
from lightning_explain.render.bars import NEGATIVE, POSITIVE, STRONGEST, charts, profile


def length(panel: Image, color: tuple[int, int, int], axis: int) -> int:
    """The most pixels of a color in a row (axis 1) or a column (axis 0)."""
    return int((panel == color).all(-1).sum(axis).max())


def test_few_units_have_a_line_each_in_their_order() -> None:
    chart = charts((torch.tensor([[0.0, -2.0, 1.0], [3.0, 0.0, 0.0]]),))
    assert [c.shape for c in chart.columns] == [(2, *chart.size, 3)]
    first = chart.columns[0][0]
    red, green = (np.nonzero((first == color).all(-1))[0] for color in (NEGATIVE, POSITIVE))
    assert red.max() < green.min(), "the second unit stands above the third"
    assert length(first, NEGATIVE, 1) == pytest.approx(2 * length(first, POSITIVE, 1), abs=1)
    assert length(chart.columns[0][1], NEGATIVE, 1) == 0


def test_of_many_units_the_strongest_have_a_line_each() -> None:
    values = torch.zeros(1, 4096)
    values[0, 40:60] = torch.linspace(1, 2, 20)
    values[0, 4000] = -3
    chart = charts((values,))
    assert chart.headers == (("all 4,096 units",), (f"the {STRONGEST} strongest",))
    lines = (chart.columns[1][0] == POSITIVE).all(-1).any(1).astype(int)
    assert (np.diff(lines) == 1).sum() == STRONGEST - 1
    assert length(chart.columns[1][0], NEGATIVE, 1) > length(chart.columns[1][0], POSITIVE, 1)


def test_equal_charts_of_other_units_differ_by_their_names() -> None:
    first, second = torch.zeros(1, 20), torch.zeros(1, 20)
    first[0, 3], second[0, 14] = 1, 1
    assert not np.array_equal(charts((first,)).columns[1], charts((second,)).columns[1])


@pytest.mark.parametrize("units", [17, 290, 291, 4096, 151_296])
def test_every_unit_is_seen_where_it_stands_among_all(units: int) -> None:
    for unit, color in ((0, POSITIVE), (units // 2, NEGATIVE), (units - 1, POSITIVE)):
        values = torch.zeros(1, units)
        values[0, unit] = 0.5 if color == POSITIVE else -0.5
        (x,) = np.nonzero((profile(values, 100)[0] == color).all(-1).any(0))
        assert 0 < len(x) <= 300 // min(units, 292) + 1
        assert abs(x.mean() - (4 + 292 * (unit + 0.5) / units)) <= 1


def test_the_smallest_of_many_units_is_not_hidden_by_the_largest() -> None:
    values = torch.ones(1, 4096)
    values[0, 1::2] = -1
    panel = profile(values, 100)[0]
    assert length(panel, POSITIVE, 0) == length(panel, NEGATIVE, 0) > 40


@pytest.mark.parametrize("units", [1, 16, 17, 4096])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, 1e-320, 1e300])
def test_nothing_crashes_and_what_is_not_finite_is_told(units: int, value: float) -> None:
    values = torch.full((2, units), value, dtype=torch.float64)
    values[1] = 1
    chart = charts((values,))
    assert chart.finite == (value not in (torch.inf,) and value == value, True)
    bars = length(chart.columns[-1][0], POSITIVE, 1)
    assert (bars > 0) == (value in (1e-320, 1e300))
    named = (chart.columns[-1][0][:, :66] != 255).any()
    assert named == (chart.finite[0] and (value != 0 or units <= STRONGEST)), (
        "zeros and what is not finite are not strong"
    )
    assert length(chart.columns[-1][1], POSITIVE, 1) > 50


def test_several_tensors_of_any_shape_are_one_chart() -> None:
    chart = charts((torch.rand(2, 3, 4), torch.rand(2, 7), torch.rand(2)))
    assert chart.headers[0] == ("all 20 units",)
    assert {len(column) for column in chart.columns} == {2}
