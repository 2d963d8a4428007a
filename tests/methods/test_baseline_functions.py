"""Baselines made by a function, where Captum takes one, are the set that it returns, and the same in every explanation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum import attr as ca
from torch import Tensor, nn

from comparing import distance
from given import doctor
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method
from lightning_explain.explainer.explainer import Explainer

X, Y = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 0, 1])
TWO = (X[:, :2], X[:, 2:])


class Net(nn.Module):
    """A network of one or of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.act, self.head = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, *x: Tensor) -> Tensor:
        return self.head(self.act(self.hidden(torch.cat(x, 1))))


def nothing() -> Tensor:
    return torch.linspace(-1, 1, 12).view(2, 6)


def means(x: Tensor) -> Tensor:
    return torch.cat([x.mean(0, keepdim=True), x[:2] / 2])


def halves(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return inputs[0][:3] / 2, inputs[1][:3] - 1


def drawn(x: Tensor) -> Tensor:
    return torch.randn(3, x.shape[1])


@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning")
@pytest.mark.parametrize(("inputs", "function"), [(X, nothing), (X, means), (TWO, halves)])
def test_a_function_gives_the_maps_of_captum(inputs: Any, function: Any) -> None:
    model = Net().eval()
    methods = {"input": m.DeepLiftShap(function), "layer": m.LayerDeepLiftShap("hidden", function)}
    found = explain(model, Probe(inputs, Y), methods, []).attributions
    theirs = {
        "input": ca.DeepLiftShap(model).attribute(inputs, function, target=Y),
        # There, Captum calls it with a tuple of one.
        "layer": ca.LayerDeepLiftShap(model, model.hidden).attribute(
            inputs, (lambda x: function(*x)) if function is means else function, target=Y
        ),
    }
    for name, expected in theirs.items():
        pairs = zip(found[name], expected, strict=True) if isinstance(expected, tuple) else [(found[name], expected)]
        assert max(distance(own, other) for own, other in pairs) <= 1e-5


def test_gradient_shap_with_a_function_is_captums() -> None:
    """Of a linear model, every draw from one baseline gives the same map."""
    model = nn.Linear(6, 3)
    ours = explain(model, Probe(X, Y), {"it": m.GradientShap(baselines=lambda x: x.mean(0, keepdim=True))}, [])
    theirs = ca.GradientShap(model).attribute(X, lambda x: x.mean(0, keepdim=True), target=Y)
    assert distance(ours.attributions["it"], theirs) <= 1e-5


SETS: dict[str, tuple[Any, Any]] = {
    "GradientShap": (lambda b: m.GradientShap(baselines=b), drawn),
    "LayerGradientShap": (lambda b: m.LayerGradientShap("hidden", baselines=b), means),
    "NeuronGradientShap": (lambda b: m.NeuronGradientShap("hidden", 1, baselines=b), nothing),
    "NeuronDeepLiftShap": (lambda b: m.NeuronDeepLiftShap("hidden", 1, baselines=b), drawn),
    "NoiseTunnel": (lambda b: m.NoiseTunnel(m.GradientShap(baselines=b), nt_samples=2), means),
    "a union": (lambda b: m.GradientShap(baselines=("zero", b)), means),
}


@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning")
@pytest.mark.parametrize(("method", "function"), SETS.values(), ids=SETS)
def test_a_function_is_the_set_that_it_returns_in_every_chunk_and_explanation(method: Any, function: Any) -> None:
    calls: list[Any] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x.clone())
        made = function(x) if function is not nothing else function()
        x.zero_()  # It is a copy.
        return made

    model, before = Net(), torch.get_rng_state()
    first = explain(model, Probe(X, Y), {"it": method(counted)}, [], seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert calls
    assert all(torch.equal(call, X) for call in calls)
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = Probe(X[order], Y[order], ids=order)
    again = explain(model, shuffled, {"it": method(counted)}, [], seed=4, max_examples_per_pass=2)
    torch.testing.assert_close(again.attributions["it"], first.attributions["it"][order], rtol=1e-5, atol=1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        made = nothing() if function is nothing else function(X)
    plain = explain(model, Probe(X, Y), {"it": method(made)}, [], seed=4)
    assert torch.equal(plain.attributions["it"], first.attributions["it"])


def test_a_function_is_called_once_in_an_explanation() -> None:
    """One that counts its calls gives all samples the same set nevertheless."""
    calls = []

    def counting(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.full((1, 6), float(len(calls)))

    model = nn.Linear(6, 3)
    found = Explainer({"it": m.GradientShap(baselines=counting)}, {}, limit=1).explain(model, Probe(X, Y))
    assert calls == [5]
    torch.testing.assert_close(found.attributions["it"], (X - 1) * model.weight[Y].detach())


WRONG: dict[str, tuple[Any, str]] = {
    "fails": (lambda x: x["image"], "the function of the baselines failed: IndexError"),
    "two arguments": (lambda x, y: x, "the function of the baselines failed: TypeError"),
    "no set": (lambda: [{}], "the function of the baselines failed: TypeError: the function.baselines="),
    "another function": (lambda: nothing, "the function of the baselines failed: TypeError: the function.baselines="),
    "another shape": (lambda x: x[:, :3], r"baselines has shape \(5, 3\); give \(K, \*\(6,\)\)"),
}


@pytest.mark.parametrize(("function", "message"), WRONG.values(), ids=WRONG)
def test_a_function_that_does_not_fit_refuses_its_method_alone(function: Any, message: str) -> None:
    methods: dict[str, Method] = {"shap": m.GradientShap(baselines=function), "saliency": m.Saliency()}
    refused, fine = doctor(Net(), methods, Probe(X, Y))
    assert refused.state == "refused"
    assert fine.state == "fine"
    with pytest.raises(ValueError, match=message):
        explain(Net(), Probe(X, Y), methods, [])


@pytest.mark.parametrize("method", [m.IntegratedGradients, m.DeepLift, m.FeatureAblation, m.Lime])
def test_methods_that_compare_with_one_point_take_no_function(method: type[Method]) -> None:
    with pytest.raises(TypeError, match=r"baselines=.*; give None, a number, a tensor, one of"):
        method(baselines=nothing)  # type: ignore[call-arg]
