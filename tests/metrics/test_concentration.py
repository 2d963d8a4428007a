from __future__ import annotations

import math

import pytest
import torch

from given import Given, Linear
from lightning_explain import Probe, explain
from lightning_explain import metrics as q
from lightning_explain.metrics.concentration import entropy, gini


def test_gini_of_known_maps() -> None:
    maps = torch.tensor([[1.0, 1, 1, 1], [0, 0, 7, 0], [1, 2, 3, 4], [-4, 1, -2, 3]])
    # 1 2 3 4: the weights are -3 -1 1 3.
    assert gini(maps).tolist() == pytest.approx([0, 0.75, (-3 - 2 + 3 + 12) / (4 * 10), 0.25])


def test_gini_is_the_mean_difference_of_two_units_over_twice_their_mean() -> None:
    values = torch.rand(3, 50, dtype=torch.float64)
    differences = (values[:, :, None] - values[:, None, :]).abs().mean((1, 2))
    assert torch.allclose(gini(values), differences / (2 * values.mean(1)))


def test_entropy_of_known_maps() -> None:
    maps = torch.tensor([[1.0, -1, 1, 1], [0, 0, 7, 0], [0, 2, 0, -2]])
    assert entropy(maps).tolist() == pytest.approx([1, 0, math.log(2) / math.log(4)])


def test_both_are_undefined_for_a_map_of_zeros_and_for_nan() -> None:
    maps = torch.tensor([[0.0, 0, 0], [1, torch.nan, 2]])
    assert gini(maps).isnan().all()
    assert entropy(maps).isnan().all()


def test_concentration_sums_channels_and_does_not_depend_on_the_scale() -> None:
    image = torch.tensor([[[1.0, 2], [3, 4]], [[1.0, 2], [3, 4]]])
    maps = {"it": Given(image), "scaled": Given(-7 * image), "flat": Given(torch.ones(2, 2, 2))}
    report = explain(Linear(torch.ones(2, 2, 2)), Probe(torch.ones(3, 2, 2, 2)), maps, [q.Concentration()])
    for name, value in {"it": 0.25, "scaled": 0.25, "flat": 0.0}.items():
        assert report.scores["concentration"][name].tolist() == pytest.approx([value] * 3)
    assert report.scores["concentration_entropy"]["flat"].tolist() == pytest.approx([1.0] * 3)
    assert report.standard_errors == {}
    assert (report.passes.forward, report.passes.backward) == (3, 0), "it costs no pass"
