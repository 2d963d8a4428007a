"""Where maps of layers lie on inputs that are no images: on the tokens of ids, on the times of series, on one of several inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_explain import Method, Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Arrangement
from lightning_explain.modalities import guess
from lightning_explain.modalities.placement import arrange, onto

IDS = torch.randint(1, 10, (5, 6), generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(4, 3, 20, generator=torch.Generator().manual_seed(0))
SCORED = [
    q.Concentration(),
    q.Agreement(),
    q.Drift(),
    q.Deletion(),
    q.Insertion(),
    q.Infidelity(),
    q.SensitivityMax(n_perturb_samples=2),
]


class Tokens(nn.Module):
    """A model that adds up a number for each token, so that its exact map is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(10, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.embedding(x).sum((1, 2))
        return found


class Convolutions(nn.Module):
    """Series in, as ``(N, C, T)`` or, with ``last``, as ``(N, T, C)``; the second layer halves their length."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 8, 3, stride=2, padding=1)
        self.head, self.last = nn.Linear(8, 2), last

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.transpose(1, 2) if self.last else x))
        found: Tensor = self.head(torch.relu(self.second(x)).mean(2))
        return found


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.rnn, self.head = nn.Linear(3, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(self.first(x))[0].mean(1))
        return found


class ImageAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(9, 2)

    def forward(self, table: Tensor, image: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([torch.relu(self.conv(image)).mean((2, 3)), table], 1))
        return found


def names(report: Any) -> dict[str, list[str]]:
    return {metric: sorted(by_method) for metric, by_method in report.scores.items()}


def test_a_map_of_an_embedding_lies_on_the_tokens_and_an_exact_one_predicts_every_removal() -> None:
    methods = {"embedded": m.LayerIntegratedGradients("embedding", n_steps=2), "ablated": m.FeatureAblation()}
    probe = Probe(IDS)
    earlier = explain(Tokens(), probe, methods, [])
    found = explain(Tokens(), probe, methods, SCORED[:-1], history=[earlier])
    placed = onto(found.maps["embedded"], (IDS,), guess((IDS,)))[0]
    table = Tokens().embedding.weight.sum(1)
    for value in (placed, found.attributions["ablated"]):
        assert torch.allclose(value.double(), table[IDS] - table[0], atol=1e-6)  # type: ignore[union-attr]
    assert all(scored == ["ablated", "embedded"] for scored in names(found).values()), names(found)
    for score in found.scores["infidelity"].values():
        assert score.max() <= 1e-14
    for name, score in found.scores["infidelity_relative"].items():
        assert score.max() <= 1e-12, name
    with pytest.warns(UserWarning, match="The metric 'sensitivity_max' leaves out 'ablated'"):
        moved = explain(Tokens(), probe, methods, [q.SensitivityMax()])
    assert moved.scores["sensitivity_max"].keys() == {"embedded"}


class Exact(Method):
    """A map like a gradient, which contains no difference of inputs: what each id adds to the output."""

    backward_rule = "none"

    def attribute(self, explained: Any, samples: Any) -> Tensor:
        table = explained.forward.model.embedding.weight.sum(1)
        return torch.as_tensor(table[samples.inputs[0].long()] - table[0])


@pytest.mark.parametrize("ids", [IDS, IDS.int(), IDS.to(torch.uint8)])
def test_between_ids_there_are_no_differences_to_multiply_maps_with(ids: Tensor) -> None:
    class Any8(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.long())

    found = explain(Any8(), Probe(ids), {"exact": Exact()}, [q.Infidelity(normalize=False)])
    assert found.scores["infidelity"]["exact"].max() <= 1e-14
    assert found.scores["infidelity_relative"]["exact"].max() <= 1e-12


@pytest.mark.parametrize(
    ("model", "x", "layers", "axis"),
    [
        (Convolutions(), SERIES, ("first", "second"), 2),
        (Convolutions(last=True), SERIES.transpose(1, 2), ("first", "second"), 1),
        (Recurrent(), SERIES.transpose(1, 2), ("first",), 1),
    ],
    ids=["times last", "channels last", "recurrent"],
)
def test_a_cam_of_a_series_lies_on_its_times(model: nn.Module, x: Tensor, layers: tuple[str, ...], axis: int) -> None:
    methods: dict[str, Any] = {layer: m.LayerGradCam(layer) for layer in layers}
    methods |= {"saliency": m.Saliency(abs=False), "layer ig": m.LayerIntegratedGradients(layers[0], n_steps=2)}
    earlier = explain(model, Probe(x), methods, [], target=0)
    found = explain(model, Probe(x), methods, SCORED, target=0, history=[earlier])
    assert all(scored == sorted(methods) for scored in names(found).values()), names(found)
    for layer in layers:
        (cam,), size = found.maps[layer], [4, 1, 1]
        size[axis] = 20
        placed = onto((cam,), (x,), guess((x,)))[0]
        assert list(placed.shape) == size
        assert torch.allclose(placed.flatten(), interpolate(cam, 20, mode="linear").flatten())
    assert found.attributions["layer ig"].shape[1:].numel() in (60, 80)  # type: ignore[union-attr]
    sums = found.attributions["layer ig"].sum(2 if axis == 1 and layers == ("first",) else 1)  # type: ignore[union-attr]
    assert torch.allclose(found.maps["layer ig"][0][:, 0], sums, atol=1e-6)


def test_a_cam_of_one_of_several_inputs_lies_on_that_one() -> None:
    table, image = torch.randn(4, 5), torch.randn(4, 3, 8, 8)
    methods = {"cam": m.LayerGradCam("conv"), "saliency": m.Saliency(abs=False)}
    probe = Probe((table, image))
    found = explain(
        ImageAndTable(),
        probe,
        methods,
        SCORED,
        target=0,
        history=[explain(ImageAndTable(), probe, methods, [], target=0)],
    )
    assert all(scored == ["cam", "saliency"] for scored in names(found).values()), names(found)
    zeros, cam = found.maps["cam"]
    assert not zeros.any()
    assert torch.equal(cam, found.attributions["cam"])  # type: ignore[arg-type]
    # On two images alike, it may lie on either.
    assert arrange((cam,), (image, image), guess((image, image))) is None


def test_what_has_no_places_lies_nowhere() -> None:
    table, layer = torch.randn(4, 5), nn.Linear(5, 5)
    assert arrange((torch.randn(4, 5),), (table,), guess((table,)), Arrangement(layer=layer)) is None
    assert arrange((torch.randn(4, 8, 1),), (SERIES,), guess((SERIES,)), Arrangement(layer=nn.Conv1d(1, 8, 1))) is None
    assert arrange((torch.randn(5, 7, 4),), (IDS,), guess((IDS,)), Arrangement(layer=layer)) is None
