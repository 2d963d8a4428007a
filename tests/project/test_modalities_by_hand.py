"""The benchmark of the default explanations: they are those that a few lines of Captum give, and it sees when they are not."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import modalities as bench

import _few_lines as by_hand
from _workload import samples_sent
from lightning_explain import Probe

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")


@pytest.mark.parametrize("name", ["LSTM", "MLP, BatchNorm", "siamese CNN"])
def test_default_explanations_are_those_by_hand(name: str) -> None:
    case = bench.CASES[name]
    model, batch, labels = bench.prepared(case, steps=5)
    maps, _ = bench.differences(case, model, batch, labels)
    exact, scores = bench.differences(case, *bench.doubled(model, batch), labels)

    assert "ig" in maps
    assert "infidelity/ig" in scores
    assert max(*maps.values(), *exact.values(), *scores.values()) <= bench.EQUAL


def test_an_explanation_sends_no_more_through_the_model_than_by_hand() -> None:
    case = bench.CASES["MLP, BatchNorm"]
    model, x, labels = bench.prepared(case, steps=0)
    draws = bench.drawn(bench.explain(model, Probe(x, labels)), case)
    ours = bench.monitored(model, Probe(x, labels))

    assert samples_sent(model, ours) <= samples_sent(model, lambda: case.by_hand(model, x, labels, draws))


def test_a_map_misses_what_its_sum_lacks() -> None:
    def f(x: Tensor) -> Tensor:
        return 2 * x.sum(1, keepdim=True)

    x = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    assert by_hand.incompleteness(f, x, 2 * x) == (0.0, 0.0)
    assert by_hand.incompleteness(f, x, torch.tensor([[2.0, 5.0], [2.0, 1.0]])) == (1.0, 0.25)


def test_a_region_is_frozen_at_the_samples_or_moves_with_them() -> None:
    x, classes = torch.tensor([[[[1.0, -1.0]]]]), torch.tensor([1])
    model = nn.Conv2d(1, 2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(model.weight[:1], 0.0)
    labels = torch.ones(1, 1, 2, dtype=torch.long)
    held, moving = by_hand.frozen(model, x, classes, labels), by_hand.moving(model, classes)
    assert held(x).item() == moving(x).item() == 1.0
    assert held(-x).item() == -1.0, "the pixel of the sample"
    assert moving(-x).item() == 1.0, "the other pixel"


def test_another_missing_word_and_a_lacking_map_are_seen() -> None:
    case = bench.CASES["LSTM"]
    wrong = replace(case, by_hand=partial(by_hand.text, embedding="embedding", pad=7))
    maps, scores = bench.differences(wrong, *bench.prepared(case, steps=0))
    assert min(*maps.values(), *scores.values()) > bench.EQUAL

    lacking = replace(case, by_hand=lambda *given: by_hand.Found({}, {"infidelity": {"saliency": given[2].float()}}))
    maps, scores = bench.differences(lacking, *bench.prepared(case, steps=0))
    assert {*maps.values(), *scores.values()} == {float("inf")}
