"""Ids do not move: what their embeddings return does, by closed forms, the same in any chunk and order; padding stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Samples

IDS = torch.tensor([[4, 7, 2, 9, 0], [3, 3, 8, 0, 0], [1, 5, 6, 2, 4]])
TEXT = d.Text(pad_id=0)
DRAWS = 4


class Powers(nn.Module):
    """The sum over the tokens of a power of what one embedding or two return for each."""

    def __init__(self, power: int, second: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.word = nn.Embedding(10, 1, padding_idx=0).double()
        self.other, self.power = nn.Embedding(10, 1).double() if second else None, power

    def forward(self, ids: Tensor) -> Tensor:
        value = self.word(ids) if self.other is None else self.word(ids) + self.other(ids)
        return (value.pow(self.power) / self.power).sum((1, 2))


GRADIENT = m.LayerGradientXActivation("word", multiply_by_inputs=False)
IG = m.LayerIntegratedGradients("word", n_steps=8, baselines=0)


def score(model: nn.Module, tokens: Tensor, method: Any, **arguments: Any) -> Tensor:
    metric = q.SensitivityMax(n_perturb_samples=DRAWS, perturb_radius=arguments.pop("radius", None))
    probe = Probe(tokens, ids=arguments.pop("ids", None))
    return explain(model, probe, {"it": method}, {"s": metric}, modalities=TEXT, **arguments).scores["s"]["it"]


def noise(model: Powers, radius: float) -> Tensor:
    """The shifts ``(N, draws, T)``."""
    empty = torch.empty(3, 5, 1, dtype=torch.float64)
    samples = Samples((), (), (), torch.arange(3), torch.zeros(3, dtype=torch.long))
    draws = [KeyedDraws(0).uniform("sensitivity/word", samples, torch.full((3,), k), empty) for k in range(DRAWS)]
    return (2 * torch.stack(draws, 1)[..., 0] - 1) * radius * (IDS != 0)[:, None]


def deviation(model: Powers) -> float:
    return float(model.word.weight.detach()[IDS[IDS != 0]].std(correction=0))


def test_a_constant_map_does_not_change() -> None:
    assert score(Powers(1), IDS, GRADIENT).abs().max() < 1e-12


@pytest.mark.parametrize("radius", [None, 0.3, "0.1 std"])
def test_the_map_of_a_quadratic_model_changes_by_the_noise(radius: Any) -> None:
    model = Powers(2)
    size = {None: 0.02 * deviation(model), 0.3: 0.3, "0.1 std": 0.1 * deviation(model)}[radius]
    clean, moved = model.word(IDS)[..., 0].detach(), noise(model, size)
    expected = (moved.norm(dim=2) / clean.norm(dim=1, keepdim=True)).amax(1)
    torch.testing.assert_close(score(model, IDS, GRADIENT, radius=radius).double(), expected, rtol=1e-6, atol=0)


def test_a_path_begins_at_the_baseline_and_ends_at_the_noise() -> None:
    model = Powers(2)
    clean = model.word(IDS)[..., 0].detach()
    ends = clean[:, None] + noise(model, 0.3)
    change = ends.square() / 2 - clean.square()[:, None] / 2
    expected = (change.norm(dim=2) / (clean.square() / 2).norm(dim=1, keepdim=True)).amax(1)
    torch.testing.assert_close(score(model, IDS, IG, radius=0.3).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", [GRADIENT, IG])
def test_scores_are_the_same_in_any_chunk_and_order(method: Any) -> None:
    order = torch.tensor([2, 0, 1])
    model = Powers(3)
    alone = score(model, IDS[order], method, ids=order, max_examples_per_pass=1)
    torch.testing.assert_close(alone, score(model, IDS, method)[order], rtol=1e-6, atol=0)


def test_every_embedding_that_is_explained_moves_and_methods_that_read_none_are_left_out() -> None:
    model, metrics = Powers(2, second=True), {"s": q.SensitivityMax(n_perturb_samples=DRAWS)}
    methods: dict[str, Any] = {"both": m.LayerIntegratedGradients(["word", "other"]), "ablation": m.FeatureAblation()}
    with pytest.warns(
        UserWarning, match=r"The metric 's' leaves out 'ablation': it needs .*layers that look up the ids"
    ):
        both = explain(model, Probe(IDS), methods, metrics, modalities=TEXT).scores["s"]
    assert set(both) == {"both"}
    assert (both["both"] > 0).all()
    assert {"sensitivity_max"} <= set(explain(model, Probe(IDS)).scores), "so do defaults"


def test_columns_that_are_cast_to_ids_do_not_move() -> None:
    class Table(Powers):
        def forward(self, x: Tensor) -> Tensor:
            assert torch.equal(x[:, 0], x[:, 0].round()) or x[:, 0].unique().numel() > 5, "a category stays whole"
            return self.word(x[:, 0].long())[:, 0] + x[:, 1].square()

    table = torch.stack([torch.arange(1.0, 5.0), torch.linspace(-1, 1, 4)], 1)
    metrics = {"s": q.SensitivityMax(n_perturb_samples=DRAWS, perturb_radius=0.1)}
    report = explain(Table(1).float(), Probe(table), {"it": m.LayerGradientXActivation("word")}, metrics)
    assert (report.scores["s"]["it"] > 0).all()
