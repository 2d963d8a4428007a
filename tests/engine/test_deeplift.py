"""DeepLIFT's rule equals Captum on a copy repaired by hand, adds up, and treats every sample as if it were alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import captum.attr as ca
import pytest
import torch
import torchvision
from captum.attr._core import deep_lift
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from comparing import distance
from given import doctor
from lightning_explain import Probe, explain, load_reports
from lightning_explain import methods as m
from lightning_explain.core.contracts import Method
from lightning_explain.store.report_files import save_report
from repairing import Copy, warmed

# Captum announces that it sets hooks.
pytestmark = pytest.mark.filterwarnings("ignore:Setting|Input Tensor")

Function_ = Callable[[Tensor], Tensor]


# -- the oracle: Captum on a copy repaired by hand ---------------------------------------------------------------------


class Largest(nn.Module):
    """A maximum over a dimension as a module."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.dim)


def places(module: Any, x: Tensor) -> tuple[Tensor, int]:
    """Where each maximum comes from, as an index into the dimensions from the second number on, taken as one."""
    if isinstance(module, Largest):
        assert module.dim == 2
        return x.argmax(2), 2
    name = type(module).__name__.replace("MaxPool", "_max_pool").lower().lstrip("_")
    pool = getattr(F, name)
    if name.startswith("adaptive"):
        return pool(x, module.output_size, return_indices=True)[1], 2
    options = {k: getattr(module, k) for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
    return pool(x, **options, return_indices=True)[1], 2


def by_places(
    module: nn.Module, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """Captum's rule for maxima with ``grad_input`` in place of ``grad_input[0]``, and with overlapping windows added."""
    (x, b), (out, out_b) = inputs.chunk(2), outputs.chunk(2)
    where, first = places(module, inputs)
    top = torch.maximum(out, out_b)
    parts = grad_output * torch.cat([top - out_b, out - top])
    if isinstance(module, Largest):
        placed = torch.zeros_like(inputs).scatter_add(2, where.unsqueeze(2), parts.unsqueeze(2))
    else:
        flat = torch.zeros_like(inputs).flatten(first)
        placed = flat.scatter_add(2, where.flatten(first), parts.flatten(first)).reshape(inputs.shape)
    delta = torch.cat([x - b] * 2)
    return torch.where(delta.abs() < eps, grad_input, torch.cat([sum(placed.chunk(2))] * 2) / delta)


@contextmanager
def captum_with_all_rules() -> Iterator[None]:
    activations = (nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.SELU, nn.Mish, nn.PReLU)
    pools = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
    rules = {**dict.fromkeys(activations, deep_lift.nonlinear), **dict.fromkeys((*pools, Largest), by_places)}
    with patch.dict(deep_lift.SUPPORTED_NON_LINEAR, rules):
        yield


class Net(nn.Module):
    """Convolution, activation, maximum, convolution, the same activation, a linear layer."""

    def __init__(self, activations: list[Function_], pool: Function_, size: tuple[int, ...] = (11, 9)) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(size)]
        self.first, self.second = convolution(2, 3, 2), convolution(3, 4, 1)
        self.activations, self.pool = activations, pool
        for i, module in enumerate([*activations, pool]):
            if isinstance(module, nn.Module):
                self.add_module(f"part{i}", module)
        self.head = nn.LazyLinear(3)
        with torch.no_grad():
            self(torch.randn(2, 2, *size))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.activations
        x = self.pool(one(self.first(x)))
        x = two(self.second(x)) if x.ndim == self.first.weight.ndim else two(x)
        return self.head(x.flatten(1))


def separate(module: nn.Module) -> nn.Module:
    return nn.Sequential(Copy(), module)


def pair(
    forms: list[Function_], modules: list[nn.Module], pool: Function_, pool_module: nn.Module, size: tuple[int, ...]
) -> tuple[nn.Module, nn.Module]:
    """A network and the copy that someone who calls Captum must write; weights are equal."""
    return Net(forms, pool, size).eval(), Net([*map(separate, modules)], separate(pool_module), size).eval()


def check_equal(written: nn.Module, by_hand: nn.Module, size: tuple[int, ...]) -> None:
    """Equal to Captum's to 1e-5 in float32 and to 1e-9 in float64, with a baseline for each sample."""
    x, b = (torch.randn(5, 2, *size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    y = torch.tensor([0, 1, 2, 0, 1])
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-9)):
        report = explain(
            written.to(dtype), Probe(x.to(dtype), y), {"it": m.DeepLift(baselines=b.to(dtype))}, [], "label"
        )
        with captum_with_all_rules():
            expected = ca.DeepLift(by_hand.to(dtype)).attribute(x.to(dtype), b.to(dtype), target=y)
        assert distance(report.attributions["it"], expected) <= limit
        assert report.completeness_errors["it"].abs().max() <= limit


REUSED = nn.ReLU()


class MyReLU(nn.ReLU):
    """A subclass, which Captum passes over."""


def hooked() -> nn.Module:
    module = nn.GELU()
    module.register_full_backward_hook(lambda module, inputs, outputs: None)
    return module


# How two activations are written, and what they are as modules.
FORMS: dict[str, tuple[Callable[[], list[Function_]], Callable[[], list[nn.Module]]]] = {
    "functions": (lambda: [F.relu, torch.tanh], lambda: [nn.ReLU(), nn.Tanh()]),
    "methods": (lambda: [Tensor.relu, Tensor.sigmoid], lambda: [nn.ReLU(), nn.Sigmoid()]),
    "one module twice": (lambda: [REUSED, REUSED], lambda: [nn.ReLU(), nn.ReLU()]),
    "in place": (lambda: [lambda x: F.relu(x, inplace=True), Tensor.tanh_], lambda: [nn.ReLU(), nn.Tanh()]),
    "in place by position": (
        lambda: [lambda x: F.leaky_relu(x, 0.2, True), lambda x: F.elu(x, 1.0, True)],
        lambda: [nn.LeakyReLU(0.2), nn.ELU()],
    ),
    "in place, its value unused": (
        lambda: [lambda x: (x.relu_(), x)[1], lambda x: (F.silu(x, inplace=True), x)[1]],
        lambda: [nn.ReLU(), nn.SiLU()],
    ),
    "modules in place": (
        lambda: [nn.ReLU(inplace=True), nn.Hardswish(inplace=True)],
        lambda: [nn.ReLU(), nn.Hardswish()],
    ),
    "subclasses": (lambda: [MyReLU(), MyReLU()], lambda: [nn.ReLU(), nn.ReLU()]),
    "a module with a hook": (lambda: [hooked(), nn.ReLU()], lambda: [nn.GELU(), nn.ReLU()]),
    "clamp": (lambda: [lambda x: x.clamp(min=0), lambda x: torch.clamp(x, 0, 6)], lambda: [nn.ReLU(), nn.ReLU6()]),
    "bounds": (
        lambda: [lambda x: torch.maximum(x, torch.zeros(())), lambda x: x.clip(-0.1, 0.2)],
        lambda: [nn.ReLU(), nn.Hardtanh(-0.1, 0.2)],
    ),
    "by keyword": (
        lambda: [lambda x: F.gelu(input=x, approximate="tanh"), lambda x: F.hardsigmoid(input=x)],
        lambda: [nn.GELU("tanh"), nn.Hardsigmoid()],
    ),
    "with a weight": (
        lambda: [lambda x: F.prelu(x, x.new_tensor([0.25])), F.mish],
        lambda: [nn.PReLU(), nn.Mish()],
    ),
    "directly beside each other": (
        lambda: [lambda x: F.relu(torch.tanh(x)), F.selu],
        lambda: [nn.Sequential(nn.Tanh(), Copy(), nn.ReLU()), nn.SELU()],
    ),
    "into a view": (
        lambda: [lambda x: (x[:, :2].relu_(), x)[1], F.softplus],
        lambda: [FirstTwo(), nn.Softplus()],
    ),
}


class FirstTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.relu(x[:, :2].clone()), x[:, 2:]], 1)


@pytest.mark.parametrize("form", FORMS)
def test_activations_in_every_form_equal_captum_on_the_copy_repaired_by_hand(form: str) -> None:
    forms, modules = FORMS[form]
    check_equal(*pair(forms(), modules(), lambda x: F.max_pool2d(x, 2), nn.MaxPool2d(2), (11, 9)), (11, 9))


POOLS: dict[str, tuple[Function_, nn.Module, tuple[int, ...]]] = {
    "1d": (nn.MaxPool1d(2), nn.MaxPool1d(2), (13,)),
    "1d, overlapping": (lambda x: F.max_pool1d(x, 3, 1), nn.MaxPool1d(3, 1), (13,)),
    "1d, padded": (lambda x: F.max_pool1d(x, 3, 2, padding=1), nn.MaxPool1d(3, 2, padding=1), (13,)),
    "1d, dilated": (lambda x: torch.max_pool1d(x, 2, 1, 0, 3), nn.MaxPool1d(2, 1, dilation=3), (13,)),
    "1d, with indices": (lambda x: F.max_pool1d(x, 2, return_indices=True)[0], nn.MaxPool1d(2), (13,)),
    "2d": (nn.MaxPool2d(2), nn.MaxPool2d(2), (11, 9)),
    "2d, overlapping": (nn.MaxPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2, padding=1), (11, 9)),
    "2d, dilated": (nn.MaxPool2d(2, 1, dilation=2), nn.MaxPool2d(2, 1, dilation=2), (11, 9)),
    "2d, ceil": (
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        (11, 9),
    ),
    "2d, oblong": (nn.MaxPool2d((2, 3), (1, 2), (1, 1)), nn.MaxPool2d((2, 3), (1, 2), (1, 1)), (11, 9)),
    "2d, with indices": (lambda x: F.max_pool2d_with_indices(x, 3, 2)[0], nn.MaxPool2d(3, 2), (11, 9)),
    "2d, one after the other": (
        lambda x: F.max_pool2d(F.max_pool2d(x, 2, 1), 2, 1),
        nn.Sequential(nn.MaxPool2d(2, 1), Copy(), nn.MaxPool2d(2, 1)),
        (11, 9),
    ),
    "3d": (nn.MaxPool3d(2, 1), nn.MaxPool3d(2, 1), (5, 6, 4)),
    "3d, padded": (lambda x: F.max_pool3d(x, 3, 2, 1), nn.MaxPool3d(3, 2, 1), (5, 6, 4)),
    "adaptive 1d": (nn.AdaptiveMaxPool1d(5), nn.AdaptiveMaxPool1d(5), (13,)),
    "adaptive 2d": (lambda x: F.adaptive_max_pool2d(x, (4, 3)), nn.AdaptiveMaxPool2d((4, 3)), (11, 9)),
    "adaptive 2d, with indices": (
        lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0],
        nn.AdaptiveMaxPool2d(3),
        (11, 9),
    ),
    "adaptive 3d": (nn.AdaptiveMaxPool3d(3), nn.AdaptiveMaxPool3d(3), (5, 6, 4)),
    "amax": (lambda x: x.amax(2), Largest(2), (11, 9)),
    "max": (lambda x: torch.max(x, 2)[0], Largest(2), (11, 9)),
    "max as a method": (lambda x: x.max(dim=2).values, Largest(2), (11, 9)),
    "a minimum": (lambda x: -(-x).min(2).values, Largest(2), (11, 9)),
}


@pytest.mark.parametrize("name", POOLS)
def test_every_maximum_equals_captum_on_the_copy_repaired_by_hand(name: str) -> None:
    pool, module, size = POOLS[name]
    written, by_hand = pair([F.relu, F.gelu], [nn.ReLU(), nn.GELU()], pool, module, size)
    check_equal(written, by_hand, size)


# -- every sample by itself --------------------------------------------------------------------------------------------


def maps(model: nn.Module, x: Tensor, method: Method, ids: Tensor, limit: int | str = "auto") -> Tensor:
    report = explain(model, Probe(x[ids], ids=ids), {"it": method}, [], target=0, max_examples_per_pass=limit)
    return report.attributions["it"]


class Steps(nn.Module):
    """Two whole numbers, whose differences are often none, into a maximum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Conv1d(1, 1, 2, bias=False), nn.Linear(4, 2)
        self.first.weight.data = torch.tensor([[[1.0, -1.0]]])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool1d(self.first(x), 2).flatten(1))


@pytest.mark.parametrize("limit", [1, 2, 5, "auto"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Steps, (1, 9)),
        (lambda: Net([F.relu, F.relu], nn.MaxPool2d(2)), (2, 11, 9)),
        (lambda: Net([F.relu6, torch.abs], lambda x: x.amax(3)), (2, 11, 9)),
    ],
)
@pytest.mark.parametrize("method", [m.DeepLift(), m.DeepLiftShap(baselines=("zero",))], ids=repr)
def test_a_sample_alone_is_as_among_seven_in_any_order_and_chunk(
    build: Callable[[], nn.Module], shape: tuple[int, ...], limit: int | str, method: Method
) -> None:
    model = build().double().eval()
    x = torch.randint(-1, 3, (7, *shape), generator=torch.Generator().manual_seed(0)).double()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    together, mixed = maps(model, x, method, torch.arange(7), limit), maps(model, x, method, order, limit)
    alone = torch.cat([maps(model, x, method, torch.tensor([i])) for i in range(7)])
    scale = alone.abs().max()
    assert (together - alone).abs().max() <= 1e-10 * scale
    assert (mixed - alone[order]).abs().max() <= 1e-10 * scale


def test_a_softmax_at_the_output_is_captums_of_each_sample_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softmax(1)).double()
    x, y = torch.randn(4, 6).double(), torch.tensor([0, 3, 1, 1])
    with pytest.warns(UserWarning, match="'it': the map misses"):
        found = explain(model, Probe(x, y), {"it": m.DeepLift()}, [], target="label").attributions["it"]
    expected = [ca.DeepLift(model).attribute(x[i : i + 1], target=y[i : i + 1]) for i in range(4)]
    assert distance(found, torch.cat(expected)) <= 1e-9


# -- networks that people use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("resnet18", 1e-5), ("densenet121", 1e-5), ("vgg11_bn", 3e-5)])
def test_maps_of_torchvisions_networks_add_up(name: str, limit: float) -> None:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    report = explain(model, Probe(x), {"it": m.DeepLift()}, ["Completeness"], target=0)
    assert report.scores["completeness"]["it"].max() <= limit


def test_what_mobilenets_squeeze_and_excitation_misses_is_reported() -> None:
    torch.manual_seed(0)
    model = warmed(torchvision.models.mobilenet_v3_small(num_classes=10))
    x = torch.randn(2, 3, 64, 64)
    with pytest.warns(UserWarning, match=r"'it': the map misses f\(x\) - f\(baseline\) on 2 of 2 samples, at most by "):
        report = explain(model, Probe(x), {"it": m.DeepLift()}, ["Completeness"], target=0)
    found, score = report.completeness_errors["it"].abs(), report.scores["completeness_delta"]["it"]
    assert torch.allclose(found, score.double(), rtol=1e-3)


# -- what is reported, and stored --------------------------------------------------------------------------------------


class Bounded(nn.Module):
    """A ReLU6 written as a condition: a dim sample does not show it."""

    def __init__(self, bound: Function_) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.bound = nn.Linear(6, 8), nn.Linear(8, 2), bound

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bound(F.relu(self.first(x))))


SIX = torch.tensor(6.0)


@pytest.mark.parametrize(
    "bound",
    [
        lambda h: torch.where(h > 6, SIX, h),
        lambda h: h.masked_fill(h > 6, 6.0),
        lambda h: h - (h - 6) * (h > 6),
    ],
)
def test_bright_samples_behind_dim_ones_are_reported(bound: Function_) -> None:
    model, x = Bounded(bound), torch.cat([torch.rand(3, 6) * 0.1, torch.rand(4, 6) * 60])
    with pytest.warns(UserWarning, match=r"'it': the map misses f\(x\) - f\(baseline\) on \d of 7 samples") as caught:
        report = explain(model, Probe(x), {"it": m.DeepLift()}, [], target=0)
    assert len(caught) == 1
    errors = report.completeness_errors["it"]
    assert errors[:3].abs().max() < 1e-6
    assert errors[3:].abs().max() > 0.1


class Mine(m.DeepLift):
    """A user's subclass."""


class MineAtLayer(m.LayerDeepLift):
    """A user's subclass."""


class MineOfMany(m.DeepLiftShap):
    """A user's subclass."""


@pytest.mark.parametrize("method", [Mine(), MineAtLayer("first"), MineOfMany()], ids=repr)
def test_a_subclass_is_the_method_that_it_is(method: Method) -> None:
    x = torch.randn(4, 6)
    report = explain(Bounded(torch.tanh), Probe(x), {"it": method}, [], target=0)
    assert report.completeness_errors["it"].abs().max() < 1e-6
    (verdict,) = doctor(Bounded(lambda h: h.softmax(1)), {"it": method}, Probe(x), target=0)
    assert verdict.state == "refused"


def test_errors_are_stored_and_files_without_them_still_load(tmp_path: Path) -> None:
    report = explain(Bounded(torch.tanh), Probe(torch.randn(4, 6)), {"it": m.DeepLift(), "plain": m.Saliency()}, [])
    path = save_report(report, tmp_path / "new.safetensors")
    assert torch.equal(load_reports(path)[0].completeness_errors["it"], report.completeness_errors["it"])
    with safe_open(path, framework="pt") as file:
        (key, text), tensors = next(iter(file.metadata().items())), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    content = json.loads(text)
    del content["completeness_errors"]
    tensors.pop("completeness_errors/it")
    save_file(tensors, tmp_path / "old.safetensors", metadata={key: json.dumps(content)})
    assert load_reports(tmp_path / "old.safetensors")[0].completeness_errors == {}


# -- what the model does besides ---------------------------------------------------------------------------------------


class Recomputed(nn.Module):
    """A part that is a function and runs again in the backward pass."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head, self.again = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.LazyLinear(3), again
        with torch.no_grad():
            self(torch.randn(2, 2, 11, 9))

    def part(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.gelu(self.second(torch.tanh(x))).relu_(), 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = checkpoint(self.part, x, use_reentrant=False) if self.again else self.part(x)
        return self.head(F.softplus(x).flatten(1))


@pytest.mark.parametrize("method", [m.DeepLift(), m.LayerDeepLift("first"), m.LayerDeepLift("second")], ids=repr)
def test_the_rule_holds_where_checkpointing_runs_functions_again(method: Method) -> None:
    x = torch.randn(3, 2, 11, 9)
    found, expected = (explain(Recomputed(a), Probe(x), {"it": method}, [], target=0) for a in (True, False))
    assert torch.equal(found.attributions["it"], expected.attributions["it"])
    assert found.completeness_errors["it"].abs().max() < 1e-6


class Energy(nn.Module):
    """Takes a gradient in its own forward."""

    def __init__(self, relu: Function_) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.relu = nn.Linear(6, 8), nn.Linear(6, 2), relu

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            (force,) = torch.autograd.grad(self.relu(self.first(x)).sum(), x, create_graph=True)
        return self.head(force * x)


@pytest.mark.parametrize("relu", [torch.tanh, F.softplus, lambda h: h.sigmoid().square()])
def test_a_forward_that_takes_gradients_refuses_deeplift_alone(relu: Function_) -> None:
    methods = {"ig": m.IntegratedGradients(n_steps=3), "lift": m.DeepLift()}
    found = doctor(Energy(relu), methods, Probe(torch.randn(4, 6)), target=0)
    assert [v.state for v in found] == ["fine", "refused"]
    assert "does not hold for a forward that takes gradients itself" in found[1].reason


class Branching(nn.Module):
    """A layer that returns two tensors, of which one is read; one of them may be a step to the other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        inner = {"cell": nn.LSTMCell(5, 5), "two": Two()}
        self.first, self.inner, self.head, self.kind = nn.Linear(5, 5), inner[kind], nn.Linear(5, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "two":
            return self.head(self.inner(x)[0].mean(1))
        return self.head(self.inner(x[:, 0])[0])


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.gelu(x), x.sum(2)


@pytest.mark.filterwarnings("ignore:'it'. the map misses")
@pytest.mark.parametrize("kind", ["cell", "two"])
@pytest.mark.parametrize("method", [m.LayerDeepLift("inner"), m.LayerGradientXActivation("inner")], ids=repr)
def test_an_output_of_a_layer_that_nobody_reads_gets_zeros(kind: str, method: Method) -> None:
    found = explain(Branching(kind), Probe(torch.randn(4, 7, 5)), {"it": method}, [], target=0).attributions["it"]
    assert len(found) == 2
    assert found[0].abs().sum() > 0
    assert found[1].abs().sum() == 0


@pytest.mark.parametrize("how", ["mixed", "true"])
def test_verdicts_in_16_bits_are_those_in_float32(how: str) -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        middle = [
            nn.GELU(),
            nn.Softmax(1),
            nn.GroupNorm(2, 4),
            nn.MaxPool2d(2, 1),
            nn.Hardswish(True),
            nn.BatchNorm2d(4),
        ]
        layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), middle[seed % 6], nn.Conv2d(4, 4, 2), nn.SiLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.LazyLinear(3))

    methods = {"input": m.DeepLift(), "layer": m.LayerDeepLift("3"), "neuron": m.NeuronDeepLift("3", (0, 0, 0))}
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in range(36):
        model = build(seed)
        model(x)
        expected = [(v.state, v.reason) for v in doctor(model, methods, Probe(x), target=0)]
        reduced = model.bfloat16() if how == "true" else model
        context = nullcontext if how == "true" else lambda: torch.autocast("cpu", torch.bfloat16)
        found = doctor(reduced, methods, Probe(x), target=0, forward_context=context)
        assert [(v.state, v.reason) for v in found] == expected, seed


def test_weights_of_16_bits_are_explained_in_float32() -> None:
    model, x = Net([F.relu, F.gelu], nn.MaxPool2d(2)).bfloat16(), torch.randn(4, 2, 11, 9).bfloat16()
    precise = Net([F.relu, F.gelu], nn.MaxPool2d(2))
    precise.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    methods = {"it": m.DeepLift(), "layer": m.LayerDeepLift("second"), "neuron": m.NeuronDeepLift("second", (0, 0, 0))}
    found = explain(model, Probe(x), methods, [], target=0)
    expected = explain(precise, Probe(x.float()), methods, [], target=0)
    for name in methods:
        assert distance(found.attributions[name], expected.attributions[name]) <= 1e-2, name
    assert found.completeness_errors["it"].abs().max() < 1e-5
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
