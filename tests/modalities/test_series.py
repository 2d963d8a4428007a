"""Series: units, windows, smoothing and panels in both layouts; maps as Captum computes them by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.modalities import TimeSeries

torch.manual_seed(0)
NCT = torch.randn(4, 3, 40)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.rnn, self.head = nn.Linear(3, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.rnn(self.project(x))[0].amax(1))
        return found


class Additive(nn.Module):
    """The sum of a function of each number."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([(x.sin() * 2).flatten(1).sum(1), -x.flatten(1).sum(1)], 1)


def convolutional() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


def both(x: Tensor) -> list[tuple[TimeSeries, Tensor]]:
    return [(TimeSeries(layout="NCT"), x), (TimeSeries(layout="NTC"), x.transpose(1, 2))]


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_maps_are_those_of_captum_by_hand() -> None:
    net, labels = convolutional().eval(), torch.tensor([0, 1, 1, 0])
    methods: dict[str, Any] = {
        "saliency": m.Saliency(abs=False),
        "ig": m.IntegratedGradients(n_steps=20),
        "deeplift": m.DeepLift(),
        "ablation": m.FeatureAblation(),
        "cam": m.LayerGradCam("3"),
    }
    found = explain(net, Probe(NCT, labels), methods, []).attributions
    by_hand = {
        "saliency": captum.Saliency(net).attribute(NCT.clone().requires_grad_(), target=labels, abs=False),
        "ig": captum.IntegratedGradients(net).attribute(NCT, target=labels, n_steps=20),
        "deeplift": captum.DeepLift(net).attribute(NCT, target=labels),
        "ablation": captum.FeatureAblation(net).attribute(NCT, target=labels),
        "cam": captum.LayerGradCam(net, net[3]).attribute(NCT, target=labels),  # type: ignore[index]
    }
    for name, value in by_hand.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), name  # type: ignore[operator]


def test_the_two_layouts_give_the_same_numbers() -> None:
    class Turned(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x.transpose(1, 2))
            return found

    net, labels = convolutional().double().eval(), torch.tensor([0, 1, 1, 0])
    methods: dict[str, Any] = {"ig": m.IntegratedGradients(n_steps=8), "cam": m.LayerGradCam()}
    metrics: list[Any] = [q.Infidelity("square", n_perturb_samples=16, baselines="blur"), q.Concentration()]
    first = explain(net, Probe(NCT.double(), labels), methods, metrics)
    second = explain(Turned(net), Probe(NCT.double().transpose(1, 2).contiguous(), labels), methods, metrics)
    for score, values in first.scores.items():
        for name, value in values.items():
            torch.testing.assert_close(value, second.scores[score][name], rtol=1e-9, atol=1e-12)


def test_an_exact_map_of_an_additive_model_predicts_every_window() -> None:
    probe = Probe(NCT.double(), torch.zeros(4, dtype=torch.long))
    for kind in ("remove", "square"):
        report = explain(Additive(), probe, {"it": m.FeatureAblation()}, {"infidelity": q.Infidelity(kind)})
        assert report.scores["infidelity_relative"]["it"].max() < 1e-10


@pytest.mark.parametrize("size", [None, 7])
def test_a_window_lies_in_one_channel(size: int | None) -> None:
    for series, x in both(NCT):
        window = series.region(x, size, lambda like: torch.rand(like.shape, generator=torch.Generator().manual_seed(2)))
        in_order = window if series.layout == "NCT" else window.transpose(1, 2)
        assert in_order.sum((1, 2)).tolist() == [size or 10] * 4
        assert (in_order.amax(2).sum(1) == 1).all()
        assert ((in_order.diff(dim=2) == 1).sum((1, 2)) <= 1).all()
    with pytest.raises(ValueError, match="no longer than the series, 40 times"):
        TimeSeries(layout="NCT").region(NCT, 41, torch.rand_like)


def test_smoothing_is_along_time_and_keeps_what_is_constant() -> None:
    for series, x in both(NCT):
        smooth = series.blurred(x)
        torch.testing.assert_close(smooth, both(TimeSeries(layout="NCT").blurred(NCT))[series.layout == "NTC"][1])
        assert smooth.std() < 0.6 * x.std()
        torch.testing.assert_close(series.blurred(torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1)], ids=["average", "maximum"])
def test_channels_behind_a_pool_over_all_times_are_no_times(pool: nn.Module) -> None:
    net = nn.Sequential(nn.Conv1d(3, 16, 5, padding=2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(16, 2)).eval()
    report = explain(net, Probe(NCT, torch.tensor([0, 1, 1, 0])), {"cam": m.LayerGradCam()}, [])
    by_hand = captum.LayerGradCam(net, net[1]).attribute(NCT, target=torch.tensor([0, 1, 1, 0]))
    found = report.attributions["cam"]
    assert found.shape == (4, 1, 40)  # type: ignore[union-attr]
    torch.testing.assert_close(found, by_hand)


def test_a_layer_of_a_recurrent_network_lies_on_its_times() -> None:
    report = explain(
        Recurrent(),
        Probe(NCT.transpose(1, 2).contiguous()),
        {"at": m.LayerGradientXActivation("project")},
        ["Infidelity"],
    )
    assert report.scores["infidelity_relative"]["at"].isfinite().all()
    assert report.probe is not None
    assert report.probe.modalities[0].layout == "NTC"
