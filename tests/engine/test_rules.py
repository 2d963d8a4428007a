"""Backward rules give what Captum gives on a copy that is repaired by hand, and DeepLIFT is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import captum.attr as ca
import pytest
import torch
import torchvision
from captum.attr._core import deep_lift
from torch import Tensor, nn
from torch.nn import functional as F

from comparing import distance
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Method
from lightning_explain.engine.rules import Rescaling
from repairing import Functional, all_rules, repaired_by_hand, warmed

# Captum announces that it sets hooks.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def _captum_with_all_rules() -> Iterator[None]:
    with all_rules():
        yield


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "resnet18 with F.relu": lambda: torchvision.models.ResNet(Functional, [2, 2, 2, 2], num_classes=10),
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=10),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.5),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return warmed(NETWORKS[request.param]())


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def attributions(model: nn.Module, x: Tensor, **methods: Method) -> dict[str, Tensor]:
    return dict(explain(model, Probe(x), methods, [], target="predicted").attributions)


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x).argmax(1)


def gap(model: nn.Module, x: Tensor, baseline: float = 0.0) -> Tensor:
    """f(x) - f(baseline) at the predicted classes, ``(N,)``."""
    with torch.no_grad():
        outputs = model.eval()(x)
        return (outputs - model(torch.full_like(x, baseline)))[range(len(x)), outputs.argmax(1)]


def incompleteness(attribution: Tensor, gap: Tensor) -> float:
    """Largest distance of a sample's sum from its gap, relative to the largest gap."""
    return ((attribution.flatten(1).sum(1) - gap).abs().max() / gap.abs().max()).item()


def test_guided_methods_equal_captum_on_the_copy_repaired_by_hand(network: nn.Module, x: Tensor) -> None:
    by_hand, y = repaired_by_hand(network), predicted(network, x)
    found = attributions(network, x, guided=m.GuidedBackprop(), deconvolution=m.Deconvolution())
    assert distance(found["guided"], ca.GuidedBackprop(by_hand).attribute(x, target=y)) <= 1e-5
    assert distance(found["deconvolution"], ca.Deconvolution(by_hand).attribute(x, target=y)) <= 1e-5


@pytest.mark.usefixtures("_captum_with_all_rules")
def test_deeplift_equals_captum_with_all_rules_on_the_copy_repaired_by_hand(network: nn.Module, x: Tensor) -> None:
    found = attributions(network, x, it=m.DeepLift(baselines=0.1))["it"]
    by_hand, y = repaired_by_hand(network), predicted(network, x)
    assert distance(found, ca.DeepLift(by_hand).attribute(x, torch.full_like(x, 0.1), target=y)) <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet18 with F.relu"])
def test_deeplift_is_complete_at_the_input_and_at_layers(name: str, x: Tensor) -> None:
    torch.manual_seed(0)
    model = warmed(NETWORKS[name]())
    zeros = torch.zeros(2, 3, 64, 64)
    methods = {
        "input": m.DeepLift(),
        "shap": m.DeepLiftShap(baselines=zeros),
        "pool": m.LayerDeepLift("maxpool"),
        "into the pool": m.LayerDeepLift("maxpool", attribute_to_layer_input=True),
        "block": m.LayerDeepLift("layer2.1"),
        "shap of a block": m.LayerDeepLiftShap("layer3", baselines=zeros),
    }
    found, wanted = attributions(model, x, **methods), gap(model, x)
    for name, value in found.items():
        assert ((value.flatten(1).sum(1) - wanted) / wanted).abs().max() <= 1e-3, name


def test_neuron_methods_follow_the_rules_as_well(x: Tensor) -> None:
    torch.manual_seed(0)
    model, unit = warmed(torchvision.models.resnet18(num_classes=10)), (3, 2, 2)
    methods = {
        "deeplift": m.NeuronDeepLift("layer2.1.bn1", unit),
        "guided": m.NeuronGuidedBackprop("layer2.1.bn1", unit),
        "deconvolution": m.NeuronDeconvolution("layer2.1.bn1", unit),
    }
    found, by_hand = attributions(model, x, **methods), repaired_by_hand(model)
    layer = by_hand.get_submodule("layer2.1.bn1")
    for name, kind in {"guided": ca.NeuronGuidedBackprop, "deconvolution": ca.NeuronDeconvolution}.items():
        assert distance(found[name], kind(by_hand, layer).attribute(x, unit)) <= 1e-5
    values: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, out: values.append(out[:, 3, 2, 2].detach()))
    by_hand(x)
    by_hand(torch.zeros_like(x))
    assert incompleteness(found["deeplift"], values[0] - values[1]) <= 1e-3


ACTIVATIONS = [
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU()),
    *(nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Sigmoid()),
    *(nn.LogSigmoid(), nn.Tanh(), nn.Tanhshrink(), nn.Softshrink(), nn.Hardshrink(), nn.Softplus(), nn.Softsign()),
    *(nn.Threshold(0.1, 0.2), torch.abs, torch.exp, torch.sin, torch.square, torch.erf, lambda x: x**3, lambda x: 2**x),
    *(F.relu, torch.tanh, Tensor.sigmoid, F.silu, lambda x: x.clamp(-0.3, 0.4), lambda x: F.relu(x, inplace=True)),
    *(lambda x: x.relu_(), lambda x: (x.relu_(), x)[1], lambda x: F.leaky_relu_(x, 0.2), lambda x: F.elu(x, 1.0, True)),
]


class Applied(nn.Module):
    """Two linear layers and a convolution with the same activation between them, and a reused module."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.activation = activation
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.second(self.activation(self.first(x))))
        return self.head(x.flatten(1))


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_deeplift_is_complete_for_every_elementwise_activation(activation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Applied(activation).double().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    found = attributions(model, x, it=m.DeepLift(baselines=0.2))["it"]
    assert incompleteness(found, gap(model, x, 0.2)) <= 1e-9


POOLS = {
    "a module used twice": nn.MaxPool2d(2),
    "overlapping windows": nn.MaxPool2d(3, 2, padding=1),
    "a function": lambda x: F.max_pool2d(x, 2),
    "windows with holes": nn.MaxPool2d(2, 1, dilation=2),
    "adaptive": nn.AdaptiveMaxPool2d(5),
    "over channels": lambda x: torch.cat([x, x.amax(1, keepdim=True)], 1)[:, 1:],
}


class Pooled(nn.Module):
    """Pools directly beside ReLU."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.pool = pool
        self.second = nn.Conv2d(4, 4, 1)
        self.head = nn.LazyLinear(5)
        self(torch.randn(2, 3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.first(x)))
        return self.head(self.pool(self.second(x).relu()).flatten(1))


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_deeplift_is_complete_for_maxima_beside_relu(pool: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Pooled(pool).double().eval(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    found = attributions(model, x, it=m.DeepLift(baselines=0.2))["it"]
    assert incompleteness(found, gap(model, x, 0.2)) <= 1e-9


# -- what is touched, and put back -------------------------------------------------------------------------------------


def state(model: nn.Module) -> list[object]:
    modules = [(name, id(module), len(module._forward_hooks)) for name, module in model.named_modules()]
    return [modules, dict(deep_lift.SUPPORTED_NON_LINEAR), len(torch.overrides._get_current_function_mode_stack())]


class Failing(torch.autograd.Function):
    """Fails in the backward pass, if it is to."""

    fails = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if Failing.fails:
            raise ZeroDivisionError
        return gradient


@pytest.mark.parametrize("method", [m.DeepLift(), m.GuidedBackprop(), m.LayerDeepLift("first")], ids=repr)
def test_a_rule_is_gone_afterwards_also_after_a_failure(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = Applied(lambda x: Failing.apply(F.relu(x)))
    before = state(model)
    explain(model, Probe(x), {"it": method}, [], target=0)
    assert state(model) == before
    monkeypatch.setattr(Failing, "fails", True)
    with pytest.raises(ZeroDivisionError):
        explain(model, Probe(x), {"it": method}, [], target=0)
    assert state(model) == before


def test_inside_the_rule_the_model_computes_what_it_did_and_every_layer_fires() -> None:
    model = warmed(torchvision.models.resnet18(num_classes=10)).eval()
    x, fired = torch.randn(2, 3, 64, 64), set()
    expected = model(torch.cat([x, x * 0]))
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: fired.add(name))
    with Rescaling(4, 1e-10, x.device):
        found = model(torch.cat([x, x * 0]).requires_grad_())
    assert torch.equal(found, expected)
    assert fired == {name for name, _ in model.named_modules()}


def test_methods_of_different_rules_find_beside_each_other_what_they_find_alone() -> None:
    model, x = Applied(F.relu), torch.randn(2, 3, 8, 8)
    methods = {"lift": m.DeepLift(), "guided": m.GuidedBackprop(), "plain": m.Saliency(abs=False)}
    together = attributions(model, x, **methods)
    for name, method in methods.items():
        assert torch.equal(together[name], attributions(model, x, **{name: method})[name])


class Counted(nn.Module):
    """Applies ReLU as often as its input says."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, times: int) -> Tensor:
        x = self.head(x)
        for _ in range(times):
            x = F.relu(x) - 0.1
        return x


def test_activations_are_reached_however_often_they_are_called() -> None:
    model, x = Counted(), torch.randn(2, 4)
    for times in (0, 1, 3):
        report = explain(model, Probe(x, forward_args=(times,)), {"it": m.DeepLift()}, [], target=0)
        assert report.completeness_errors["it"].abs().max() <= 1e-6


class Branches(nn.Module):
    """One ReLU, or several, on branches of equal shape that are joined."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.relu1 = nn.ReLU()
        self.relu2 = self.relu1 if shared else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return self.head(self.relu1(left) - 2 * self.relu2(right))


@pytest.mark.parametrize("method", [m.Deconvolution(), m.GuidedBackprop(), m.DeepLift()])
def test_one_module_on_two_branches_is_as_two_modules(method: Method) -> None:
    torch.manual_seed(0)
    shared, separate, x = Branches(shared=True), Branches(shared=False), torch.randn(3, 4)
    separate.load_state_dict(shared.state_dict())
    expected = attributions(separate, x, it=method)["it"]
    assert distance(attributions(shared, x, it=method)["it"], expected) <= 1e-6


def test_an_operation_in_place_still_changes_its_input() -> None:
    class Statement(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            F.relu(x, inplace=True)
            return self.head(x)

    class Separate(Statement):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.relu(self.inner(x)))

    torch.manual_seed(0)
    model, other, x = Statement(), Separate(), torch.randn(3, 4)
    other.load_state_dict(model.state_dict())
    expected = attributions(other, x, it=m.GuidedBackprop())["it"]
    assert torch.equal(attributions(model, x, it=m.GuidedBackprop())["it"], expected)
    assert distance(expected, attributions(other, x, it=m.Saliency(abs=False))["it"]) > 0.1


class Children(nn.Module):
    """Runs all that is in it, whatever that is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def sequential() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6), nn.GELU(), nn.Linear(6, 3))
    )


RULED = [
    *(m.DeepLift(), m.DeepLiftShap(), m.LayerDeepLift("0"), m.NeuronDeepLift("4", 0), m.GuidedBackprop()),
    *(m.Deconvolution(), m.GuidedGradCam("0"), m.NeuronGuidedBackprop("4", 0)),
]


@pytest.mark.parametrize("method", RULED, ids=lambda method: type(method).__name__)
def test_a_model_that_runs_all_that_is_in_it_is_explained(method: Method) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sequential()

        def forward(self, x: Tensor) -> Tensor:
            for module in [*self.inner]:
                x = module(x)
            return x

    torch.manual_seed(0)
    model, x = sequential(), torch.randn(3, 1, 8, 8)
    other = Wrapped()
    other.inner.load_state_dict(model.state_dict())
    elsewhere = replace(method, layer=f"inner.{method.layer}") if method.place != "input" else method
    found = attributions(model, x, it=method)["it"]
    assert torch.equal(found, attributions(other, x, it=elsewhere)["it"])


def test_a_forward_over_all_children_is_explained() -> None:
    torch.manual_seed(0)
    model, x = Children(), torch.randn(3, 4)
    report = explain(model, Probe(x), {"it": m.DeepLift()}, [q.Completeness()])
    assert report.scores["completeness"]["it"].max() <= 1e-5
