"""Batches of graphs are refused with the fix; of several views one is explained; labels of several outputs are found by name or place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain.probes.binding import samples_of
from lightning_explain.probes.signature import signature_of

X, VIEW, AGE, SEX = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.rand(3), torch.tensor([0, 1, 0])


class One(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


class Two(nn.Module):
    def forward(self, image: Tensor, other: Any) -> Tensor:
        return image


def read(batch: Any, model: nn.Module | None = None) -> tuple[Any, list[str]]:
    said: list[str] = []
    return samples_of(batch, None, signature_of(model or One()), said.append), said


def graph(package: str) -> Any:
    """A class of another package, and one of the user's own below it."""
    base = type("Data", (), {"__module__": f"{package}.data.data"})
    return type("Mine", (base,), {"__module__": "mine"})()


@pytest.mark.parametrize("package", ["torch_geometric", "dgl"])
@pytest.mark.parametrize("batch", [lambda g: g, lambda g: (g, SEX), lambda g: {"graph": g, "label": SEX}])
def test_graphs_are_refused_with_what_to_give_instead(package: str, batch: Any) -> None:
    with pytest.raises(TypeError, match=r"holds a graph .*Mine.*torch_geometric\.explain.*batch_fn.*forward_fn"):
        read(batch(graph(package)))


def test_of_two_views_the_first_is_explained_and_the_other_named_once() -> None:
    probe, said = read(((X, VIEW), SEX))
    assert torch.equal(probe.inputs, X)
    assert torch.equal(probe.targets, SEX)
    assert probe.views
    assert not read((X, SEX))[0].views
    assert len(said) == 1
    assert "tensor 1 of the first part" in said[0]
    probe, said = read((X, VIEW, SEX))
    assert torch.equal(probe.inputs, X)
    assert "part 1" in said[0]
    assert len(read((X, VIEW, SEX), Two())[0].arguments) == 2


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        ((X, {"age": AGE, "sex": SEX[:, None]}), ["age", "sex"]),
        ((X, (AGE, SEX)), ["0", "1"]),
        ((X, AGE, SEX), ["0", "1"]),
        ({"image": X, "age": AGE, "sex": SEX}, ["age", "sex"]),
        ({"image": X, "labels": {"age": AGE, "sex": SEX}}, ["age", "sex"]),
    ],
)
def test_labels_of_several_outputs(batch: Any, names: list[str]) -> None:
    probe, said = read(batch)
    assert probe.targets is None
    assert list(probe.labels) == names
    assert torch.equal(probe.labels[names[0]], AGE)
    assert torch.equal(probe.labels[names[1]], SEX)
    assert not said


def test_a_mapping_that_the_model_takes_is_an_argument() -> None:
    probe, _ = read((X, {"age": AGE, "sex": SEX}), Two())
    assert not probe.labels
    assert probe.targets is None
