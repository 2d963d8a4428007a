"""``state_dict()`` at any moment of an explanation is the training's (invariant 1): a checkpoint may be saved from a thread or a signal."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core import signals
from lightning_explain.model.isolation import STATE_SAVERS, explaining
from networks import DigitNet, samples, trained


class Moving(nn.Module):
    """Everything that a checkpoint holds moves in its forward, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()
        self.register_buffer("added", torch.zeros(2))
        self.register_buffer("assigned", torch.zeros(2))
        self.register_buffer("removed", torch.zeros(2))
        self.register_buffer("large", torch.zeros(6))
        self.register_buffer("part", self.large[2:4])
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.gate = nn.Parameter(torch.ones(1))
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10, average="micro")
        self.accuracy.persistent(True)

    def forward(self, x: Tensor) -> Tensor:
        self.added.add_(1)
        self.part.add_(1)
        self.passing.add_(1)
        self.assigned = self.assigned + 1
        self.removed = None
        self.gate = nn.Parameter(self.gate + 1)
        self.register_buffer("new", torch.ones(1))
        self.extra = nn.Linear(1, 1)
        self.accuracy.update(torch.eye(10)[:2], torch.tensor([0, 1]))
        found: Tensor = self.net(x)
        NOTED.append(state(self))
        return found


NOTED: list[dict[str, Any]] = []


def state(model: nn.Module) -> dict[str, Any]:
    """A checkpoint of the model."""
    held = model.state_dict()
    with torch._C.DisableTorchFunction():
        return {key: value.clone() for key, value in held.items()}


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys(), "other keys"
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs), "other values"


def explained(model: nn.Module) -> None:
    x, y = samples()
    methods = {"ig": m.IntegratedGradients(n_steps=2), "lift": m.DeepLift(), "saliency": m.Saliency(abs=False)}
    explain(model, Probe(x[:3], y[:3]), methods, [q.Randomization(n_layers=2, n_draws=1)])


def test_the_state_dict_is_the_training_s_at_every_forward_of_an_explanation() -> None:
    model = nn.ModuleDict({"whole": Moving()})
    model.forward = model["whole"].forward
    before = state(model)
    NOTED.clear()
    explained(model)
    assert len(NOTED) > 12
    for found in NOTED:
        assert_alike({f"whole.{key}": value for key, value in found.items()}, before)
    assert_alike(state(model), before)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_weights_are_never_others_while_they_are_randomized(precision: torch.dtype) -> None:
    """Not only in the state: whoever reads parameters, such as a thread that averages weights, finds the training's."""
    model = trained().to(precision)
    weights, seen = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}, []

    def compare(module: nn.Module, arguments: Any) -> None:
        found = state(module)
        with torch._C.DisableTorchFunction():
            seen.append(all(torch.equal(found[name], value) for name, (_, value) in weights.items()))
            if precision == torch.float32:
                assert all(p is weights[name][0] for name, p in module.named_parameters())

    model.register_forward_pre_hook(compare)
    explained(model)
    assert len(seen) > 10
    assert all(seen)


def test_copies_and_pickles_of_a_module_do_not_take_part(tmp_path: Any) -> None:
    model = Moving()
    with explaining(model) as run:
        run(model, samples()[0][:1])
        twin = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        again = torch.load(tmp_path / "model.pt", weights_only=False)
        model.added.fill_(0)
    for other in (twin, again):
        other.added.fill_(3)
        assert other.state_dict()["added"].tolist() == [3, 3]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_a_layer_compiled_by_torchscript_is_not_randomized_in_silence() -> None:
    net = nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(64, 10)))
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"The weights of Linear are in code that TorchScript has compiled.*before torch.jit"
    ):
        explain(net, Probe(x, y), [m.Saliency()], [q.Randomization()])


# -- signals -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def handled() -> Any:
    """What the handler of SIGUSR1 found at each signal."""
    found: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: found.append(LOOK[0]()))
    yield found
    assert signal.signal(signal.SIGUSR1, before).__name__ == "<lambda>", "another handler was left behind"


LOOK: list[Callable[[], Any]] = []


def whole(model: nn.Module) -> tuple[Any, ...]:
    """What a handler could save besides the state."""
    flags = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    return flags, [p.requires_grad for p in model.parameters()], torch.get_rng_state().tolist()


def test_a_signal_is_handled_when_the_isolation_has_closed_and_finds_the_training(handled: list[Any]) -> None:
    model = trained().train()
    LOOK[:] = [lambda: whole(model)]
    before, count = whole(model), []

    def strike(*arguments: Any) -> None:
        torch.rand(1)
        signal.raise_signal(signal.SIGUSR1)
        count.append(len(handled))

    model.head.register_forward_pre_hook(strike)
    before = whole(model)
    with explaining(model) as run:
        run(model, samples()[0][:1])
        run(model, samples()[0][:1])
        assert not handled
    assert handled == [before]
    assert count == [0, 0]


def test_a_signal_that_has_waited_long_is_handled_before_the_next_call(
    handled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PATIENCE", 0.001)
    model = trained()
    LOOK[:] = [lambda: "handled"]
    with explaining(model) as run:
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0.002)
        assert not handled
        run(model, samples()[0][:1])
        assert handled == ["handled"]
    assert handled == ["handled"]


@pytest.mark.parametrize("moment", ["in a forward", "while it is entered", "between two restores", "at the last one"])
def test_ctrl_c_at_any_moment_leaves_everything_as_it_was(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DigitNet().train()
    model.register_buffer("count", torch.zeros(1))

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    class Interrupting:
        def __init__(self, inventory: object) -> None:
            pass

        def __enter__(self) -> None:
            if moment == "while it is entered":
                interrupted()

        def __exit__(self, *arguments: object) -> None:
            if moment in ("between two restores", "at the last one"):
                interrupted()

    savers = list(STATE_SAVERS.items())
    place = 0 if moment == "at the last one" else len(savers) // 2
    monkeypatch.setattr(
        "lightning_explain.model.isolation.STATE_SAVERS",
        dict([*savers[:place], ("interrupting", Interrupting), *savers[place:]]),
    )
    before = whole(model)
    # Worker processes of the tests ignore Ctrl-C.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), explaining(model) as run:  # noqa: PT012
            model.count.add_(1)
            torch.rand(1)
            run(interrupted if moment == "in a forward" else model.stem, samples()[0][:1])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, former)
    assert whole(model) == before
    assert not model.count.any()
    assert not model._state_dict_hooks
