"""What structure hides: the doctor measures it, where each method goes, and accuses nobody else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from given import doctor
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method
from lightning_explain.core.verdict import Verdict
from repairing import Own

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


def judged(model: nn.Module, method: Method, *inputs: Tensor, **options: Any) -> Verdict:
    x = inputs or (IMAGES,)
    probe = Probe(x if len(x) > 1 else x[0], torch.zeros(len(x[0]), dtype=torch.long))
    (verdict,) = doctor(model.eval(), {"it": method}, probe, **options)
    return verdict


# -- samples that influence each other ------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.LSTM(5, 6, batch_first=batch_first), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0].mean(1))


class Causal(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=batch_first)
        self.batch_first, self.head = batch_first, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1 if self.batch_first else 0]
        mask = nn.Transformer.generate_square_subsequent_mask(size)
        return self.head(self.inner(x, src_mask=mask, is_causal=True).mean(1))


@pytest.mark.parametrize(
    ("build", "x"), [(Recurrent, torch.randn(4, 7, 5)), (Causal, torch.randn(4, 7, 6))], ids=["lstm", "transformer"]
)
def test_samples_that_are_taken_for_time_are_seen_though_the_first_feels_nothing(
    build: Callable[[bool], nn.Module], x: Tensor
) -> None:
    wrong, right = (judged(build(first), m.FeatureAblation(), x) for first in (False, True))
    assert (wrong.state, right.state) == ("refused", "fine")
    assert "samples influence each other" in wrong.reason
    assert "batch_first=True" in wrong.fix


class Padded(Causal):
    """Masks the last token as padding."""

    def __init__(self) -> None:
        super().__init__(batch_first=True)
        self.inner = nn.TransformerEncoder(self.inner, 1)

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1]).expand(len(x), -1) >= x.shape[1] - 1
        return self.head(self.inner(x, src_key_padding_mask=padding).mean(1))


def test_a_transformer_with_a_padding_mask_is_not_accused_of_random_numbers() -> None:
    assert judged(Padded(), m.FeatureAblation(), torch.randn(4, 7, 6)).state == "fine"


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_samples_of_whole_numbers_that_influence_each_other_are_seen(mixed: bool, count: int) -> None:
    torch.manual_seed(0)
    mean = (lambda z: z - 0.5 * z.mean(0, keepdim=True)) if mixed else (lambda z: z)
    model = nn.Sequential(nn.Embedding(9, 4), Function(lambda z: z.mean(1)), Function(mean), nn.Tanh(), nn.Linear(4, 3))
    tokens = torch.tensor([[3, 5, 1, 8, 2], [4, 4, 7, 1, 6]])[:count]
    assert judged(model, m.FeatureAblation(), tokens).state == ("refused" if mixed else "fine")


class FullAlone(nn.Linear):
    """Runs out of memory on a single sample."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise torch.OutOfMemoryError("the device is full")
        return super().forward(x)


def test_a_lack_of_memory_is_not_taken_for_samples_that_influence_each_other() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="the device is full"):
        judged(FullAlone(3, 2), m.Saliency(), torch.ones(4, 3))


class Rounded(nn.Module):
    """Each sample by itself, but computed otherwise where several are: rounding is all that differs."""

    def __init__(self, scale: float, mixed: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.scale, self.mixed = nn.Linear(6, 3), scale, mixed

    def forward(self, x: Tensor) -> Tensor:
        large = self.first(x) + self.scale
        large = large + self.scale - self.scale if len(x) > 1 else large
        return large - self.scale + self.mixed * x.mean(0).sum()


@pytest.mark.parametrize("scale", [1e5, 3e5, 1e6])
def test_rounding_is_not_taken_for_samples_that_influence_each_other(scale: float) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert judged(Rounded(scale, 0.0), m.FeatureAblation(), x).state == "fine"
    verdict = judged(Rounded(scale, 0.1), m.FeatureAblation(), x)
    assert verdict.state == "refused"
    assert "samples influence each other" in verdict.reason


# -- activations that are no calls of one ------------------------------------------------------------------------------


HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "a mask": lambda x: x * (x > 0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.0),
    "a function of one's own": Own.apply,
}


def gate(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def convolutions(first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), Function(first), nn.Conv2d(6, 6, 3), Function(second), nn.Conv2d(6, 6, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 3)),
    )


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("method", [m.GuidedBackprop(), m.Deconvolution(), m.GuidedGradCam("4")], ids=repr)
def test_a_relu_that_is_no_call_of_one_is_reported_to_methods_that_guide_relus(name: str, method: Method) -> None:
    verdict = judged(convolutions(F.relu, HIDDEN[name]), method)
    assert verdict.state == "warned"
    assert "passes its plain gradient" in verdict.reason
    assert judged(convolutions(F.relu, F.relu), method).state == "fine"
    assert judged(convolutions(F.relu, F.gelu), method).state == "fine"


def embedded(activation: Callable[[Tensor], Tensor]) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 16), Function(activation)),
        nn.Linear(16, 3),
    )


# A maximum with a constant is elementwise: DeepLIFT has its rule.
INEXACT = sorted(HIDDEN.keys() - {"maximum"})


def errors(model: nn.Module, method: Method, x: Tensor) -> Tensor:
    """The completeness errors of a method, relative to what the explained number changes by at most."""
    report = explain(model, Probe(x), {"it": method}, ["Completeness"], target=0)
    assert torch.allclose(
        report.completeness_errors["it"].abs().float(), report.scores["completeness_delta"]["it"].float(), atol=1e-6
    )
    return report.scores["completeness"]["it"]


@pytest.mark.filterwarnings("ignore:.*the map misses")
@pytest.mark.parametrize("name", INEXACT)
def test_layer_deeplift_is_measured_from_the_layer_on(name: str) -> None:
    method, tokens = m.LayerDeepLift("2"), torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    for model, inputs in ((convolutions(gate, HIDDEN[name]), IMAGES), (embedded(HIDDEN[name]), tokens)):
        with pytest.warns(UserWarning, match=r"'it': the map misses f\(x\) - f\(baseline\) on \d of 4 samples"):
            assert errors(model, method, inputs).max() > 1e-2
    for model, inputs in ((convolutions(gate, F.relu), IMAGES), (embedded(F.relu), tokens)):
        assert judged(model, method, inputs).state == "fine"
        assert errors(model, method, inputs).max() < 1e-4
    # What lies before the layer is not gone through.
    assert errors(convolutions(HIDDEN[name], F.relu), method, IMAGES).max() < 1e-4


@pytest.mark.parametrize("name", INEXACT)
def test_neuron_deeplift_is_measured_up_to_the_neuron(name: str) -> None:
    method = m.NeuronDeepLift("2", (0, 0, 0))
    with pytest.warns(UserWarning, match=r"'it': the map misses f\(x\) - f\(baseline\) on \d of 4 samples"):
        assert errors(convolutions(HIDDEN[name], gate), method, IMAGES).max() > 1e-2
    assert errors(convolutions(F.relu, gate), method, IMAGES).max() < 1e-4
    assert errors(convolutions(F.relu, HIDDEN[name]), method, IMAGES).max() < 1e-4


class Past(nn.Module):
    """An embedding beside which there is another way, or one that is the same for all samples."""

    def __init__(self, past: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places, self.more = nn.Embedding(20, 4), nn.Embedding(6, 4), nn.Embedding(20, 4)
        self.head, self.past = nn.Linear(24, 3), past

    def forward(self, x: Tensor) -> Tensor:
        here = self.tokens(x) + self.places(torch.arange(6)).expand(len(x), 6, 4)
        return self.head(F.gelu(here + self.more(x) if self.past else here).flatten(1))


def test_a_layer_that_is_bypassed_promises_no_sum() -> None:
    tokens = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    for past in (True, False):
        report = explain(Past(past), Probe(tokens), {"it": m.LayerDeepLift("tokens")}, [], target=0)
        assert ("it" in report.completeness_errors) != past


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x + self.inner(x)).flatten(1))


def test_a_branch_promises_no_sum_and_the_trunk_does() -> None:
    methods = {"inner": m.LayerDeepLift("inner"), "head": m.LayerDeepLift("head"), "input": m.DeepLift()}
    report = explain(Residual(), Probe(IMAGES), methods, [], target=0)
    assert report.completeness_errors.keys() == {"head", "input"}


# -- relevance ---------------------------------------------------------------------------------------------------------


class Skip(nn.Module):
    """A tensor goes into a layer and past it, in several ways."""

    def __init__(self, past: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.pool = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)
        self.deep, self.act2, self.side = (
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1, bias=False),
        )
        self.add, self.drop, self.past = Addition_Module(), nn.Dropout(), past
        self.head = nn.LazyLinear(3, bias=False)
        self(IMAGES)

    def forward(self, x: Tensor) -> Tensor:
        a = self.drop(self.pool(self.act(self.first(x))))
        if self.past == "cat":
            return self.head(torch.cat([a, self.act2(self.deep(a))], 1).flatten(1))
        if self.past == "layers":
            return self.head(torch.cat([self.side(a), self.act2(self.deep(a))], 1).flatten(1))
        if self.past == "activation":
            return self.head(self.add(a, self.deep(self.act2(a))).flatten(1))
        return self.head(self.add(a, self.deep(a)).flatten(1))


@pytest.mark.filterwarnings("ignore:Lazy modules|Setting|Input Tensor")
@pytest.mark.parametrize(
    ("past", "state"), [("cat", "refused"), ("activation", "refused"), ("layers", "fine"), ("addition", "fine")]
)
def test_lrp_is_refused_where_a_tensor_goes_into_a_layer_and_past_it(past: str, state: str) -> None:
    model = Skip(past)
    verdict = judged(model, m.LRP())
    assert verdict.state == state, verdict
    if state == "refused":
        assert "enters a layer and also bypasses it" in verdict.reason
        return
    # Without biases LRP-epsilon is the gradient times the input.
    found = explain(model, Probe(IMAGES), {"it": m.LRP(), "same": m.InputXGradient()}, [], target=0).attributions
    assert torch.allclose(found["it"], found["same"], atol=1e-4)


# -- gradients ---------------------------------------------------------------------------------------------------------

ALL_FORMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "softmax": (lambda z: z.softmax(1), True),
    "special.softmax": (lambda z: torch.special.softmax(z, 1), True),
    "the exponent of log_softmax": (lambda z: z.log_softmax(1).exp(), True),
    "some of a softmax": (lambda z: z.softmax(1)[:, :2], True),
    "in percent": (lambda z: z.softmax(1) * 100, True),
    "sigmoid of one": (lambda z: torch.sigmoid(z[:, :1]).squeeze(1), True),
    "expit": (torch.special.expit, True),
    "log_softmax": (lambda z: z.log_softmax(1), False),
    "a sigmoid inside": (lambda z: torch.sigmoid(z) @ torch.full((3, 3), 0.1), False),
    "logits that look like probabilities": (lambda z: z * 0.01 + 0.5, False),
}


@pytest.mark.parametrize("form", ALL_FORMS)
def test_only_outputs_that_are_probabilities_are_called_so(form: str) -> None:
    function, probabilities = ALL_FORMS[form]
    model = nn.Sequential(convolutions(F.relu, gate), Function(function))
    verdict = judged(model, m.Saliency())
    assert verdict.state == ("warned" if probabilities else "fine")
    assert ("the outputs are probabilities" in verdict.reason) == probabilities


class Two(nn.Module):
    def __init__(self, second: bool) -> None:
        super().__init__()
        self.first, self.second, self.reads = nn.Linear(6, 3), nn.Linear(5, 3), second

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.first(x) + (self.second(z) if self.reads else self.second(z).detach())


@pytest.mark.parametrize("method", [m.Saliency(), m.DeepLift(), m.NeuronGradient("first", 0)], ids=repr)
def test_an_input_that_is_not_read_is_named(method: Method) -> None:
    inputs = torch.randn(4, 6), torch.randn(4, 5)
    verdict = judged(Two(second=False), method, *inputs)
    assert verdict.state == "refused"
    assert verdict.reason.startswith("no gradient flows from ")
    assert verdict.reason.endswith(" back to inputs[1]")
    if not isinstance(method, m.NeuronGradient):
        assert judged(Two(second=True), method, *inputs).state == "fine"
    assert judged(Two(second=False), m.FeatureAblation(), *inputs).state == "fine"


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.table = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.table(torch.ones(len(x), 2))


def test_a_unit_that_depends_on_no_input_is_refused() -> None:
    verdict = judged(Constant(), m.NeuronGradient("table", 0), torch.randn(4, 6))
    assert verdict.state == "refused"
    assert "no gradient flows from the layer 'table' back to inputs[0]" in verdict.reason
    assert judged(Constant(), m.NeuronGradient("first", 0), torch.randn(4, 6)).state == "fine"


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.head = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.head(x), self.aside(x)


def test_conductance_through_a_unit_that_does_not_lead_to_the_output_is_refused() -> None:
    assert judged(Auxiliary(), m.NeuronConductance("aside", 0), torch.randn(4, 6)).state == "refused"
    assert judged(Auxiliary(), m.NeuronConductance("first", 0), torch.randn(4, 6)).state == "fine"
    assert judged(Auxiliary(), m.NeuronGradient("aside", 0), torch.randn(4, 6)).state == "fine"


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.block, self.head = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), None
        self.head, self.reentrant = nn.Linear(64, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.reentrant is None:
            return self.head(self.block(x).flatten(1))
        return self.head(checkpoint(self.block, x, use_reentrant=self.reentrant).flatten(1))


LAYERED = [
    *(m.LayerGradientXActivation("block.0"), m.LayerGradCam("block.0"), m.LayerConductance("block.0", n_steps=3)),
    *(m.LayerIntegratedGradients("block", n_steps=3), m.LayerDeepLift("first"), m.LayerActivation("block.1")),
    *(m.NeuronGradient("block.0", (0, 0, 0)), m.GuidedGradCam("block.0"), m.Saliency(), m.DeepLift()),
    *(m.LayerDeepLift("block.0"), m.LayerDeepLift("block.1", attribute_to_layer_input=True)),
    *(m.NeuronConductance("block.0", (0, 0, 0), n_steps=3), m.InternalInfluence("block.0")),
]


@pytest.mark.parametrize("method", LAYERED, ids=lambda method: type(method).__name__)
def test_what_is_computed_again_in_the_backward_pass_is_explained_as_ever(method: Method) -> None:
    found, expected = (
        explain(Checkpointed(reentrant), Probe(IMAGES), {"it": method}, [], target=0).attributions["it"]
        for reentrant in (False, None)
    )
    assert torch.equal(found, expected)


def test_several_layers_are_read_beside_deeplift_though_they_are_computed_again() -> None:
    methods = {"d": m.DeepLift(), "l": m.LayerDeepLift("block.0"), "o": m.LayerDeepLift("block.1")}
    found, expected = (
        explain(Checkpointed(reentrant), Probe(IMAGES), methods, [], target=0).attributions
        for reentrant in (False, None)
    )
    assert all(torch.equal(found[name], expected[name]) for name in methods)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("method", [m.Saliency(), m.DeepLift(), m.GuidedBackprop()], ids=repr)
def test_what_gives_no_gradient_to_inputs_is_refused(method: Method) -> None:
    verdict = judged(Checkpointed(reentrant=True), method)
    assert verdict.state == "refused"
    assert "use_reentrant=False" in verdict.fix


class Recalling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Linear(5, 5), nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.first(x))[0].mean(1))


SEQUENCES = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [name for name in m.__all__ if name.startswith(("Layer", "Neuron"))])
def test_what_the_doctor_says_of_a_layer_that_returns_a_tuple_in_a_tuple_is_what_happens(name: str) -> None:
    method = getattr(m, name)(layer="inner")
    verdict = judged(Recalling(), method, SEQUENCES)
    if verdict.state == "refused":
        assert verdict.fix
        return
    assert "it" in explain(Recalling(), Probe(SEQUENCES), {"it": method}, [], target=0).attributions


def test_a_callable_chooses_a_unit_of_what_such_a_layer_returns() -> None:
    method = m.NeuronGradient(layer="inner", neuron_selector=lambda returned: returned[0][:, 0, 0])
    assert judged(Recalling(), method, SEQUENCES).state == "canonized"
    found = explain(Recalling(), Probe(SEQUENCES), {"it": method}, [], target=0).attributions["it"]
    assert found[:, 0].abs().sum() > 0
    assert found[:, 1:].abs().sum() == 0


# -- what Captum hooks in its own order --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [m.LayerDeepLift, m.LayerDeepLiftShap])
@pytest.mark.parametrize("of_input", [True, False])
def test_layer_deeplift_of_what_goes_into_an_activation_is_the_same_alone_and_beside_deeplift(
    method: Any, of_input: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    it = method("1", attribute_to_layer_input=of_input)
    assert judged(model, it).state == "fine"
    alone = explain(model, Probe(IMAGES), {"it": it}, ["Completeness", "SensitivityMax"], target=0)
    beside = explain(model, Probe(IMAGES), {"it": it, "d": m.DeepLift()}, ["Completeness", "SensitivityMax"], target=0)
    assert torch.allclose(alone.attributions["it"], beside.attributions["it"], rtol=0, atol=1e-12)
    assert torch.allclose(alone.scores["sensitivity_max"]["it"], beside.scores["sensitivity_max"]["it"], atol=1e-9)
    assert alone.scores["completeness"]["it"].max() < 1e-9


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Doubled(nn.Module):
    """A part of it is known under two names."""

    def __init__(self, doubled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.around, self.head = Around(body), nn.Linear(144, 3)
        self.body = body if doubled else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.around(x).flatten(1))


@pytest.mark.parametrize(
    "method", [m.DeepLift(), m.LayerDeepLift("around.inner.0"), m.LRP(), m.GuidedBackprop()], ids=repr
)
def test_a_part_that_the_model_knows_by_two_names_is_explained_as_one(method: Method) -> None:
    found, expected = (
        explain(Doubled(doubled), Probe(IMAGES), {"it": method}, [], target=0).attributions["it"]
        for doubled in (True, False)
    )
    assert torch.equal(found, expected)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.two, self.head = Function(lambda x: Pair(x, x * 2)), nn.Linear(192, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.two(x)
        return self.head((found.first + found.second).flatten(1))


@pytest.mark.parametrize(
    "method",
    [m.LayerActivation, m.LayerGradientXActivation, m.LayerConductance, m.LayerDeepLift, m.LayerIntegratedGradients],
)
def test_fields_of_what_a_layer_returns_keep_their_names_or_it_is_refused(method: Any) -> None:
    by_captum = method in (m.LayerDeepLift, m.LayerIntegratedGradients)
    if by_captum:
        assert judged(Named(), method("two")).state == "refused"
        return
    found = explain(Named(), Probe(IMAGES), {"it": method("two")}, [], target=0).attributions["it"]
    assert isinstance(found, tuple)
    assert len(found) == 2


class ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0).square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2 * ctx.saved_tensors[0].clamp(min=0)


def test_a_function_whose_name_begins_like_relu_is_not_guided() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Function(ReluSquared.apply), nn.Flatten(), nn.Linear(144, 3))
    with pytest.warns(UserWarning, match="no ReLU"):
        found = explain(
            model, Probe(IMAGES), {"it": m.GuidedBackprop(), "plain": m.Saliency(abs=False)}, [], target=0
        ).attributions
    assert torch.equal(found["it"], found["plain"])


# -- why two passes differ ---------------------------------------------------------------------------------------------


class Keeping(nn.Module):
    """Adds what it kept of the pass before, in some way, to its output."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.inner, self.passes, self.earlier = how, nn.Linear(192, 3), 0, []
        self.cell = nn.GRUCell(3, 3)
        self.cell.state = None
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x.flatten(1))
        if self.how == "a counter":
            self.passes += 1
            return out * self.passes
        if self.how == "a list":
            self.earlier.append(out.detach())
            return out + len(self.earlier)
        if self.how == "a buffer":
            self.mean.add_(1 + out.detach().abs().mean(0))
            return out + self.mean
        if self.how == "a cell":
            state = out.detach() if self.cell.state is None else self.cell.state
            self.cell.state = self.cell(out.detach(), state.mean(0).expand_as(out) + 1)
            return out + self.cell.state
        _ELSEWHERE.append(1)
        return out + len(_ELSEWHERE)


_ELSEWHERE: list[int] = []


@pytest.mark.parametrize(
    ("how", "told"),
    {
        "a counter": "keeps what it computes for the next pass: 'passes' changes",
        "a list": "keeps what it computes for the next pass: 'earlier' changes",
        "a buffer": "keeps what it computes for the next pass: 'mean' changes",
        "a cell": "keeps what it computes for the next pass: 'cell.state' changes",
        "elsewhere": "no attribute of a module changes",
    }.items(),
)
def test_two_passes_that_differ_are_blamed_on_what_the_model_keeps(how: str, told: str) -> None:
    verdict = judged(Keeping(how), m.Saliency(abs=False))
    assert verdict.state == "refused"
    assert "two forward passes on the same samples in eval mode" in verdict.reason
    assert told in verdict.reason
    assert "random numbers, as" not in verdict.reason
    assert "starts afresh" in verdict.fix


@pytest.mark.parametrize("draw", [torch.rand_like, lambda x: x * random.random(), lambda x: x * np.random.rand()])
def test_two_passes_that_differ_are_blamed_on_random_numbers_of_any_generator(draw: Callable[[Tensor], Tensor]) -> None:
    net = nn.Linear(192, 3)
    verdict = judged(Function(lambda x: net(x.flatten(1)) * (1 + draw(x[:, 0, 0, :1]))), m.Saliency(abs=False))
    assert "the model draws random numbers" in verdict.reason


def test_a_model_without_relus_is_told_of_the_part_that_is_meant() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 3))
    parts = {
        "the model has no ReLU (its activations are gelu)": m.GuidedBackprop(),
        "what comes before the layer '0' has no ReLU (and no other activation)": m.NeuronGuidedBackprop("0", (0, 0, 0)),
        "what comes before the layer '1' has no ReLU (its activations are gelu)": m.NeuronDeconvolution("1", (0, 0, 0)),
    }
    for text, method in parts.items():
        assert text in judged(model, method).reason
