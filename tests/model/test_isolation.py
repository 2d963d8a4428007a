"""The isolation restores everything (invariant 1), and each state saver is needed: without it a check fails."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Samples
from lightning_explain.model.isolation import STATE_SAVERS, Run, explaining
from networks import DigitNet, samples, trained


class InterruptionError(Exception):
    """What goes wrong in the middle of an explanation."""


class Backbone(DigitNet):
    """A network whose stem stays in eval mode, and whose train() and eval() do more than set flags."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(trained().state_dict())
        self.stem[1].training = False
        self.requires_grad_(True)
        self.stem.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        raise AssertionError("train() or eval() of the user's module was called")


class Side(nn.Module):
    """A network with a side effect in its forward."""

    def __init__(self, effect: Callable[[Side], object]) -> None:
        super().__init__()
        self.net = trained()
        self.effect = effect
        self.gate = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(2))
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10)
        self.collected = torchmetrics.CatMetric()
        self.listed = [torch.zeros(2)]
        self.nested = {"a": [torch.zeros(2)], "b": (torch.zeros(2),)}
        self.numbers = {"calls": 0}
        self.recent: deque[int] = deque([1, 2], maxlen=2)
        self.names = {"first"}
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.effect(self)
        return self.net(x)


@contextmanager
def touched(model: nn.Module, fail: bool) -> Iterator[Run]:
    """One explanation; if it fails, then after everything that is done in it."""
    with suppress(InterruptionError), explaining(model) as run:
        yield run
        if fail:
            raise InterruptionError


def call(effect: Callable[[Side], object], fail: bool, model: Side | None = None) -> Side:
    """Runs a model with that side effect in an explanation."""
    model = model or Side(effect)
    with touched(model, fail) as run:
        run(model, samples()[0])
    return model


# -- one check for each thing that could be disturbed; the symptom is what it says when it is ----------------------


def flags(fail: bool) -> None:
    model = Backbone()
    before = [module.training for module in model.modules()]
    with touched(model, fail) as run:
        assert not any(module.training for module in model.modules()), "not in eval mode"
        run(model, samples()[0])
    assert [module.training for module in model.modules()] == before
    assert before.count(False) == 1


def batch_statistics(fail: bool) -> None:
    model = trained()
    with touched(model, fail) as run:
        many, few = run(model, samples()[0])[:2], run(model, samples()[0][:2])
        # How a sum is rounded may depend on the number of samples, on some processors; batch statistics move it by tenths.
        assert torch.allclose(many, few, rtol=1e-5, atol=1e-5), "samples depend on each other"


def gradients(fail: bool) -> None:
    def accumulate(model: Side) -> None:
        model.gate.requires_grad_(True)
        model.gate.square().sum().backward()

    model = Side(accumulate)
    model.net.stem.requires_grad_(False)
    model.gate.grad = torch.full((3,), 5.0)
    model.net.head.weight.grad = torch.ones_like(model.net.head.weight)
    grads = {name: p.grad for name, p in model.named_parameters()}
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    with touched(model, fail) as run:
        f = run(model, samples()[0].requires_grad_()).sum()
        f.backward()
    assert all(p.grad is grads[name] for name, p in model.named_parameters()), "another .grad"
    assert torch.equal(model.gate.grad, torch.full((3,), 5.0)), "another value in .grad"
    assert torch.equal(model.net.head.weight.grad, torch.ones_like(model.net.head.weight)), "another value in .grad"
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needed


def requires_grad(fail: bool) -> None:
    model = Backbone()
    before = [p.requires_grad for p in model.parameters()]
    with touched(model, fail):
        assert not any(p.requires_grad for p in model.parameters()), "a parameter needs a gradient"
    assert [p.requires_grad for p in model.parameters()] == before
    assert set(before) == {True, False}


def tensors_in_place(fail: bool) -> None:
    def change(model: Side) -> None:
        for tensor in (model.seen, model.listed[0], model.nested["a"][0], model.nested["b"][0]):
            tensor.add_(1)

    model = call(change, fail)
    for tensor in (model.seen, model.listed[0], model.nested["a"][0], model.nested["b"][0]):
        assert torch.equal(tensor, torch.zeros(2)), "a tensor was changed in place"


def saved_meanwhile(fail: bool) -> None:
    def change(model: Side) -> None:
        model.seen.add_(1)
        found.append(model.state_dict()["seen"].tolist())

    found: list[list[float]] = []
    call(change, fail)
    assert found == [[0, 0]], "a checkpoint holds what an explanation made of a buffer"


def weights_of_an_embedding(fail: bool) -> None:
    embedding = nn.Embedding(3, 4, max_norm=0.5)
    before = embedding.weight.detach().clone()
    with touched(embedding, fail) as run:
        run(embedding, torch.arange(3))
    assert torch.equal(embedding.weight, before), "weights were rescaled"


def unusual_tensors(fail: bool) -> None:
    def change(model: Side) -> None:
        model.sparse.mul_(2)
        model.queue.resize_(4).fill_(1)

    model = Side(change)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("queue", torch.zeros(2))
    model.register_buffer("missing", torch.tensor([torch.nan, 1.0]))
    model.register_buffer("expanded", torch.zeros(1).expand(4))
    model.register_buffer("planned", torch.empty(3, device="meta"))
    call(change, fail, model)
    assert torch.equal(model.sparse.to_dense(), torch.eye(3)), "a sparse tensor was changed"
    assert torch.equal(model.queue, torch.zeros(2))


def assignments(fail: bool) -> None:
    def change(model: Side) -> None:
        model.seen = model.seen + 1
        model.count += 1
        model.new = "attribute"
        model.register_buffer("another", torch.zeros(1))
        model.add_module("late", nn.Linear(1, 1))
        del model.names
        model.net.dropout = nn.Identity()

    before = {k: v for k, v in vars(Side(change)).items() if not k.startswith("_")}
    model = Side(change)
    seen, dropout = model.seen, model.net.dropout
    call(change, fail, model)
    assert model.count == 0, "an attribute was reassigned"
    assert not hasattr(model, "new")
    assert model.seen is seen
    assert torch.equal(seen, torch.zeros(2))
    assert set(before) == {k for k in vars(model) if not k.startswith("_")}
    assert list(dict(model.named_buffers())) == list(dict(Side(change).named_buffers()))
    assert list(dict(model.named_modules())) == list(dict(Side(change).named_modules()))
    assert model.net.dropout is dropout


def containers(fail: bool) -> None:
    def change(model: Side) -> None:
        model.numbers["calls"] += 1
        model.listed.append(torch.ones(1))
        model.nested["a"].clear()
        model.recent.append(3)
        model.names.add("second")

    model = call(change, fail)
    assert model.numbers == {"calls": 0}, "a container was changed"
    assert len(model.listed) == 1
    assert len(model.nested["a"]) == 1
    assert list(model.recent) == [1, 2]
    assert model.names == {"first"}


def containers_with_tensors_for_keys(fail: bool) -> None:
    def change(model: Side) -> None:
        model.steps[model.gate] = 1
        model.after["calls"] += 1
        model.visited.discard(model.gate)

    model = Side(change)
    # As a model has them whose optimizers step in the backward pass.
    model.steps, model.visited, model.after = (
        dict.fromkeys(model.parameters(), 0),
        set(model.parameters()),
        {"calls": 0},
    )
    call(change, fail, model)
    assert set(model.steps.values()) == {0}, "a container was changed"
    assert len(model.steps) == len(model.visited) == len(list(model.parameters()))
    assert model.after == {"calls": 0}


def attributes_in_slots(fail: bool) -> None:
    def change(model: Side) -> None:
        model.slotted.count += 1
        model.slotted.new = 1

    model = Side(change)
    model.slotted = Slotted()
    call(change, fail, model)
    assert model.slotted.count == 0, "a slot was changed"
    assert not hasattr(model.slotted, "new")


class Slotted:
    """An object without a dictionary of attributes."""

    __slots__ = ("count", "new")

    def __init__(self) -> None:
        self.count = 0


def what_cannot_be_put_back(fail: bool) -> None:
    model = Side(lambda model: next(model.stream))
    model.stream = itertools.count()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        call(model.effect, fail, model)
    assert ["'stream'" in str(warning.message) for warning in warned] == [True], "what moved is not reported"


def _states(metric: torchmetrics.Metric) -> dict[str, Any]:
    return copy.deepcopy({name: getattr(metric, name) for name in metric._defaults})


def metric_states(fail: bool) -> None:
    def update(model: Side) -> None:
        model.accuracy(torch.eye(10)[:3], torch.tensor([0, 1, 5]))
        model.collected.update(torch.ones(2))

    model = Side(update)
    model.accuracy.update(torch.eye(10)[:2], torch.tensor([0, 1]))
    model.collected.update(torch.zeros(3))
    metrics = (model.accuracy, model.collected)
    expected = [_states(metric) for metric in metrics]
    counts = [metric._update_count for metric in metrics]
    call(update, fail, model)
    assert [metric._update_count for metric in metrics] == counts, "a metric was updated"
    assert_equal([_states(metric) for metric in metrics], expected)
    assert model.collected.compute().tolist() == [0, 0, 0]


def leaked_hooks(fail: bool) -> None:
    def leak(model: Side) -> None:
        layer = model.net.head
        layer.register_forward_hook(lambda *a: None)
        layer.register_forward_hook(lambda *a, **k: None, with_kwargs=True, always_call=True)
        layer.register_forward_pre_hook(lambda *a: None)
        layer.register_full_backward_hook(lambda *a: None)
        layer.register_full_backward_pre_hook(lambda *a: None)
        kept.remove()

    model = Side(leak)
    ran: list[int] = []
    kept = model.net.head.register_forward_hook(lambda *a: ran.append(1))
    before = hooks(model)
    call(leak, fail, model)
    assert hooks(model) == before, "hooks are not what they were"
    assert sum(map(len, before)) > 0
    ran.clear()
    model.net(samples()[0])
    assert ran == [1]
    assert kept.id in model.net.head._forward_hooks


def hooks(model: nn.Module) -> list[list[int]]:
    """The ids of all hooks of all modules."""
    found = [value for module in model.modules() for name, value in vars(module).items() if "_hooks" in name]
    return [list(value) for value in found]


def generators(fail: bool) -> None:
    def draw(model: Side) -> None:
        random.random(), np.random.rand(), np.random.randn(), torch.rand(3)
        torch.rand(2, generator=model.own)

    model = Side(draw)
    model.own = torch.Generator().manual_seed(1)
    own = torch.rand(2, generator=torch.Generator().manual_seed(1))
    state = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    call(draw, fail, model)
    assert_equal((random.getstate(), np.random.get_state(), torch.get_rng_state()), state)
    assert torch.equal(torch.rand(2, generator=model.own), own)


def inplace_flags(fail: bool) -> None:
    model = trained()
    before = {name: vars(module)["inplace"] for name, module in model.named_modules() if hasattr(module, "inplace")}
    activations: list[Tensor] = []
    handle = model.stem[1].register_forward_hook(lambda module, a, output: activations.append(output))
    with touched(model, fail) as run:
        run(model, samples()[0])
    assert activations[0].min() < 0, "an activation was overwritten"
    assert {name: vars(module)["inplace"] for name, module in model.named_modules() if name in before} == before
    assert set(before.values()) == {True, False}
    handle.remove()


def inference_mode(fail: bool) -> None:
    model = trained()
    x = samples()[0]
    with torch.inference_mode():
        with touched(model, fail) as run:
            x = x.clone().requires_grad_()
            gradient = torch.autograd.grad(run(model, x)[:, 0].sum(), x)[0]
            assert gradient.abs().max() > 0
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


def states_made_in_inference_mode(fail: bool) -> None:
    def use(model: Side) -> None:
        model.accuracy.update(torch.eye(10)[:2], torch.tensor([0, 1]))
        model.listed[0].add_(1)
        x = torch.ones(2, requires_grad=True)
        torch.autograd.grad((x * model.table * model.seen).sum(), x)

    model = Side(use)
    with torch.inference_mode():
        model.accuracy.reset()
        model.table = torch.ones(2)
        model.listed[0] = torch.zeros(2)
        model.seen = torch.ones(2)
        table, seen, listed = model.table, model.seen, model.listed[0]
        state = model.accuracy.tp
        call(use, fail, model)
        assert model.table is table
        assert model.seen is seen
        assert model.listed[0] is listed
        assert model.accuracy.tp is state
        assert not listed.any()
        assert not state.any()


def recurrent(fail: bool) -> None:
    model = nn.LSTM(4, 3)
    assert torch.backends.cudnn.enabled
    with touched(model, fail) as run:
        assert not torch.backends.cudnn.enabled, "cuDNN has no backward pass through it"
        run(model, torch.ones(2, 1, 4))
    assert torch.backends.cudnn.enabled


def padded(fail: bool) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
    x, padding = torch.randn(2, 3, 4), torch.tensor([[False, False, True]] * 2)
    assert torch.backends.mha.get_fastpath_enabled()
    with touched(model, fail) as run:
        with_gradient = run(model, x.clone().requires_grad_(), None, padding).detach()
        with torch.no_grad():
            without = run(model, x, None, padding)
        assert torch.allclose(with_gradient, without, atol=1e-6), "other outputs without gradients"
    assert torch.backends.mha.get_fastpath_enabled()


def compiled(fail: bool) -> None:
    # Nothing that the isolation changes here makes dynamo compile again, which would see the hook by chance.
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval().requires_grad_(False)
    fast = torch.compile(model, backend="eager")
    fast(torch.ones(1, 2))
    seen: list[int] = []
    handle = model[0].register_forward_hook(lambda *a: seen.append(1))
    with touched(fast, fail) as run:
        run(fast, torch.ones(1, 2))
    assert seen == [1], "compiled code passed a hook by"
    handle.remove()


def sharded(fail: bool) -> None:
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("FSDP of this version of torch does not run on a CPU")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        fully_shard(model[0])
        fully_shard(model)
        for _ in range(2):
            with touched(model, fail) as run:
                run(model, torch.ones(1, 2))
            # Weights of the outermost module stay gathered after a forward.
            model(torch.ones(1, 2))
        model(torch.ones(1, 2)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    finally:
        distributed.destroy_process_group()


def assert_equal(ours: Any, theirs: Any) -> None:
    """Equal to the last bit, tensors and arrays included."""
    if isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        assert_equal(list(ours.values()), list(theirs.values()))
    elif isinstance(theirs, (Tensor, np.ndarray)):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), "another state"
    else:
        assert ours == theirs, "another state"


SYMPTOMS: list[tuple[str, Callable[[bool], None], str]] = [
    ("state_dict", saved_meanwhile, "a checkpoint holds"),
    ("random_state", generators, "another state"),
    ("grad_mode", inference_mode, "(does not require grad|inference)"),
    ("attributes", assignments, "an attribute was reassigned"),
    ("attributes", containers, "a container was changed"),
    ("attributes", containers_with_tensors_for_keys, "a container was changed"),
    ("attributes", metric_states, "a metric was updated"),
    ("slots", attributes_in_slots, "a slot was changed"),
    ("moved", what_cannot_be_put_back, "is not reported"),
    ("hooks", leaked_hooks, "hooks are not what they were"),
    ("usable", states_made_in_inference_mode, "[Ii]nference"),
    ("tensors", tensors_in_place, "a tensor was changed in place"),
    ("tensors", unusual_tensors, "a sparse tensor was changed"),
    ("tensors", weights_of_an_embedding, "weights were rescaled"),
    ("gradients", gradients, "another .*grad"),
    ("gradients", requires_grad, "a parameter needs a gradient"),
    ("modes", flags, "not in eval mode"),
    ("modes", batch_statistics, "samples depend on each other"),
    ("inplace", inplace_flags, "an activation was overwritten"),
    ("recurrent", recurrent, "cuDNN has no backward pass"),
    ("fast_path", padded, "other outputs without gradients"),
    ("sharded", sharded, "mixed torch.Tensor and DTensor"),
    ("eager", compiled, "compiled code passed a hook by"),
]
symptoms = pytest.mark.parametrize(
    ("saver", "check", "symptom"), SYMPTOMS, ids=[f"{k}-{c.__name__}" for k, c, _ in SYMPTOMS]
)


@pytest.mark.parametrize("fail", [False, True], ids=["straight", "interrupted"])
@symptoms
def test_everything_is_put_back(saver: str, check: Callable[[bool], None], symptom: str, fail: bool) -> None:
    check(fail)


class Stubborn(dict[str, int]):
    """A container that cannot be put back."""

    error: Exception

    def clear(self) -> None:
        raise self.error


def test_what_cannot_be_put_back_does_not_keep_the_rest_from_it() -> None:
    def change(model: Side) -> None:
        for container in (model.numbers, model.stubborn, model.after, model.last):
            container["more"] = 1
        model.seen.add_(1)

    model = Side(change)
    model.stubborn, model.after, model.last = Stubborn(), {"calls": 0}, Stubborn()
    model.stubborn.error, model.last.error = ValueError("put back later"), OSError("put back first")
    with pytest.raises(OSError, match="put back first"):
        call(change, False, model)
    assert model.numbers == model.after == {"calls": 0}
    assert not model.seen.any()
    assert model.training


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@symptoms
def test_without_its_saver_non_interference_fails(
    saver: str, check: Callable[[bool], None], symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STATE_SAVERS, saver, lambda model: nullcontext())
    with pytest.raises((AssertionError, RuntimeError), match=symptom):
        check(False)


def test_every_saver_has_a_symptom() -> None:
    assert {saver for saver, _, _ in SYMPTOMS} == set(STATE_SAVERS)


def test_the_forward_context_is_around_the_forward_and_not_around_the_backward() -> None:
    model, inside = trained(), []
    x = samples()[0].requires_grad_()
    with explaining(model, lambda: torch.autocast("cpu", torch.bfloat16)) as run:
        output = run(model, x)
        output.register_hook(lambda gradient: inside.append(torch.is_autocast_enabled("cpu")))
        assert not torch.is_autocast_enabled("cpu")
        output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert inside == [False]


# Dynamo asks activations for their gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("methods", [{"it": m.GuidedBackprop()}, {"it": m.LayerGradCam("block.conv2")}])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("how", ["whole", "in place", "a part"])
def test_a_compiled_module_that_has_run_is_explained_as_the_plain_one(
    methods: dict[str, m.GuidedBackprop], train: bool, how: str
) -> None:
    x, y = samples()
    plain = explain(trained(), Probe(x, y), methods, []).attributions["it"]
    model: Any = trained().train(train)
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model.block = torch.compile(model.block, backend="eager")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model(x)
    model.load_state_dict(state)
    found = explain(model, Probe(x, y), methods, []).attributions["it"]
    assert torch.equal(found, plain)


class Overwriting(DigitNet):
    """Changes what it is given."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x.mul_(2).add_(1)
        if scale is not None:
            x.mul_(scale.mul_(3))
        return super().forward(x)


def test_a_model_that_changes_its_input_leaves_the_probe_as_it_is() -> None:
    requests = [m.Saliency(abs=False), m.Occlusion(), m.IntegratedGradients(n_steps=3)]
    x, y = samples()
    scale = torch.ones(len(x), 1, 1, 1)
    probe = Probe(x, y, forward_args=(scale,))
    model = Overwriting()
    model.load_state_dict(trained().state_dict())
    first = explain(model, probe, requests)
    assert torch.equal(x, samples()[0])
    assert torch.equal(y, samples()[1])
    assert torch.equal(scale, torch.ones(len(x), 1, 1, 1))
    assert not x.requires_grad
    second = explain(model, probe, requests)
    for name, value in first.attributions.items():
        assert torch.equal(value, second.attributions[name])


class Careless(Method):
    """A method of a user that writes into its samples."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Tensor:
        for x in samples.inputs:
            x.requires_grad_(False).zero_()
        return torch.zeros_like(samples.inputs[0])


@pytest.mark.parametrize("limit", [2, 32])
def test_a_method_that_changes_its_samples_disturbs_neither_the_probe_nor_its_neighbours(limit: int) -> None:
    x, y = samples()
    alone = explain(trained(), Probe(x, y), [m.Saliency(abs=False)], [], max_examples_per_pass=limit)
    both = explain(
        trained(),
        Probe(x, y),
        {"careless": Careless(), "saliency": m.Saliency(abs=False)},
        [],
        max_examples_per_pass=limit,
    )
    assert torch.equal(x, samples()[0])
    assert torch.equal(both.attributions["saliency"], alone.attributions["saliency"])


def test_hooks_of_parameters_are_kept_and_not_called() -> None:
    model, called = trained(), []
    model.head.weight.register_hook(lambda gradient: called.append("gradient"))
    model.head.weight.register_post_accumulate_grad_hook(lambda parameter: called.append("accumulated"))
    x, y = samples()
    explain(model, Probe(x, y), [m.IntegratedGradients(n_steps=3)], [])
    assert called == []
    model(x).sum().backward()
    assert called == ["gradient", "accumulated"]


class SaysEmpty(dict[str, int]):
    """A mapping of a user's with a length of its own."""

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("held", "change"),
    [
        ({}, lambda held: held.update(a=1)),
        (OrderedDict(), lambda held: held.update(a=1)),
        ([], lambda held: held.append(1)),
        (deque(), lambda held: held.append(1)),
        (set(), lambda held: held.add(1)),
        ({"a": 1, "b": 2}, lambda held: held.update(a=3)),
        ({"a": 1, "b": 2}, lambda held: held.update(a=held.pop("a"))),
        ([1, 2], lambda held: held.reverse()),
        (SaysEmpty(a=1), lambda held: held.update(b=2)),
    ],
)
def test_containers_hold_what_they_held_in_its_order(held: Any, change: Callable[[Any], object]) -> None:
    model = Side(lambda side: change(side.held))
    model.held, before = held, copy.copy(list(dict.items(held)) if isinstance(held, dict) else list(held))
    explain(model, Probe(*samples(2)), [m.Saliency(abs=False)], [], target=0)
    assert (list(dict.items(held)) if isinstance(held, dict) else list(held)) == before
    assert model.held is held
