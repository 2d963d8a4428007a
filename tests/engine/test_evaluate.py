"""One pass: what a layer says is read as it was said, and every rule goes back as Captum's does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_reference import layers, primary
from comparing import by_hand, distance
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.explainer.explainer import Explainer
from networks import DigitNet, OutOfPlace, Residual, Separate, samples, trained

# -- rules ---------------------------------------------------------------------------------------------------------


def block(relu: Callable[[Tensor], Tensor]) -> type[Residual]:
    """The block with its activations written in another way."""

    class Written(Residual):
        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
            return relu(out + x)

    return Written


class Reused(Residual):
    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu1(out + x)


WAYS: dict[str, type[Residual]] = {
    "module in place": Residual,
    "a module twice": Reused,
    "F.relu": block(F.relu),
    "torch.relu": block(torch.relu),
    "Tensor.relu": block(Tensor.relu),
    "in place": block(lambda x: F.relu(x, inplace=True)),
    "Tensor.relu_": block(Tensor.relu_),
    "clamp": block(lambda x: x.clamp(min=0)),
    "clamp in place": block(lambda x: x.clamp_(min=0.0)),
    "clamp_min": block(lambda x: x.clamp_min(0)),
    "threshold": block(lambda x: F.threshold(x, 0, 0)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [3, 64])
@pytest.mark.parametrize("way", WAYS)
def test_guided_gradients_equal_captum_on_a_copy_repaired_by_hand_however_a_relu_is_written(
    way: str, limit: int
) -> None:
    x, y = samples()
    methods = {"guided": m.GuidedBackprop(), "deconvolution": m.Deconvolution(), "plain": m.Saliency(abs=False)}
    found = Explainer(methods, {}, limit=limit).explain(trained(WAYS[way]), Probe(x, y)).attributions
    repaired = by_hand(Separate)
    assert distance(found["guided"], primary.guided_backprop(repaired, x, y)) <= 1e-5
    assert distance(found["deconvolution"], primary.deconvolution(repaired, x, y)) <= 1e-5
    assert distance(found["plain"], primary.saliency(by_hand(), x, y)) <= 1e-5


@pytest.mark.parametrize(
    "relu", [lambda x: x.clamp(0, 6), lambda x: x.clamp(min=0.1), lambda x: F.threshold(x, 0.2, 0)]
)
def test_what_is_no_relu_passes_its_plain_gradient(relu: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(relu(self.first(x)))

    methods = {"guided": m.GuidedBackprop(), "plain": m.Saliency(abs=False)}
    found = Explainer(methods, {}).explain(Net(), Probe(torch.randn(4, 6))).attributions
    assert torch.equal(found["guided"], found["plain"])


def test_no_rule_is_left_on_the_graph_for_the_next() -> None:
    x, y = samples()
    alone = explain(trained(), Probe(x, y), {"plain": m.Saliency(abs=False)}, []).attributions["plain"]
    methods = {"plain": m.Saliency(abs=False), "deconvolution": m.Deconvolution(), "guided": m.GuidedBackprop()}
    assert torch.equal(explain(trained(), Probe(x, y), methods, []).attributions["plain"], alone)


# -- layers --------------------------------------------------------------------------------------------------------


class Overwritten(Residual):
    """What follows a layer writes into what it said."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.bn1(self.conv1(x))
        F.relu(first, inplace=True)
        out = self.bn2(self.conv2(first))
        out += x
        return out.relu_()


class OverwrittenInput(Residual):
    """Whoever gave a layer its input writes into it afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        x = x * 1.0
        kept = self.bn2(self.conv2(out))
        out *= 0
        x += kept
        return torch.relu(x)


AT = {
    "activation": (m.LayerActivation, layers.layer_activation),
    "gradient": (m.LayerGradientXActivation, layers.layer_gradient_x_activation),
    "cam": (lambda layer: m.LayerGradCam(layer, relu_attributions=True), layers.layer_grad_cam),
    "conductance": (lambda layer: m.LayerConductance(layer, 7, baselines=0.3), layers.layer_conductance),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", ["block.bn1", "block.bn2"])
def test_an_activation_is_what_the_layer_said_whatever_is_written_into_it(layer: str) -> None:
    x, y = samples()
    methods = {name: make(layer) for name, (make, _) in AT.items()}
    found = explain(trained(Overwritten), Probe(x, y), methods, []).attributions
    for name, (_, theirs) in AT.items():
        model = by_hand(OutOfPlace)
        assert distance(found[name], theirs(model, x, y, model.get_submodule(layer))) <= 1e-5, name


@pytest.mark.filterwarnings("ignore")
def test_what_went_into_a_layer_is_what_it_received_whatever_is_written_into_it() -> None:
    x, y = samples()
    of_input = {"attribute_to_layer_input": True}
    methods = {
        "activation": m.LayerActivation("block.conv2", **of_input),
        "cam": m.LayerGradCam("block.conv2", **of_input),
        "conductance": m.LayerConductance("block.conv2", 4, **of_input),
    }
    found = explain(trained(OverwrittenInput), Probe(x, y), methods, []).attributions
    expected = explain(trained(OutOfPlace), Probe(x, y), methods, []).attributions
    for name, value in found.items():
        assert value.abs().max() > 0
        assert distance(value, expected[name]) <= 1e-5, name


class Turned(nn.Module):
    """A layer whose first dimension is time."""

    def __init__(self, kind: str = "time first") -> None:
        super().__init__()
        self.kind, self.inner, self.other, self.head = kind, nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        turned = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return self.head(torch.tanh(turned).flatten(1))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str, Tensor]:
        return x * 2, "note", x * x


class Mapped(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.mapped, self.head = Pair(), Mapped(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, _, b = self.pair(self.mapped(x)["x"])
        return self.head(torch.sin(a) + b)


@pytest.mark.parametrize("limit", [5, 64])
@pytest.mark.parametrize("kind", [m.LayerActivation, m.LayerGradientXActivation, m.InternalInfluence])
def test_a_layer_whose_first_dimension_is_not_the_samples_is_refused_with_its_name(kind: Any, limit: int) -> None:
    explainer = Explainer({"it": kind("inner")}, {}, limit=limit)
    with pytest.raises(
        ValueError, match=r"The layer 'inner' returns \(3, \d+, 5\) for \d+ samples; its first dimension must"
    ):
        explainer.explain(Turned(), Probe(torch.randn(5, 3, 4)))


def test_a_layer_that_does_not_run_is_refused_with_its_name() -> None:
    explainer = Explainer({"it": m.LayerActivation("other")}, {})
    with pytest.raises(ValueError, match="The layer 'other' does not run in this model"):
        explainer.explain(Turned(), Probe(torch.randn(5, 3, 4)))


def test_a_layer_without_a_tensor_is_refused_with_its_name() -> None:
    explainer = Explainer({"it": m.LayerActivation("mapped")}, {})
    with pytest.raises(ValueError, match="The layer 'mapped' has no tensor, only dict; choose another layer"):
        explainer.explain(Net(), Probe(torch.randn(5, 4)))


def test_a_layer_of_several_tensors_gives_a_map_for_each() -> None:
    x, net = torch.randn(5, 4), Net()
    methods = {"it": m.LayerGradientXActivation("pair"), "said": m.LayerActivation("pair")}
    found = Explainer(methods, {}, target=1).explain(net, Probe(x)).attributions
    weight = net.head.weight[1].detach()
    a, b = 2 * x, x * x
    torch.testing.assert_close(found["said"], (a, b))
    torch.testing.assert_close(found["it"], (a * a.cos() * weight, b * weight))


class Words(nn.Module):
    """Embeds words, and scales them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 3), nn.Linear(3, 2)

    def forward(self, words: Tensor) -> Tensor:
        found = self.embedding(words)
        found *= 2
        return self.head(torch.tanh(found).mean(1))


def test_the_graph_begins_at_a_layer_where_nothing_before_it_has_a_gradient() -> None:
    torch.manual_seed(0)
    model, words = Words(), torch.randint(0, 9, (5, 4))
    found = Explainer({"it": m.LayerGradientXActivation("embedding")}, {}, target=1).explain(model, Probe(words))
    e = model.embedding(words).detach()
    slope = 2 * (1 - torch.tanh(2 * e) ** 2) * model.head.weight[1].detach() / 4
    torch.testing.assert_close(found.attributions["it"], e * slope)


def test_a_method_of_gradients_beside_one_of_layers_fails_alone_on_integers() -> None:
    words = torch.randint(0, 9, (5, 4))
    methods = {"it": m.LayerGradientXActivation("embedding"), "saliency": m.Saliency()}
    report = Explainer(methods, {}, target=1, raising=False).explain(Words(), Probe(words))
    assert list(report.failures) == ["saliency"]
    assert "floating point" in report.failures["saliency"]
    assert list(report.attributions) == ["it"]


def test_no_hook_is_left_behind() -> None:
    model = trained()
    explain(model, Probe(*samples()), {"it": m.GuidedGradCam("block.bn2"), "on": m.LayerConductance("stem", 3)}, [])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert isinstance(model, DigitNet)


class Handed(nn.Module):
    """A layer hands on what it gets, and its input is changed afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inside = x * 2
        found = self.identity(inside)
        with torch.no_grad():
            inside += 100
        return (found * 3).sum(1, keepdim=True)


@pytest.mark.parametrize("of_input", [False, True])
def test_what_a_layer_hands_on_is_read_as_it_was(of_input: bool) -> None:
    x = torch.rand(3, 4)
    method = m.LayerActivation("identity", attribute_to_layer_input=of_input)
    found = explain(Handed(), Probe(x), {"it": method}, []).attributions["it"]
    torch.testing.assert_close(found, 2 * x)


def test_a_minimum_that_is_a_tensor_is_no_relu() -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp_min(torch.relu(x - 0.5), torch.tensor([0.1, 0.2, 0.3, 0.4])).sum(1, keepdim=True)

    found = explain(Clamped(), Probe(torch.rand(3, 4)), {"it": m.GuidedBackprop()}, []).attributions["it"]
    assert torch.isfinite(found).all()


def test_a_layer_in_channels_last_has_its_gradient_for_a_single_sample() -> None:
    """With the strides of a view torch 2.14 computes another gradient behind this layer, on a CPU, for a batch of one."""
    torch.manual_seed(0)
    stem, norm = nn.Conv2d(3, 64, 1, bias=False), nn.BatchNorm2d(64)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.normal_()
    head = nn.Sequential(norm, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    model = nn.Sequential(stem, head).eval().to(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 7, 7).to(memory_format=torch.channels_last)
    activation = stem(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(head(activation)[0, 2], activation)
    method = m.LayerGradientXActivation(layer="0", multiply_by_inputs=False)
    report = explain(model, Probe(x), {"it": method}, [], target=2, channels_last=True)
    torch.testing.assert_close(report.attributions["it"], gradient)
