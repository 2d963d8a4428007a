"""Whatever a forward moves, wherever it is kept: the training with the monitor has the weights of the training without it (invariant 1).

All set-ups are trained at once, side by side: each is a part of one model, with weights and a loss of its own.
"""

from __future__ import annotations

import array
import functools
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.model.isolation import STATE_SAVERS
from training import QUIET

pytestmark = QUIET

GLOBAL = np.random.default_rng(7)
Number = Callable[[], float]


class Helper:
    """An object of the user's, which is no module."""

    shared: ClassVar[random.Random] = random.Random(1)

    def __init__(self) -> None:
        self.rng = np.random.default_rng(1)
        self.count = 0.0
        self.seen: dict[str, list[float]] = {"all": []}
        self.mean = torch.zeros(1)
        self.total = np.zeros(1)

    def drawn(self) -> float:
        return float(self.rng.random())

    def counted(self) -> float:
        self.count += 1
        return self.count

    def listed(self) -> float:
        self.seen["all"].append(1.0)
        return float(len(self.seen["all"]))

    def averaged(self) -> float:
        self.mean = self.mean * 0.9 + 0.1
        return self.mean.item()

    def added(self) -> float:
        self.total += 1
        return float(self.total[0])

    def of_class(self) -> float:
        return self.shared.random()


class Slotted:
    """An object without a dictionary of attributes."""

    __slots__ = ("count", "rng")

    def __init__(self) -> None:
        self.rng, self.count = torch.Generator().manual_seed(1), 0.0

    def drawn(self) -> float:
        return torch.rand((), generator=self.rng).item()

    def counted(self) -> float:
        self.count += 1
        return self.count


class Pair(NamedTuple):
    name: str
    helper: Helper


class Part(nn.Module):
    """One set-up: a linear layer whose training is disturbed by a number that each forward moves, in eval mode too."""

    drawing: ClassVar[np.random.RandomState] = np.random.RandomState(3)

    def __init__(self, prepared: Callable[[Part], Number]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.number = prepared(self)

    def forward(self, x: Tensor) -> Tensor:
        number = self.number()
        found: Tensor = self.layer(x)
        return found * (1 + number / 8) if self.training else found


def uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def endless(rng: random.Random) -> Iterator[float]:
    while True:
        yield rng.random()


def default(rng: random.Random = random.Random(9)) -> float:  # noqa: B008
    return rng.random()


def closure(part: Part) -> Number:
    rng = np.random.RandomState(2)
    return lambda: float(rng.rand())


def in_place(name: str, value: Any) -> Callable[[Part], Number]:
    def prepared(part: Part) -> Number:
        setattr(part, name, value())

        def number() -> float:
            held = getattr(part, name)
            held[0] += 1
            return float(held[0])

        return number

    return prepared


def held(make: Callable[[], Any], take: Callable[[Any], float]) -> Callable[[Part], Number]:
    """A part that holds something in an attribute, and moves it."""

    def prepared(part: Part) -> Number:
        part.held = make()
        return functools.partial(moved, part, take)

    return prepared


def moved(part: Part, take: Callable[[Any], float]) -> float:
    return take(part.held)


def count_parameters(part: Part) -> Number:
    part.steps = Counter(dict.fromkeys(part.layer.parameters(), 0))

    def number() -> float:
        part.steps[part.layer.weight] += 1
        return float(part.steps[part.layer.weight])

    return number


def teacher(part: Part) -> Number:
    """A module that is hidden from ``parameters()`` in a list, and is in training mode for good."""
    part.hidden = [nn.BatchNorm1d(1)]

    def number() -> float:
        part.hidden[0](torch.tensor([[1.0], [3.0]]))
        return float(part.hidden[0].running_mean)

    return number


def assigned(part: Part) -> Number:
    part.register_buffer("seen", torch.zeros(1))

    def number() -> float:
        part.seen = part.seen + 1
        return part.seen.item()

    return number


def grow(values: Any) -> float:
    values.append(1.0)
    return float(len(values))


def turn(values: deque[float]) -> float:
    values.rotate(1)
    return values[0]


def add_key(held: dict[str, float]) -> float:
    held.setdefault(str(len(held)), 0)
    return float(len(held))


def add_element(held: set[int]) -> float:
    held.add(len(held))
    return float(len(held))


SETUPS: dict[str, Callable[[Part], Number]] = {
    "torch generator in a dict": held(lambda: {"rng": torch.Generator()}, lambda h: uniform(h["rng"])),
    "numpy generator in a helper": held(Helper, Helper.drawn),
    "python generator in a deque": held(lambda: deque([random.Random(1)]), lambda h: h[0].random()),
    "numpy generator behind a long list": held(
        lambda: [*[0] * 3000, np.random.default_rng(4)], lambda h: float(h[-1].random())
    ),
    "bit generator": held(lambda: np.random.PCG64(3), lambda h: h.random_raw() / 2**64),
    "generator in an array of objects": held(
        lambda: np.array([random.Random(3)], dtype=object), lambda h: h[0].random()
    ),
    "generator in a partial": lambda part: functools.partial(uniform, torch.Generator().manual_seed(5)),
    "generator in a closure": closure,
    "generator as a default argument": lambda part: default,
    "generator in slots": held(Slotted, Slotted.drawn),
    "generator of the class": lambda part: lambda: float(type(part).drawing.rand()),
    "generator of a helper's class": held(Helper, Helper.of_class),
    "global generator": lambda part: lambda: float(GLOBAL.random()),
    "method of a generator": lambda part: np.random.default_rng(6).random,
    "method of a helper": lambda part: Helper().drawn,
    "running generator that draws": held(lambda: endless(random.Random(4)), next),
    "quasirandom engine": held(lambda: SobolEngine(1, scramble=True, seed=1), lambda h: h.draw(1).item()),
    "counter of a plain object": held(lambda: SimpleNamespace(n=0.0), lambda h: setattr(h, "n", h.n + 1) or h.n),
    "counter of a helper": held(Helper, Helper.counted),
    "counter in slots": held(Slotted, Slotted.counted),
    "list in a dict of a helper": held(Helper, Helper.listed),
    "tensor that a helper assigns": held(Helper, Helper.averaged),
    "array that a helper writes into": held(Helper, Helper.added),
    "helper in a named tuple": held(lambda: Pair("it", Helper()), lambda h: h.helper.counted()),
    "array": in_place("values", lambda: np.zeros(2)),
    "array of Python": in_place("values", lambda: array.array("d", [0.0])),
    "bytes": in_place("values", lambda: bytearray(2)),
    "tensor": in_place("values", lambda: torch.zeros(2)),
    "list": in_place("values", lambda: [0.0]),
    "growing list": held(list, grow),
    "turning deque": held(lambda: deque([1.0, 2.0, 3.0, 5.0, 7.0, 11.0, 13.0]), turn),
    "set": held(set, add_element),
    "ordered dict": held(OrderedDict, add_key),
    "dict keyed by parameters": count_parameters,
    "hidden module": teacher,
    "assigned buffer": assigned,
}


class Parts(pl.LightningModule):
    """All set-ups side by side; from inputs ``(N, 2)``, one output for each ``(N, parts)``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(Part(prepared) for prepared in SETUPS.values())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], 1)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return (self(batch[0]) - batch[1][:, None]).square().mean(0).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.02)


def begin_shared_generators_again() -> None:
    """Those that outlive a model."""
    Helper.shared.seed(1)
    Part.drawing.seed(3)
    default.__defaults__[0].seed(9)
    GLOBAL.bit_generator.state = np.random.default_rng(7).bit_generator.state


def weights(monitored: bool) -> list[Tensor]:
    begin_shared_generators_again()
    model = Parts()
    watch = ExplanationMonitor(
        methods=[m.Saliency(abs=False)],
        metrics=[q.Randomization(n_layers=1, n_draws=1)],
        probe=ProbeSelection(count=2, source="train"),
        target=0,
    )
    noise = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.rand(8, 2, generator=noise), torch.rand(8, generator=noise))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch] if monitored else [],
    )
    trainer.fit(model, DataLoader(data, batch_size=4))
    assert not monitored or watch.last_report is not None
    return [part.layer.weight.detach() for part in model.parts]


@functools.cache
def alone() -> list[Tensor]:
    return weights(False)


@functools.cache
def watched() -> list[Tensor]:
    return weights(True)


@functools.cache
def unprotected() -> list[Tensor]:
    """Watched, without what puts back what forwards move."""
    with pytest.MonkeyPatch.context() as patch:
        for saver in ("random_state", "attributes", "slots", "tensors"):
            patch.setitem(STATE_SAVERS, saver, lambda inventory: nullcontext())
        return weights(True)


@pytest.mark.parametrize(("place", "name"), list(enumerate(SETUPS)), ids=SETUPS)
def test_what_a_forward_moves_is_put_back_wherever_it_is_kept(place: int, name: str) -> None:
    assert torch.equal(watched()[place], alone()[place])
    assert not torch.equal(unprotected()[place], alone()[place]), "the set-up shows nothing"
