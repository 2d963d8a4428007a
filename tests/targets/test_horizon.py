"""Each step of a forecast by itself: its map is that of the step alone, whatever the method, and its scores are, too."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor, nn

from lightning_explain import Probe, draw, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from lightning_explain import targets as t

N, T, H = 3, 7, 4
SERIES = torch.randn(N, 1, T, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.randn(H, T, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def linear(weights: Tensor = WEIGHTS) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(T, len(weights), bias=False, dtype=torch.float64))
    net[1].weight.data = weights  # type: ignore[union-attr]
    return net


def probe(labels: Tensor | None, **parts: Any) -> Probe:
    return Probe(SERIES, labels, modalities=d.TimeSeries(layout="NCT"), **parts)


def test_the_maps_of_a_linear_forecast_are_its_weights_times_the_series() -> None:
    labels, methods = torch.randn(N, H), {"ig": m.IntegratedGradients(n_steps=2), "weights": m.Saliency(abs=False)}
    metrics = {"infidelity": q.Infidelity(n_perturb_samples=4), "deletion": q.Deletion()}
    found = explain(linear(), probe(labels, ids=torch.tensor([5, 2, 9])), methods, metrics, t.Horizon("each"))
    assert found.samples.tolist() == [5] * H + [2] * H + [9] * H
    assert found.explained["step"].tolist() == list(range(H)) * N
    assert found.targets.tolist() == list(range(H)) * N
    assert found.ids.tolist() == [i * H + step for i in (5, 2, 9) for step in range(H)]
    torch.testing.assert_close(found.explained["true"], labels.double().flatten())
    torch.testing.assert_close(found.values, linear()(SERIES).flatten(), rtol=0, atol=1e-10)
    expected = WEIGHTS[None] * SERIES
    for name, by_step in (("ig", expected), ("weights", WEIGHTS.expand(N, H, T))):
        torch.testing.assert_close(found.attributions[name].reshape(N, H, T), by_step, rtol=0, atol=1e-10)  # type: ignore[union-attr]
        assert found.scores["infidelity"][name].max() < 1e-10, "the units are the numbers of the series"
    assert found.scores["deletion"]["ig"].isfinite().all()


@pytest.mark.parametrize("shape", [(H,), (H, 2)], ids=["steps", "steps and channels"])
def test_each_step_is_what_captum_finds_for_it_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(H * len(shape)))
    net = nn.Sequential(body, nn.Unflatten(1, shape)).double()
    net(SERIES)
    methods = {"ig": m.IntegratedGradients(n_steps=8), "gradient": m.Saliency(abs=False)}
    found = explain(net, probe(torch.zeros(N, *shape)), methods, [], t.Horizon("each"))
    for step in range(H):

        def forward(x: Tensor, step: int = step) -> Tensor:
            return net(x)[:, step].reshape(len(x), -1).sum(1)

        by_hand = {
            "ig": IntegratedGradients(forward).attribute(SERIES, n_steps=8),
            "gradient": Saliency(forward).attribute(SERIES.clone().requires_grad_(), abs=False),
        }
        for name, atol in (("ig", 1e-6), ("gradient", 1e-10)):  # Captum's step sizes are in float32.
            torch.testing.assert_close(found.attributions[name][step::H], by_hand[name], rtol=0, atol=atol)


def test_of_a_long_forecast_some_steps_are_explained_and_that_is_said() -> None:
    weights, labels = torch.randn(30, T, dtype=torch.float64), torch.randn(N, 30)
    with pytest.warns(
        UserWarning, match=r"explain: 3 of 30 steps are explained, evenly spaced; Horizon\('each', most=30"
    ):
        found = explain(linear(weights), probe(labels), {"g": m.Saliency(abs=False)}, [], t.Horizon("each", most=3))
    assert found.explained["step"].tolist() == [0, 14, 29] * N
    torch.testing.assert_close(found.attributions["g"][:3, 0], weights[[0, 14, 29]], rtol=0, atol=1e-10)  # type: ignore[index]


def test_unknown_or_whole_future_values_do_not_matter() -> None:
    explained = partial(explain, linear(), methods=["Saliency"], metrics=[], target=t.Horizon("each"))
    expected = explained(probe(torch.zeros(N, H))).attributions["saliency"]
    for labels in (torch.full((N, H), torch.nan), torch.full((N, H), -torch.inf), torch.ones(N, H, dtype=torch.long)):
        assert torch.equal(explained(probe(labels)).attributions["saliency"], expected)  # type: ignore[arg-type]


def test_what_belongs_to_each_sample_is_explained_by_the_sum_of_the_steps_and_said() -> None:
    own = {"own": m.FeatureAblation(feature_mask=torch.arange(T).expand(N, 1, T))}
    with pytest.warns(UserWarning, match=r"the steps of a sample are explained by their sum, as one map: 'own' has"):
        found = explain(linear(), probe(torch.zeros(N, H)), own, [], t.Horizon("each"))
    torch.testing.assert_close(found.attributions["own"][:, 0], WEIGHTS.sum(0) * SERIES[:, 0], rtol=0, atol=1e-10)  # type: ignore[index]
    assert "step" not in found.explained


@pytest.mark.parametrize("labels", [None, torch.zeros(N), torch.zeros(N, H + 1)])
def test_without_labels_of_each_step_it_is_refused(labels: Tensor | None) -> None:
    with pytest.raises(
        ValueError, match=r"Horizon\(step='each', most=24\) needs labels \(3, 4, ...\) for outputs \(3, 4\)"
    ):
        explain(linear(), probe(labels), ["Saliency"], [], t.Horizon("each"))


@pytest.mark.parametrize("labels", ["channel", "places"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_numbers_of_an_image_are_explained_by_their_sum(labels: str, channels: int) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 1)), torch.rand(5, 3, 6, 6)
    depth = 10 * x[:, :channels]
    if labels == "places" and channels == 1:
        depth = depth[:, 0]
    report = explain(net, Probe(x, depth), {"saliency": m.Saliency(abs=False)}, [q.Infidelity()])
    assert report.task == "regression"
    own = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(own).sum(), own)
    torch.testing.assert_close(report.attributions["saliency"], expected)
    torch.testing.assert_close(report.values, net(x).sum((1, 2, 3)).detach())
    torch.testing.assert_close(report.explained["true"], depth.double().flatten(1).sum(1))
    assert draw(report, "saliency").ndim == 3
    with pytest.raises(ValueError, match=r"outputs\.flatten\(1\)\.mean\(1\)" if channels == 1 else "mean of class 1"):
        explain(net, Probe(x, depth), ["Saliency"], [], target="predicted")
