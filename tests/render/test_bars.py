"""Bar charts of units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_explain.core.panels import MOST_BARS, FeaturesPanel, Panel
from lightning_explain.core.report import Picture
from lightning_explain.modalities import Plain
from lightning_explain.render import letters
from lightning_explain.render.bars import KINDS, NEGATIVE, POSITIVE, behind


def columns(*found: Tensor) -> dict[str, Picture]:
    """The columns of the charts of a map by their titles."""
    return {panel.title: KINDS[panel.kind](panel) for panel in Plain().panels(found, (), ())}


def strongest(*found: Tensor) -> Picture:
    """The column with the names and values."""
    return list(columns(*found).values())[-1]


def profile(values: Tensor) -> Picture:
    return KINDS["profile"](Panel("", "profile", values))


def length(panel: Picture, color: tuple[int, int, int], axis: int) -> int:
    """The most pixels of a color in a row (axis 1) or a column (axis 0)."""
    return int((panel == color).all(-1).sum(axis).max())


def test_few_units_have_a_line_each_in_their_order() -> None:
    ((title, chart),) = columns(torch.tensor([[0.0, -2.0, 1.0], [3.0, 0.0, 0.0]])).items()
    assert title == "all units"
    assert len(chart) == 2
    first = chart[0]
    red, green = (np.nonzero((first == color).all(-1))[0] for color in (NEGATIVE, POSITIVE))
    assert red.max() < green.min(), "the second unit stands above the third"
    assert length(first, NEGATIVE, 1) == pytest.approx(2 * length(first, POSITIVE, 1), abs=1)
    assert length(chart[1], NEGATIVE, 1) == 0


def test_of_many_units_the_strongest_have_a_line_each() -> None:
    values = torch.zeros(1, 4096)
    values[0, 40:60] = torch.linspace(1, 2, 20)
    values[0, 4000] = -3
    assert list(columns(values)) == ["all 4,096 units", f"the {MOST_BARS} strongest"]
    (chart,) = strongest(values)
    lines = (chart == POSITIVE).all(-1).any(1).astype(int)
    assert (np.diff(lines) == 1).sum() == MOST_BARS - 1
    assert length(chart, NEGATIVE, 1) > length(chart, POSITIVE, 1)


def test_equal_charts_of_other_units_differ_by_their_names() -> None:
    first, second = torch.zeros(1, 20), torch.zeros(1, 20)
    first[0, 3], second[0, 14] = 1, 1
    assert not np.array_equal(strongest(first), strongest(second))


@pytest.mark.parametrize("units", [17, 290, 291, 4096, 151_296])
def test_every_unit_is_seen_where_it_stands_among_all(units: int) -> None:
    for unit, color in ((0, POSITIVE), (units // 2, NEGATIVE), (units - 1, POSITIVE)):
        values = torch.zeros(1, units)
        values[0, unit] = 0.5 if color == POSITIVE else -0.5
        (x,) = np.nonzero((profile(values)[0] == color).all(-1).any(0))
        assert 0 < len(x) <= 300 // min(units, 292) + 1
        assert abs(x.mean() - (4 + 292 * (unit + 0.5) / units)) <= 1


def test_the_smallest_of_many_units_is_not_hidden_by_the_largest() -> None:
    values = torch.ones(1, 4096)
    values[0, 1::2] = -1
    panel = profile(values)[0]
    assert length(panel, POSITIVE, 0) == length(panel, NEGATIVE, 0) > 40


@pytest.mark.parametrize("units", [1, 16, 17, 4096])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf, 1e-320, 1e300])
def test_nothing_crashes_and_what_is_not_finite_is_told(units: int, value: float) -> None:
    values = torch.full((2, units), value, dtype=torch.float64)
    values[1] = 1
    chart = strongest(values)
    finite = value not in (torch.inf,) and value == value
    bars = length(chart[0], POSITIVE, 1)
    assert (bars > 0) == (value in (1e-320, 1e300))
    named = (chart[0][:, :66] != 255).any()
    assert named == (finite and (value != 0 or units <= MOST_BARS)), "zeros and what is not finite are not strong"
    assert length(chart[1], POSITIVE, 1) > 50


def test_several_tensors_of_any_shape_are_one_chart() -> None:
    found = columns(torch.rand(2, 3, 4), torch.rand(2, 7), torch.rand(2))
    assert next(iter(found)) == "all 20 units"
    assert {len(column) for column in found.values()} == {2}


@pytest.mark.parametrize("units", [1, 2, 17])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bars_behind_words_are_left_out_of_samples_that_are_not_finite(units: int, value: float) -> None:
    values = torch.full((2, units), 1.0)
    values[0, 0] = value
    panel = FeaturesPanel("", "importance", values, names=[f"column {i}" for i in range(units)])
    empty, drawn = behind(panel, (64, 200), 24)
    assert (empty == 255).all()
    assert (drawn != 255).any()


@pytest.mark.parametrize(("total", "widths"), [(None, (120, 60)), (12.0, (10, 5)), (0.0, (0, 0))])
def test_bars_behind_words_are_as_wide_as_their_share_of_the_whole_map(
    total: float | None, widths: tuple[int, int]
) -> None:
    panel = FeaturesPanel("", "importance", torch.tensor([[0.1, -0.6, 0.3]]), names=["a", "b", "c"])
    (chart,) = behind(panel, (64, 200), 24, None if total is None else torch.tensor([total]))
    line = letters.line_height(24)
    for i, (unit, color) in enumerate(zip(widths, [NEGATIVE, POSITIVE], strict=True)):
        edge = chart[i * line + 2].astype(int)
        assert (edge == (np.array(color) + 255) // 2).all(-1)[:unit].all()
        assert (edge[unit:] == 255).all()
