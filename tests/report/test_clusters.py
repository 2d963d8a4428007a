"""Which samples are explained alike."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from lightning_explain import Probe, Report, clusters, explain
from lightning_explain import methods as m
from lightning_explain import modalities as d

COUNT = 24
HALF = torch.arange(COUNT) % 2 == 0


def report(found: Tensor, **changes: Any) -> Report:
    ids = torch.arange(len(found)) + 100
    return replace(Report({"ig": found}, {}, {}, torch.zeros(len(found), 5), ids * 0 + 3, ids * 0 + 3, ids), **changes)


def split(*shape: int, axis: int) -> Tensor:
    """Random maps; those of every other sample lie in the first half of an axis, the others in the second."""
    maps = torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0))
    size = shape[axis - 1] // 2
    first, second = maps.split([size, shape[axis - 1] - size], axis)
    first[~HALF], second[HALF] = 0, 0
    return maps


def score(found: Any) -> float:
    return float(adjusted_rand_score(HALF, found.labels))


SHAPES = {
    "images": split(3, 40, 24, axis=3),
    "layers": split(1, 7, 7, axis=2),
    "series": split(2, 100, axis=2),
    "tables": split(10, axis=1),
    "volumes": split(1, 6, 6, 6, axis=4),
}


@pytest.mark.parametrize("maps", SHAPES.values(), ids=SHAPES.keys())
def test_samples_whose_maps_lie_apart_are_in_clusters_of_their_own(maps: Tensor) -> None:
    found = clusters(report(maps), "ig", target=3)
    assert (found.number, score(found)) == (2, 1.0)
    assert found.eigenvalues[:2].abs().amax() < 1e-9 < 0.1 < found.eigenvalues[2]
    assert found.samples() == [list(range(100, 124, 2)), list(range(101, 124, 2))]
    assert found.table() == (["sample", "cluster"], [[100 + i, i % 2] for i in range(COUNT)])


def test_the_sign_counts_and_the_size_of_a_map_does_not() -> None:
    maps = torch.rand(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * (1 - 2 * (~HALF).float()).view(
        -1, 1, 1, 1
    )
    assert score(clusters(report(maps), "ig")) == 1.0
    sizes = torch.logspace(-6, 6, COUNT).view(-1, 1, 1, 1)
    assert score(clusters(report(maps * sizes), "ig")) == 1.0


def test_results_depend_neither_on_random_states_nor_on_the_order_of_samples() -> None:
    maps = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = clusters(report(maps), "ig")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.labels, clusters(report(maps), "ig").labels)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    second = clusters(report(maps[order]), "ig")
    assert torch.allclose(first.eigenvalues, second.eigenvalues)
    assert second.number == first.number <= 8


def test_words_count_in_texts_wherever_they_stand() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(10, generator=generator) + 2 for _ in range(COUNT)])
    relevance = torch.where((ids == 2) & HALF[:, None] | (ids == 3) & ~HALF[:, None], 1.0, 0.01)
    padding = torch.zeros(COUNT, 1)
    ids, relevance = torch.cat([ids, padding.long()], 1), torch.cat([relevance, padding + 5.0], 1)
    probe = Probe(ids, modalities=d.Text(pad_id=0))
    assert score(clusters(report(relevance, probe=probe), "ig")) == 1.0


def test_maps_that_are_none_are_left_out_by_name() -> None:
    maps = split(1, 8, 8, axis=2)
    maps[4], maps[5, 0, 0, 0] = 0, torch.nan
    found = clusters(report(maps), "ig")
    assert found.left_out == (104, 105)
    assert len(found.labels) == len(found.ids) == COUNT - 2


def test_only_samples_of_the_target_are_compared() -> None:
    maps = split(1, 8, 8, axis=2)
    targets = torch.arange(COUNT) // 12
    found = clusters(report(maps, targets=targets), "ig", target=1)
    assert found.ids.tolist() == list(range(112, 124))


REFUSED: dict[str, tuple[dict[str, Any], tuple[Any, ...], str]] = {
    "no such method": ({}, ("igg",), "no map of 'igg': did you mean 'ig'"),
    "no such target": (
        {},
        ("ig", 2),
        r"Only 0 samples with target 2 \(targets: \[3\]\) have a map.* ProbeSelection\(count=64\)",
    ),
    "a word": ({}, ("ig", "three"), r"clusters\(target='three'\); give a whole number"),
    "no place": ({"maps": {"ig": ()}}, ("ig",), "has no place on the input"),
}


@pytest.mark.parametrize(("changes", "arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused(changes: dict[str, Any], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clusters(report(split(1, 8, 8, axis=2), **changes), *arguments)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-explain\[clusters\]'"):
        clusters(report(split(1, 8, 8, axis=2)), "ig")


@pytest.mark.parametrize("marked", [True, False])
def test_only_a_network_that_learned_the_mark_tells_marked_digits_apart(marked: bool) -> None:
    """``benchmarks/clusters.py`` in small: a linear network, 8 x 8 digits, two pixels that are always black as the mark."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels) % 2
    with_mark = x.clone()
    with_mark[torch.arange(len(x)), 0, 0, y * 7] = 1.0
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    nn.init.zeros_(model[1].weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(with_mark if marked else x), y).backward()
        optimizer.step()
    ids = (torch.tensor(labels) == 3).nonzero()[:64, 0]
    carries = torch.arange(64) % 2 == 0
    probe = Probe(torch.where(carries.view(-1, 1, 1, 1), with_mark[ids], x[ids]), y[ids], ids)
    found = clusters(explain(model, probe, {"ig": m.IntegratedGradients(n_steps=4)}, []), "ig", target=1)
    agreement = adjusted_rand_score(carries, found.labels)
    assert agreement >= 0.9 if marked else agreement <= 0.1
