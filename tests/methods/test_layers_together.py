"""Several layers on one path: embeddings of the same ids, categories beside numbers; as Captum, placed on what each looks up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr as captum
import pytest
import torch
from captum.attr._utils.input_layer_wrapper import ModelInputWrapper
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m

pytestmark = pytest.mark.filterwarnings("ignore:Multiple layers provided", "ignore:Input Tensor 0 did not already")
IDS = torch.tensor([[4, 7, 2, 9, 0], [3, 3, 8, 0, 0], [1, 5, 6, 2, 4]])
LABELS = torch.tensor([0, 1, 1])
NUMBERS = torch.linspace(-1, 1, 12).reshape(3, 4)


class Spelled(nn.Module):
    """Words, and two hashes of the characters of each, looked up by embeddings of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.characters = nn.Embedding(10, 4, padding_idx=0), nn.Embedding(7, 3)
        self.hashes: Tensor
        self.register_buffer("hashes", torch.randint(0, 7, (10, 2)))
        self.head = nn.Linear(7, 2)

    def forward(self, ids: Tensor) -> Tensor:
        found = torch.cat([self.words(ids), self.characters(self.hashes[ids]).sum(2)], 2)
        out: Tensor = self.head(torch.tanh(found).sum(1).tanh())
        return out


class Two(nn.Module):
    """Two inputs of ids of one shape, each with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Embedding(10, 4), nn.Embedding(10, 3), nn.Linear(7, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.a(first), self.b(second)], 2).sum(1).tanh())
        return out


class Mixed(nn.Module):
    """Categories, each looked up alone, beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.ModuleList(nn.Embedding(10, 3) for _ in range(2))
        self.net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        looked_up = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        out: Tensor = self.net(torch.cat([*looked_up, numbers], 1))
        return out


class OneTable(Mixed):
    """The same in one table of floating-point numbers, numbers first."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, 4:].long(), x[:, :4])


CASES: dict[str, tuple[type[nn.Module], tuple[Tensor, ...], tuple[Any, ...]]] = {
    "words and characters": (Spelled, (IDS,), ("words", "characters")),
    "two inputs": (Two, (IDS, IDS.flip(1)), ("a", "b")),
    "categories and numbers": (Mixed, (IDS[:, :2], NUMBERS), ("embeddings.0", "embeddings.1", 1)),
    "one table": (OneTable, (torch.cat([NUMBERS, IDS[:, :2].float()], 1),), ("embeddings.0", "embeddings.1", 0)),
}


def by_captum(net: nn.Module, inputs: tuple[Tensor, ...], layers: tuple[Any, ...], **arguments: Any) -> list[Tensor]:
    wrapped, names = ModelInputWrapper(net), list(ModelInputWrapper(net).input_maps)
    modules = [wrapped.input_maps[names[n]] if isinstance(n, int) else net.get_submodule(n) for n in layers]
    method, zeros = captum.LayerIntegratedGradients(wrapped, modules), tuple(map(torch.zeros_like, inputs))
    found: list[Tensor] = method.attribute(inputs, zeros, target=LABELS, **arguments)
    return [part[0] if isinstance(part, tuple) else part for part in found]


def token_maps(report: Report, name: str) -> tuple[Tensor, ...]:
    return report.maps[name]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_maps_are_captums_and_add_up_on_what_is_looked_up(case: str, double: bool) -> None:
    kind, inputs, layers = CASES[case]
    net, close = kind(), 1e-10 if double else 1e-5
    if double:
        net, inputs = net.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    methods = {"it": m.LayerIntegratedGradients(layers, n_steps=24, baselines=0)}
    methods["auto"] = m.LayerIntegratedGradients(layers, n_steps="auto", tolerance=1e-4, baselines=0)
    report = explain(net, Probe(inputs if len(inputs) > 1 else inputs[0], LABELS), methods, [])
    expected = by_captum(net, inputs, layers, n_steps=24)
    for ours, theirs in zip(report.attributions["it"], expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=close)
    with torch.no_grad():
        change = net(*inputs) - net(*map(torch.zeros_like, inputs))
    for name in methods:
        maps = token_maps(report, name)
        assert [part.shape for part in maps] == [x.shape for x in inputs]
        total = torch.stack([part.flatten(1).sum(1) for part in maps]).sum(0)
        torch.testing.assert_close(total.double(), change[torch.arange(3), LABELS].double(), rtol=0, atol=1e-3)


def test_the_default_explains_all_that_is_looked_up_and_the_numbers_beside() -> None:
    for kind, inputs, layers in CASES.values():
        report = explain(kind(), Probe(inputs if len(inputs) > 1 else inputs[0], LABELS), metrics=[])
        assert set(report.attributions) == {"ig", "ablation"}
        assert len(report.attributions["ig"]) == len(layers)
    only = explain(nn.Sequential(nn.Embedding(10, 2), nn.Flatten(), nn.Linear(10, 2)), Probe(IDS, LABELS), metrics=[])
    assert isinstance(only.attributions["ig"], Tensor), "one embedding is not a list"


def test_maps_lie_on_the_column_that_each_embedding_looks_up() -> None:
    net, table = OneTable(), CASES["one table"][1][0]
    nn.init.zeros_(net.embeddings[0].weight)
    report = explain(
        net, Probe(table, LABELS), {"it": m.LayerIntegratedGradients(("embeddings.0", "embeddings.1"))}, []
    )
    (found,) = token_maps(report, "it")
    assert found[:, :5].eq(0).all()
    assert found[:, 5].ne(0).all()


def table_of(ids: Tensor) -> Tensor:
    return torch.arange(10)[ids]


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda ids: ids,
    "hashed": lambda ids: (ids * 31 + 7) % 10,
    "shifted": lambda ids: (ids + torch.tensor([1, 0, 1, 0, 1])).clamp(max=9),
    "a table": table_of,
    "turned twice": lambda ids: ids.t().contiguous().t(),
    "stacked": lambda ids: torch.stack(ids.unbind(1), 1),
    "in bins": lambda ids: torch.bucketize(ids, torch.arange(3)),
    "joined": lambda ids: torch.cat([ids[:, :2], ids[:, 2:]], 1),
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "places": lambda ids: torch.arange(5).expand(len(ids), 5),
    "places behind padding": lambda ids: (ids != 0).long().cumsum(1),
    "sorted": lambda ids: ids.sort(1).values,
}


@pytest.mark.parametrize("way", [*SAME, *OTHER])
def test_only_what_is_made_of_the_ids_is_looked_up_from_them(way: str) -> None:
    class Derived(Spelled):
        def forward(self, ids: Tensor) -> Tensor:
            further = nn.functional.pad(self.characters({**SAME, **OTHER}[way](ids) % 7), (0, 1))
            out: Tensor = self.head(nn.functional.pad(self.words(ids) + further, (0, 3)).sum(1).tanh())
            return out

    found = explain(Derived(), Probe(IDS, LABELS), metrics=[]).attributions["ig"]
    assert isinstance(found, tuple) == (way in SAME)


REFUSED: list[tuple[Any, str]] = [
    (("embeddings.0", "net.0"), "the layer 'net.0' depends on 'embeddings.0', which moves together with it"),
    (("net.0", 1), "the layer 'net.0' depends on 1"),
    (("embeddings.0", 0), r"inputs\[0\] is not a floating-point input. Fix: name layers, or inputs among \[1\]"),
    (("embeddings.0", 2), r"inputs\[2\] is not a floating-point input"),
    (("embeddings.0", "embeddings.2"), "There is no layer 'embeddings.2'"),
]


@pytest.mark.parametrize(("layers", "reason"), REFUSED)
def test_layers_that_cannot_move_together_are_refused(layers: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        explain(Mixed(), Probe((IDS[:, :2], NUMBERS), LABELS), [m.LayerIntegratedGradients(layers)], [])


@pytest.mark.parametrize("wrong", [0, [], ["a", 1.0], ["a", None], ["a", -1]])
def test_what_is_no_list_of_layers_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"LayerIntegratedGradients\(layer=.*or a list of names, and of positions"):
        m.LayerIntegratedGradients(wrong)
    with pytest.raises(TypeError, match="for several layers, one method for each"):
        m.LayerConductance(["a", "b"])  # type: ignore[arg-type]
