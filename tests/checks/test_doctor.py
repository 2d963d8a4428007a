"""The doctor catches every planted fault, and does not accuse the same network without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from given import doctor
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method
from lightning_explain.core.verdict import Verdict
from repairing import Own, warmed

GUIDED = [m.GuidedBackprop(), m.Deconvolution(), m.GuidedGradCam("first"), m.NeuronGuidedBackprop("second", (0, 0, 0))]
DEEPLIFT = [m.DeepLift(), m.DeepLiftShap(), m.LayerDeepLift("first"), m.NeuronDeepLift("second", (0, 0, 0))]
PLAIN = [
    *(m.Saliency(), m.InputXGradient(), m.IntegratedGradients(n_steps=3), m.GradientShap(), m.LayerGradCam("first")),
    *(
        m.LayerConductance("first"),
        m.LayerIntegratedGradients("first"),
        m.NoiseTunnel(),
        m.NeuronGradient("first", (0, 0, 0)),
    ),
    *(m.Occlusion((1, 2, 2)), m.FeatureAblation(), m.FeaturePermutation(), m.KernelShap(), m.LayerActivation("first")),
]


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions and a linear layer; what is between them is planted."""

    def __init__(self, *between: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = between if len(between) == 2 else (between[0], nn.ReLU())
        self.first, self.act1 = nn.Conv2d(3, 6, 3), first
        self.second, self.act2 = nn.Conv2d(6, 6, 1), second
        self.flat, self.head = nn.Flatten(), nn.LazyLinear(5)
        self.last = last or nn.Identity()
        self(images())

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.first(x))
        return self.last(self.head(self.flat(self.act2(self.second(x)))))


class Gate(nn.Module):
    """Squeeze and excitation: the channels times what is computed from them; or without the product."""

    def __init__(self, product: bool = True) -> None:
        super().__init__()
        self.weight, self.act, self.product = nn.Conv2d(6, 6, 1), nn.Sigmoid(), product

    def forward(self, x: Tensor) -> Tensor:
        scale = self.act(self.weight(x.mean((2, 3), keepdim=True)))
        return x * scale if self.product else x * 0.5 + scale


class Attention(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inside = how, nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.how == "module":
            return self.inside(tokens, tokens, tokens)[0]
        if self.how == "function":
            return F.scaled_dot_product_attention(tokens, tokens, tokens)
        return torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens


class Branching(nn.Module):
    """What no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) if float(x.detach().sum()) > -1e9 else x


class Noisy(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, training=self.always or self.training)


class Sequence(nn.Module):
    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(8, 6, batch_first=True) if recurrent else nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x[:, 0])
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


class Unused(nn.Module):
    """A layer that is not called, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.spare = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(5, 5)
        self.flat, self.head = nn.Flatten(), nn.Linear(216, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flat(self.twice(self.twice(self.first(x)) - 0.1)))


SHARED = nn.ReLU()


def hidden(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


# name: (faulty network, the same without the fault, methods, verdict on the fault, what it says)
FAULTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], list[Method], str, str]] = {
    **{
        f"attention: {how}": (
            lambda how=how: Net(nn.ReLU(), Attention(how)),
            lambda: Net(nn.ReLU(), nn.Identity()),
            DEEPLIFT[:3],
            "refused",
            "DeepLIFT has no rule for a softmax inside the model, such as that of attention",
        )
        for how in ("module", "function", "by hand")
    },
    "softmax as a module": (
        lambda: Net(nn.Softmax(1)),
        lambda: Net(nn.Sigmoid()),
        DEEPLIFT[:2],
        "refused",
        "DeepLIFT has no rule for a softmax inside the model",
    ),
    "no ReLU to guide": (
        lambda: Net(nn.GELU(), nn.GELU()),
        lambda: Net(nn.ReLU()),
        GUIDED[:2],
        "warned",
        "has no ReLU .its activations are gelu., so this is the plain gradient",
    ),
    "softmax at the end": (
        lambda: Net(nn.ReLU(), last=nn.Softmax(1)),
        lambda: Net(nn.ReLU()),
        [m.Saliency(), m.InputXGradient(), m.LayerGradCam("first"), m.NoiseTunnel()],
        "warned",
        "the outputs are probabilities .softmax in 'last' .Softmax..",
    ),
    "a sigmoid at the end": (
        lambda: Net(nn.ReLU(), last=torch.sigmoid),
        lambda: Net(nn.ReLU()),
        [m.Saliency()],
        "warned",
        "gradients vanish where the model is confident",
    ),
    "a layer that does not exist": (
        Unused,
        Unused,
        [m.LayerGradCam("frist")],
        "refused",
        "no layer 'frist' in Unused: did you mean 'first'",
    ),
    "a layer that is not run": (
        Unused,
        Unused,
        [m.LayerGradientXActivation("spare"), m.NeuronGradient("spare", (0, 0, 0))],
        "refused",
        "'spare' does not run for this input",
    ),
    "a layer that runs twice": (
        Unused,
        Unused,
        [m.LayerActivation("twice"), m.LayerGradientXActivation("twice")],
        "warned",
        "'twice' runs 2 times in one forward pass, and only the last run is explained",
    ),
    "a layer that is replaced twice": (
        Unused,
        Unused,
        [m.LayerIntegratedGradients("twice"), m.LayerFeatureAblation("twice")],
        "refused",
        "'twice' runs 2 times in one forward pass, and every run would be replaced",
    ),
    "a recurrent layer": (
        lambda: Sequence(recurrent=True),
        lambda: Sequence(recurrent=False),
        [m.Saliency(), m.IntegratedGradients(n_steps=3)],
        "canonized",
        "cuDNN has no backward pass for recurrent layers in eval mode; while explaining, cuDNN is switched off",
    ),
    "dropout in eval mode": (
        lambda: Net(Noisy(always=True)),
        lambda: Net(Noisy(always=False)),
        [m.Saliency(), m.Occlusion((1, 2, 2)), m.IntegratedGradients(n_steps=3)],
        "refused",
        "two forward passes on the same samples in eval mode differ by",
    ),
    "statistics of the batch in eval mode": (
        lambda: Net(nn.BatchNorm2d(6, track_running_stats=False)),
        lambda: Net(nn.BatchNorm2d(6)),
        [m.Saliency(), m.Occlusion((1, 2, 2)), m.IntegratedGradients(n_steps=3)],
        "refused",
        "samples influence each other in eval mode: a sample's output differs by",
    ),
    "a sample that cannot be alone": (
        lambda: Net(
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(216, track_running_stats=False), nn.Unflatten(1, (6, 6, 6)))
        ),
        lambda: Net(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(216), nn.Unflatten(1, (6, 6, 6)))),
        [m.Saliency()],
        "refused",
        "samples influence each other in eval mode: a sample's output cannot be computed",
    ),
    "a cut in the gradient": (
        lambda: Net(Tensor.detach),
        lambda: Net(nn.Identity()),
        [m.Saliency(), m.IntegratedGradients(n_steps=3), m.DeepLift()],
        "refused",
        "no gradient flows from the output back to the input",
    ),
    "scripted code": (
        lambda: Net(torch.jit.script(nn.ReLU())),
        lambda: Net(nn.ReLU()),
        [m.GuidedBackprop(), m.DeepLift()],
        "refused",
        "act1 is a TorchScript module, and the backward rule cannot be applied inside",
    ),
    "a layer that LRP has no rule for": (
        lambda: Net(nn.ReLU(), nn.GELU()),
        lambda: Net(nn.ReLU()),
        [m.LRP(), m.LayerLRP("first")],
        "refused",
        "LRP has no rule for layers: 'act2' .GELU.",
    ),
    "an addition that LRP does not see": (
        lambda: Net(lambda x: x + torch.relu(x)),
        lambda: Net(torch.relu),
        [m.LRP(), m.LayerLRP("first")],
        "refused",
        "LRP does not see what is computed outside of layers: add in Net",
    ),
    "a pool that LRP does not see": (
        lambda: Net(lambda x: F.avg_pool2d(x, 2)),
        lambda: Net(nn.AvgPool2d(2)),
        [m.LRP()],
        "refused",
        "outside of layers: avg_pool2d",
    ),
    "a layer used twice under LRP": (
        lambda: Net(SHARED, SHARED),
        lambda: Net(nn.ReLU()),
        [m.LRP()],
        "refused",
        "LRP cannot handle a layer that is used more than once: 'act1'",
    ),
}
# Faults of the request and not of the network: the sound request, in the same order.
SOUND: dict[str, list[Method]] = {
    "a layer that does not exist": [m.LayerGradCam("first")],
    "a layer that is not run": [m.LayerGradientXActivation("head"), m.NeuronGradient("head", 0)],
    "a layer that runs twice": [m.LayerActivation("head"), m.LayerGradientXActivation("head")],
    "a layer that is replaced twice": [m.LayerIntegratedGradients("head"), m.LayerFeatureAblation("head")],
}


def verdicts(model: nn.Module, methods: list[Method], x: Tensor | None = None, **options: Any) -> list[Verdict]:
    named = {f"{i} {type(method).__name__}": method for i, method in enumerate(methods)}
    return doctor(model.train(), named, Probe(images() if x is None else x), **options)


@pytest.mark.filterwarnings("ignore:Lazy modules|.torch.jit:")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str) -> None:
    faulty, _, methods, state, reason = FAULTS[fault]
    for verdict in verdicts(faulty(), methods):
        assert verdict.state == state, verdict
        assert_says(verdict, reason)
        assert bool(verdict.fix) == (state in ("warned", "refused"))


def assert_says(verdict: Verdict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        raise ValueError(verdict.reason)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_network_without_the_fault_is_not_accused(fault: str) -> None:
    _, sound, methods, _, _ = FAULTS[fault]
    for verdict in verdicts(sound(), SOUND.get(fault, methods)):
        assert verdict.state == "fine"
        assert not verdict.reason or "Grad-CAM averages" in verdict.reason  # Its head is flattened.


# Activations in forms that Captum's hooks do not reach, or that it has no rule for.
RELUS: dict[str, Callable[[], nn.Module]] = {
    "in-place ReLU": lambda: Net(nn.ReLU(inplace=True)),
    "one ReLU used twice": lambda: Net(SHARED, SHARED),
    "F.relu": lambda: Net(F.relu),
    "torch.relu": lambda: Net(torch.relu),
    "x.relu()": lambda: Net(Tensor.relu),
    "in place": lambda: Net(lambda x: F.relu(x, inplace=True)),
    "clamp": lambda: Net(lambda x: x.clamp(min=0)),
    "threshold": lambda: Net(lambda x: F.threshold(x, 0.0, 0.0)),
    "in code no trace can follow": lambda: Net(Branching()),
    "a maximum beside ReLU": lambda: Net(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))),
}
FORMS: dict[str, Callable[[], nn.Module]] = {
    **RELUS,
    "maxima over overlapping windows": lambda: Net(nn.MaxPool2d(3, 2)),
    "a functional activation": lambda: Net(torch.tanh),
    **{
        type(activation).__name__: lambda a=activation: Net(a)  # type: ignore[misc]
        for activation in (
            *(nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.CELU()),
            *(nn.SELU(), nn.PReLU(), nn.LogSigmoid(), nn.Softsign(), nn.Tanhshrink()),
        )
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_activations_are_fine_in_any_form(form: str) -> None:
    assert [(v.state, v.reason) for v in verdicts(FORMS[form](), DEEPLIFT)] == [("fine", "")] * len(DEEPLIFT)
    if form in RELUS:
        assert [(v.state, v.reason) for v in verdicts(RELUS[form](), GUIDED)] == [("fine", "")] * len(GUIDED)


# What has no rule of DeepLIFT's, beside the same network without it.
INEXACT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "squeeze and excitation": (lambda: Net(Gate()), lambda: Net(Gate(product=False))),
    "layer norm": (lambda: Net(nn.Sequential(nn.LayerNorm(6), nn.ReLU())), lambda: Net(nn.ReLU())),
    "group norm": (lambda: Net(nn.GroupNorm(2, 6)), lambda: Net(nn.BatchNorm2d(6))),
    "a recurrent layer": (lambda: Sequence(recurrent=True), lambda: Sequence(recurrent=False)),
    "a non-linearity written by hand": (lambda: Net(hidden), lambda: Net(nn.ReLU())),
    "a non-linearity of one's own": (lambda: Net(Own.apply), lambda: Net(nn.ReLU())),
}


@pytest.mark.parametrize("what", INEXACT)
def test_what_has_no_rule_is_no_verdict_but_reported_by_every_explanation(what: str) -> None:
    inexact, exact = (build() for build in INEXACT[what])
    methods = {"map": m.DeepLift(), "shap": m.DeepLiftShap()}
    assert "refused" not in {v.state for v in verdicts(inexact, list(methods.values()))}
    with pytest.warns(UserWarning, match=r"misses f\(x\) - f\(baseline\) on \d of 4 samples") as caught:
        report = explain(inexact, Probe(images()), methods, [])
    assert [str(w.message).partition(":")[0] for w in caught] == ["'map'", "'shap'"]
    assert all(report.completeness_errors[name].abs().max() > 1e-4 for name in methods)
    report = explain(exact, Probe(images()), methods, [])
    assert all(report.completeness_errors[name].abs().max() < 1e-5 for name in methods)


UNSUSPICIOUS = {
    "functional": lambda: Net(F.relu),
    "a gate": lambda: Net(Gate()),
    "attention": lambda: Net(nn.ReLU(), Attention("by hand")),
    "softmax inside": lambda: Net(nn.Softmax(1)),
    "a layer norm": lambda: Net(nn.LayerNorm(6)),
    "hidden": lambda: Net(hidden),
    "scripted": lambda: Net(torch.jit.script(nn.ReLU())),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:")
@pytest.mark.parametrize("name", UNSUSPICIOUS)
def test_methods_without_a_rule_are_fine_on_any_of_these(name: str) -> None:
    assert {v.state for v in verdicts(UNSUSPICIOUS[name](), PLAIN)} == {"fine"}


def test_deeplift_is_judged_by_the_part_it_goes_through() -> None:
    model = Net(nn.ReLU(), nn.Softmax(1))
    methods = [
        m.LayerDeepLift("head"),
        m.LayerDeepLift("first"),
        m.NeuronDeepLift("first", (0, 0, 0)),
        m.NeuronDeepLift("head", 0),
    ]
    assert [v.state != "refused" for v in verdicts(model, methods)] == [True, False, True, False]


def test_a_noise_tunnel_is_judged_by_the_method_inside() -> None:
    tunnel = m.NoiseTunnel(m.GuidedBackprop(), nt_samples=2)
    (verdict,) = verdicts(Net(F.relu), [tunnel])
    assert (verdict.state, verdict.reason) == ("fine", "")
    (verdict,) = verdicts(Net(F.gelu, F.gelu), [tunnel])
    assert verdict.state == "warned"


# Dynamo asks activations for their gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", ["whole", "in place", "a part"])
def test_a_compiled_model_that_has_run_is_judged_as_the_plain_one(how: str) -> None:
    fine, functional = Net(nn.ReLU()), Net(F.relu)
    for model in (fine, functional):
        compiled: Any = model
        if how == "whole":
            compiled = torch.compile(model, backend="eager")
        elif how == "in place":
            model.compile(backend="eager")
        else:
            model.second = torch.compile(model.second, backend="eager")
        compiled(images())
        assert {v.state for v in verdicts(compiled, PLAIN)} == {"fine"}
        assert {v.state for v in verdicts(compiled, [*GUIDED, *DEEPLIFT])} == {"fine"}


def test_permuting_one_sample_is_refused() -> None:
    (verdict,) = verdicts(Net(nn.ReLU()), [m.FeaturePermutation()], images(1))
    assert verdict.state == "refused"
    assert_says(verdict, "it permutes features across samples, but the probe has only one")


def test_samples_that_influence_each_other_are_seen_with_a_single_probe_sample() -> None:
    model = Net(nn.BatchNorm2d(6, track_running_stats=False))
    assert verdicts(model, [m.Saliency()], images(1))[0].state == "refused"
    assert verdicts(Net(nn.ReLU()), [m.Saliency()], images(1))[0].state == "fine"


def test_token_numbers_have_no_gradient_but_their_embedding_has() -> None:
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 4), nn.GELU(), nn.Flatten(), nn.Linear(24, 3))
    methods = [m.Saliency(), m.DeepLift(), m.LayerGradientXActivation("0"), m.LayerDeepLift("0"), m.FeatureAblation()]
    found = verdicts(model, methods, torch.randint(0, 20, (4, 6)))
    assert [v.state for v in found] == ["refused", "refused", "fine", "fine", "fine"]
    assert_says(found[0], "gradient at the inputs, but they are integers")


def test_a_target_without_a_gradient_is_refused_where_the_output_is_gone_back_from() -> None:
    methods = {
        "map": m.Saliency(),
        "layer": m.LayerGradCam("first"),
        "through": m.NeuronConductance("first", (0, 0, 0)),
        "unit": m.NeuronGradient("first", (0, 0, 0)),
        "forward": m.Occlusion((1, 2, 2)),
    }
    for target in (lambda o: o.detach()[:, 0], lambda o: o.argmax(1), lambda o: torch.rand(len(o))):
        found = doctor(Net(nn.ReLU()), methods, Probe(images()), target=target)
        assert [v.state for v in found] == ["refused"] * 3 + ["fine"] * 2
        assert_says(found[0], "no gradient flows from what target selects back to the outputs")


def test_a_model_in_16_bits_is_not_accused_of_rounding() -> None:
    model = Net(nn.GELU()).to(torch.bfloat16)
    assert {v.state for v in verdicts(model, PLAIN)} == {"fine"}
    assert {v.state for v in verdicts(model, DEEPLIFT)} == {"fine"}


@pytest.mark.parametrize(("limit", "most"), [(1, 2), (2, 2), (3, 3), (32, 4)])
def test_the_model_never_sees_more_samples_at_once_than_it_may(limit: int, most: int) -> None:
    model, seen = Net(F.relu), []
    model.first.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    verdicts(model, DEEPLIFT, limit=limit)
    assert max(seen) == most


def test_an_activation_in_output_fn_is_judged_as_well() -> None:
    (verdict,) = verdicts(Net(nn.ReLU()), [m.Saliency()], output_fn=lambda output: output.softmax(1))
    assert verdict.state == "warned"
    (verdict,) = verdicts(Net(nn.ReLU()), [m.DeepLift()], output_fn=lambda output: output.softmax(1) @ torch.ones(5, 2))
    assert verdict.state == "refused"
    (verdict,) = verdicts(Net(nn.ReLU()), [m.DeepLift()], output_fn=lambda output: output.softmax(1))
    assert verdict.state == "fine"


# -- what comes of verdicts --------------------------------------------------------------------------------------------


def test_all_refused_methods_are_named_with_reason_and_fix() -> None:
    methods = {"ig": m.IntegratedGradients(n_steps=2), "deep": m.DeepLift(), "relevance": m.LRP()}
    with pytest.raises(ValueError, match="These requests cannot be carried out on this model") as caught:
        explain(Net(nn.Softmax(1)), Probe(images()), methods, [])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(
        "'deep' (DeepLift): DeepLIFT has no rule for a softmax inside the model, such as that of attention."
    )
    assert lines[1].endswith("Fix: use IntegratedGradients or GradientShap, which need no backward rule.")
    assert lines[2].startswith("'relevance' (LRP): LRP ")
    assert lines[3] == "This would run: methods={'ig': IntegratedGradients(n_steps=2)}, metrics={}."


def test_what_is_of_little_use_is_warned_of_and_done() -> None:
    with pytest.warns(UserWarning, match=r"'it' \(GuidedBackprop\): the model has no ReLU"):
        found = explain(Net(nn.GELU(), nn.GELU()), Probe(images()), {"it": m.GuidedBackprop()}, [])
    assert "it" in found.attributions


def test_an_examination_leaves_no_trace() -> None:
    model = Net(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(6), Noisy(always=False)), F.gelu)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, modules = torch.get_rng_state(), [(n, id(k), k.training) for n, k in model.named_modules()]
    doctor(model, {type(k).__name__: k for k in [*PLAIN, *GUIDED, *DEEPLIFT]}, Probe(images()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [(n, id(k), k.training) for n, k in model.named_modules()] == modules
    assert not any(len(k._forward_hooks) + len(k._forward_pre_hooks) for k in model.modules())
    assert model.act1[0].inplace


# -- networks that people use ------------------------------------------------------------------------------------------


def every_method(layer: str) -> dict[str, Method]:
    classes = {name: getattr(m, name) for name in m.__all__ if name != "AttentionRollout"}
    made = {name: c(layer=layer) if c.place != "input" else c() for name, c in classes.items()}
    return {**made, "ShapleyValues": m.ShapleyValues(feature_mask={"grid": 32})}


RULED = {name for name in m.__all__ if any(word in name for word in ("DeepLift", "Guided", "Deconvolution", "LRP"))}


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v3_small"])
def zoo(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    torch.manual_seed(0)
    model = warmed(getattr(torchvision.models, request.param)(num_classes=10))
    layer = {"resnet18": "layer3", "mobilenet_v3_small": "features.8"}[request.param]
    found = doctor(model, every_method(layer), Probe(torch.randn(4, 3, 64, 64)))
    return request.param, {verdict.method: verdict.state for verdict in found}


def test_methods_without_a_rule_are_fine_on_torchvisions_networks(zoo: tuple[str, dict[str, str]]) -> None:
    assert {state for name, state in zoo[1].items() if name not in RULED} == {"fine"}


def test_all_methods_but_lrp_are_right_on_resnet18(zoo: tuple[str, dict[str, str]]) -> None:
    name, states = zoo
    if name != "resnet18":
        assert (states["DeepLift"], states["GuidedBackprop"]) == ("fine", "fine")
        return
    assert {method for method, state in states.items() if state != "fine"} == {"LRP", "LayerLRP"}
