"""Scores are in units that are there: padding and special tokens change none, and are neither ranked nor removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import modalities as d

IDS = torch.tensor([[1, 5, 3, 8, 6, 2], [1, 7, 3, 4, 9, 2]])
MASKS = (IDS == 3) | (IDS == 8)
TEXT = d.Text(pad_id=0, special_ids=(1, 2))
METRICS: dict[str, Any] = {
    "concentration": q.Concentration(),
    "agreement": q.Agreement(),
    "deletion": q.Deletion(n_steps=3),
    "insertion": q.Insertion(),
    "drift": q.Drift(),
    "mass": q.RelevanceMass(),
    "rank": q.RelevanceRank(),
    "pointing": q.PointingGame(),
    "randomization": q.Randomization(n_layers=2, n_draws=2),
    "infidelity": q.Infidelity(),
    "completeness": q.Completeness(),
}


class Bag(nn.Module):
    """The sum of what its tokens weigh, bent or as it is."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(10, 4, padding_idx=0).double(), nn.Linear(4, 2).double()
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        each = self.embedding(x) * (x != 0)[..., None]
        found: Tensor = self.head((each.tanh() if self.bent else each).sum(1))
        return found.tanh() if self.bent else found


def padded(count: int) -> Probe:
    return Probe(pad(IDS, (0, count)), torch.tensor([0, 1]), masks=pad(MASKS, (0, count)), modalities=TEXT)


def test_padding_changes_no_score() -> None:
    model, methods = (
        Bag(bent=True),
        {"ig": m.LayerIntegratedGradients("embedding", n_steps=8), "ablation": m.FeatureAblation()},
    )
    scores = []
    for count in (0, 3, 10):
        earlier = explain(Bag(bent=False), padded(count), methods, [])
        scores.append(explain(model, padded(count), methods, METRICS, history=[earlier]).scores)
    assert len(scores[0]) > len(METRICS)
    for score, by_method in scores[0].items():
        for name, value in by_method.items():
            assert value.isfinite().any(), (score, name)
            for other in scores[1:]:
                assert torch.allclose(value, other[score][name], atol=1e-6, equal_nan=True), (score, name)


def test_the_exact_map_of_a_bag_of_words_has_the_analytic_scores() -> None:
    model = Bag(bent=False)
    report = explain(
        model, padded(3), {"it": m.FeatureAblation()}, [q.Infidelity(n_perturb_samples=16), q.Deletion(n_steps=9)]
    )
    weights = (model.embedding.weight @ model.head.weight.T).detach()
    present = TEXT.present(padded(3).inputs)  # type: ignore[arg-type]
    assert present is not None
    exact = [weights[ids[there], label] for ids, there, label in zip(padded(3).inputs, present, (0, 1), strict=True)]
    found = report.attributions["it"]
    assert isinstance(found, Tensor)
    for i, values in enumerate(exact):
        assert torch.allclose(found[i][present[i]].double(), values, atol=1e-6)
        assert not found[i][~present[i]].any()
        curve = torch.cat([values.new_zeros(1), values.sort(descending=True).values.cumsum(0)])
        area = torch.trapezoid(values.sum() - curve, dx=1 / len(values)) / values.sum().abs()
        assert report.scores["deletion"]["it"][i].item() == pytest.approx(area.item(), abs=1e-6)
    assert report.scores["infidelity_relative"]["it"].abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("inputs", "masks"),
    [
        (torch.tensor([[1.0, 5.0, 2.0]]), torch.tensor([[False, True, False]])),
        (
            torch.tensor([[[1.0, 0.0, 2.0], [5.0, 0.0, 0.0]]]),
            torch.tensor([[[False, False, False], [True, False, False]]]),
        ),
        (torch.tensor([[[1.0, 0.0, 2.0], [5.0, 0.0, 0.0]]]), torch.tensor([[True, False, False]])),
    ],
    ids=["a table", "a series", "times of a series"],
)
def test_masks_of_tables_and_series_are_regions_of_their_units(inputs: Tensor, masks: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 1, bias=False))
    nn.init.ones_(model[1].weight)
    report = explain(model, Probe(inputs, masks=masks), ["InputXGradient"], [q.RelevanceMass(), q.PointingGame()])
    inside = (inputs * (masks if masks.ndim == inputs.ndim else masks[:, None])).sum()
    assert report.scores["relevance_mass"]["input_x_gradient"].item() == pytest.approx((inside / inputs.sum()).item())
    assert report.scores["pointing_game"]["input_x_gradient"].item() == 1
    with pytest.raises(ValueError, match="counts pixels of images, and there is none"):
        explain(model, Probe(inputs, masks=masks), ["InputXGradient"], [q.PointingGame(tolerance=1)])
