"""What the doctor says of inputs without gradients, and of layers that do not run, is what happens."""

from __future__ import annotations

import copy
from collections.abc import Callable

import lightning as L
import pytest
import torch
from captum import attr as ca
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from captum_reference import layers, primary
from comparing import distance
from given import doctor
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method

INTO_THE_INPUT = [
    *(m.InternalInfluence("1"), m.LayerConductance("1"), m.LayerGradientShap("1"), m.NeuronGradient("1", (0, 0))),
    *(m.LRP(), m.NoiseTunnel(m.LayerGradientXActivation("1")), m.NoiseTunnel(m.FeatureAblation())),
]
BESIDE_THE_INPUT = [
    *(m.LayerActivation("1"), m.LayerGradientXActivation("1"), m.LayerIntegratedGradients("0"), m.LayerGradCam("1")),
    *(m.LayerDeepLift("0"), m.LayerFeatureAblation("1"), m.NeuronFeatureAblation("1", (0, 0)), m.FeaturePermutation()),
]


@pytest.mark.parametrize("method", [*INTO_THE_INPUT, *BESIDE_THE_INPUT], ids=lambda method: type(method).__name__)
def test_what_the_doctor_says_of_token_numbers_is_what_happens(method: Method) -> None:
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    probe = Probe(torch.randint(0, 20, (4, 6)))
    (verdict,) = doctor(model, {"it": method}, probe)
    if method in BESIDE_THE_INPUT:
        assert verdict.state in ("fine", "canonized")
        assert "it" in explain(model, probe, {"it": method}, []).attributions
        return
    assert verdict.state == "refused"
    assert verdict.fix
    assert "the inputs, but they are integers" in verdict.reason or "LRP has no rule for layers: '0'" in verdict.reason


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(216, 5)
        self.dropout, self.same, self.flat = nn.Dropout2d(), nn.Identity(), nn.Flatten()
        self.again = nn.Dropout()
        # They do not run in forward.
        self.loss, self.spare = nn.CrossEntropyLoss(), nn.GELU()
        self.accuracy = MulticlassAccuracy(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.flat(self.same(self.dropout(self.act(self.first(x))))))
        return self.head(self.again(x))


class Bare(nn.Module):
    def __init__(self, of: Module) -> None:
        super().__init__()
        self.first, self.act, self.head = of.first, of.act, of.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x)).flatten(1))


@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning")
def test_lrp_looks_at_the_layers_that_run_and_passes_through_those_that_only_hand_on() -> None:
    model, x = Module(), torch.randn(4, 3, 8, 8)
    methods = {"lrp": m.LRP(), "layer": m.LayerLRP("first")}
    assert {v.state for v in doctor(model, methods, Probe(x))} == {"fine"}
    found = explain(model, Probe(x), methods, []).attributions
    bare = Bare(copy.deepcopy(model)).eval()
    y = bare(x).argmax(1)
    assert distance(found["lrp"], primary.lrp(bare, x, y)) <= 1e-5
    assert distance(found["layer"], layers.layer_lrp(bare, x, y, bare.first)) <= 1e-5


class Idle(nn.Module):
    """Adds and multiplies by constants between its layers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.head = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.act(self.first(x))))


@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning")
@pytest.mark.parametrize("idle", [lambda x: x + 0, lambda x: 1.0 * x, lambda x: x - torch.zeros(()), lambda x: x / 1])
def test_lrp_passes_by_arithmetic_that_changes_nothing(idle: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    found, expected = (
        explain(Idle(between), Probe(x), {"it": m.LRP()}, []).attributions["it"] for between in (idle, lambda x: x)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("what", [lambda x: x + 1, lambda x: x * 2, lambda x: x.clone().add_(1), lambda x: x + x * 0])
def test_lrp_does_not_pass_by_arithmetic_that_changes_something(what: Callable[[Tensor], Tensor]) -> None:
    (verdict,) = doctor(Idle(what), {"it": m.LRP()}, Probe(torch.randn(4, 6)), target=0)
    assert "LRP does not see what is computed outside of layers" in verdict.reason


class Mixed(nn.Module):
    """An embedding behind whole numbers, beside floating inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.hidden, self.head = nn.Embedding(7, 4), nn.Linear(17, 8), nn.Linear(8, 3)

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        found = torch.cat([self.embedding(categories).flatten(1), numbers], 1)
        return self.head(torch.tanh(self.hidden(found)))


class Rounded(Mixed):
    """The whole numbers are the first columns of one floating table."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, :3].long(), x[:, 3:].round())


class Binned(Mixed):
    """The embedding reads floating numbers by the bins in which they lie."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.bucketize(x[:, :3].contiguous(), torch.arange(6.0)).clamp(0, 6), x[:, 3:])


class Compared(Mixed):
    """The embedding reads which numbers are positive."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward((x[:, :3] > 1).int(), x[:, 3:])


class Positions(nn.Module):
    """An embedding of places, which no input reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh((x + self.embedding(torch.arange(6).expand(len(x), 6))).flatten(1)))


class Detached(Mixed):
    """The embedding does not matter through anything that has a gradient."""

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        found = torch.cat([self.embedding(categories).detach().flatten(1), numbers], 1)
        return self.head(torch.tanh(self.hidden(found)))


def ids_of(model: nn.Module, x: Tensor) -> Tensor:
    """The ids that the embedding of such a model reads."""
    if isinstance(model, Binned):
        return torch.bucketize(x[:, :3].contiguous(), torch.arange(6.0)).clamp(0, 6)
    return (x[:, :3] > 1).int() if isinstance(model, Compared) else x[:, :3].long()


CATEGORIES, NUMBERS = torch.tensor([[0, 3, 6], [1, 1, 2], [5, 4, 0], [2, 6, 6]]), torch.randn(4, 5)
BEHIND_INTEGERS = {
    "beside floating inputs": (Mixed(), (CATEGORIES, NUMBERS)),
    "integers in a floating table": (Rounded(), (torch.cat([CATEGORIES.float(), NUMBERS], 1),)),
    "bins of floating numbers": (Binned(), (torch.cat([CATEGORIES.float(), NUMBERS], 1),)),
    "comparisons of floating numbers": (Compared(), (torch.cat([CATEGORIES.float(), NUMBERS], 1),)),
    "no input": (Positions(), (torch.randn(4, 6, 4),)),
}


@pytest.mark.parametrize(("model", "inputs"), BEHIND_INTEGERS.values(), ids=BEHIND_INTEGERS)
@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning", "ignore:No metric will score")
def test_a_layer_that_no_gradient_of_the_inputs_reaches_is_explained_as_by_captum(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    y, layer = torch.tensor([0, 1, 2, 1]), model.embedding
    methods = {"gxa": m.LayerGradientXActivation("embedding"), "ig": m.LayerIntegratedGradients("embedding", 5)}
    methods["activation"], methods["ablation"] = m.LayerActivation("embedding"), m.LayerFeatureAblation("embedding")
    found = explain(model, Probe(inputs if len(inputs) > 1 else inputs[0], y), methods, []).attributions
    expected = {
        "gxa": ca.LayerGradientXActivation(model, layer).attribute(inputs, target=y),
        "ig": ca.LayerIntegratedGradients(model, layer).attribute(inputs, target=y, n_steps=5),
        "activation": layer(ids_of(model, inputs[0])) if isinstance(model, Mixed) else found["activation"],
        "ablation": ca.LayerFeatureAblation(model, layer).attribute(inputs, target=y),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_a_layer_that_does_not_matter_is_refused_with_the_true_reason() -> None:
    probe = Probe((CATEGORIES, NUMBERS), torch.zeros(4, dtype=torch.long))
    (verdict,) = doctor(Detached(), {"it": m.LayerGradientXActivation("embedding")}, probe)
    assert verdict.reason == "no gradient flows from the explained output back to the layer 'embedding'"


def test_an_ordinal_model_is_explained_whichever_classes_the_probe_has() -> None:
    """K - 1 outputs for K classes, as CORAL has: the highest class is explained by the last output."""
    model, x, y = nn.Linear(5, 3), torch.randn(4, 5), torch.tensor([3, 0, 1, 3])
    with pytest.warns(
        UserWarning, match="label 3 is the highest, but the model has only 3 outputs.* by the last output, 2"
    ):
        report = explain(model, Probe(x, y), [m.Saliency(abs=False)], [])
    assert report.targets.tolist() == [2, 0, 1, 2]
    assert torch.equal(report.attributions["saliency"], model.weight[report.targets].detach())
    assert explain(model, Probe(x, y - (y == 3).long()), [m.Saliency()], []).targets.tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match="gives indices 0 to 4 of 3 outputs"):
        explain(model, Probe(x, torch.tensor([4, 0, 1, 2])), [m.Saliency()], [])
