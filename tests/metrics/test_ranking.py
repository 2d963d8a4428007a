from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torchmetrics.functional import spearman_corrcoef

from lightning_explain.metrics._ranking import mean_over, relevance, spearman, spread
from lightning_explain.modalities import guess


def test_units_of_images_are_pixels_and_those_of_other_inputs_are_numbers() -> None:
    inputs = (torch.zeros(2, 3, 2, 2), torch.zeros(2, 5))
    found = (torch.arange(24.0).reshape(2, 3, 2, 2), torch.arange(10.0).reshape(2, 5))
    explained = SimpleNamespace(modalities=guess(inputs))
    metric_inputs: Any = SimpleNamespace(samples=SimpleNamespace(inputs=inputs), explained=explained)
    units = relevance({"it": found}, metric_inputs)["it"]
    assert units.shape == (2, 9)
    assert units[0].tolist() == [12, 15, 18, 21, 0, 1, 2, 3, 4]
    assert torch.equal(relevance({"it": (-found[0], -found[1])}, metric_inputs, absolute=True)["it"], units)
    image, table = spread(units, inputs, explained.modalities)
    assert torch.equal(image, found[0].sum(1, keepdim=True))
    assert torch.equal(table, found[1])


@pytest.mark.parametrize("levels", [1000, 5], ids=["hardly a tie", "many ties"])
def test_spearman_is_that_of_scipy_and_torchmetrics(levels: int) -> None:
    a, b = (torch.randn(6, 300).mul(levels / 4).round() for _ in range(2))
    b = b + a
    ours = spearman(a, b)
    assert ours.tolist() == pytest.approx([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)], abs=1e-12)
    assert torch.allclose(ours.float(), spearman_corrcoef(a.T.contiguous(), b.T.contiguous()), atol=1e-5)


def test_spearman_is_right_where_half_a_large_map_is_zero() -> None:
    a = torch.randn(1, 90_000).relu()
    a[:, :80_000] = 0
    b = torch.randn(1, 90_000) + 2 * a
    assert spearman(a, b).item() == pytest.approx(spearmanr(a[0], b[0]).statistic, abs=1e-12)


def test_spearman_is_undefined_for_constant_maps_and_for_maps_with_nan() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, torch.nan, 3.0], [3.0, 2.0, 1.0]])
    found = spearman(a, torch.tensor([[1.0, 5.0, 9.0]]).expand(4, 3))
    assert found[[0, 3]].tolist() == pytest.approx([1.0, -1.0])
    assert found[1:3].isnan().all()


def test_the_mean_over_draws_leaves_out_nan_and_knows_its_standard_error() -> None:
    nan = torch.nan
    mean, error = mean_over(torch.tensor([[1.0, 1.0, 1.0, nan], [3.0, 3.0, nan, nan], [5.0, nan, nan, nan]]))
    assert error is not None
    assert mean[:3].tolist() == [3, 2, 1]
    assert error[:2].tolist() == pytest.approx([2 / 3**0.5, 1.0])
    assert mean[3].isnan()
    assert error[2:].isnan().all()
    assert mean_over(torch.ones(1, 4))[1] is None
