"""Laws of the contexts that keep random generators as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_explain.core.random_state import (
    cuda_generators,
    preserved_random_state,
    seeded_random_state,
    set_cuda_generators,
)


def numbers() -> list[float]:
    """One number from each global generator; moves them."""
    return [random.random(), float(np.random.rand()), torch.rand(()).item()]


@pytest.fixture(autouse=True)
def _own_seeds() -> Iterator[None]:
    with seeded_random_state(5):
        yield


@pytest.mark.parametrize("context", [preserved_random_state, lambda: seeded_random_state(9)])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_global_generators_go_on_as_if_nothing_had_been_drawn(
    context: Callable[[], AbstractContextManager[None]], error: type[BaseException] | None
) -> None:
    with preserved_random_state():
        expected = numbers()
    with suppress(RuntimeError, KeyboardInterrupt), context():
        numbers()
        np.random.standard_normal()  # leaves a cached second number
        if error is not None:
            raise error
    assert numbers() == expected


def test_it_holds_in_inference_mode() -> None:
    with preserved_random_state():
        expected = numbers()
    with torch.inference_mode(), preserved_random_state():
        numbers()
    assert numbers() == expected


def test_a_seed_starts_all_global_generators() -> None:
    with seeded_random_state(2**63 + 11):
        first = numbers()
    numbers()
    with seeded_random_state(2**63 + 11):
        assert numbers() == first
    with seeded_random_state(12):
        assert not set(numbers()) & set(first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA may be initialized already")
def test_a_seed_leaves_none_for_a_cuda_that_starts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with seeded_random_state(3):
        pass
    assert not seeds


def test_generators_of_each_initialized_cuda_device_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]

    def put_back(states: list[torch.Tensor]) -> None:
        for device, state in zip(devices, states, strict=True):
            device.set_state(state)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [g.get_state() for g in devices])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back)
    expected = [torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)]
    with preserved_random_state():
        for device in devices:
            torch.rand(7, generator=device)
    assert [torch.rand(2, generator=device).tolist() for device in devices] == expected


OWN: dict[str, tuple[Any, Callable[[Any], float]]] = {
    "python": (random.Random(1), lambda g: g.random()),
    "numpy": (np.random.default_rng(1), lambda g: float(g.random())),
    "numpy_legacy": (np.random.RandomState(1), lambda g: float(g.rand())),
    "numpy_bits": (np.random.MT19937(1), lambda g: float(g.random_raw())),
    "torch": (torch.Generator().manual_seed(1), lambda g: torch.rand((), generator=g).item()),
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("holder", ["itself", "attribute", "list", "dict", "deep"])
def test_generators_that_an_owner_holds_are_kept(kind: str, holder: str) -> None:
    generator, draw = OWN[kind]
    held = {
        "itself": generator,
        "attribute": SimpleNamespace(rng=generator),
        "list": SimpleNamespace(transforms=[1, (generator,)]),
        "dict": {"rng": generator},
        "deep": SimpleNamespace(
            dataset=SimpleNamespace(transform=SimpleNamespace(steps=[SimpleNamespace(g=generator)]))
        ),
    }
    with preserved_random_state(held[holder]):
        expected = draw(generator)
        draw(generator)
    assert draw(generator) == expected


def test_owners_may_hold_themselves_long_lists_and_generators_without_a_state() -> None:
    owner = SimpleNamespace(files=["name"] * 1_000_000, system=random.SystemRandom())
    owner.me = owner
    with preserved_random_state(owner, None, torch, int):
        owner.system.random()


class Cuda:
    """Two devices without a GPU: the state of a generator is a tensor."""

    def __init__(self, *states: int) -> None:
        self.states = [torch.tensor([state]) for state in states]

    def is_initialized(self) -> bool:
        return bool(self.states)

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return list(self.states)

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        self.states = list(states)

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.states[device.index] = state


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda:0", [3, 4]), ("cuda:1", [3, 3]), ("cpu", [8, 9])], ids=["there", "elsewhere", "not"]
)
def test_another_process_has_the_generators_of_cuda_wherever_it_computes(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: list[int]
) -> None:
    monkeypatch.setattr(torch, "cuda", Cuda(3, 4))
    states = cuda_generators()
    monkeypatch.setattr(torch, "cuda", there := Cuda(8, 9))
    set_cuda_generators(states, torch.device("cuda", 0), torch.device(device))
    assert [state.item() for state in there.states] == expected


def test_no_generators_of_cuda_are_sent_before_cuda_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", Cuda())
    assert cuda_generators() == []
    set_cuda_generators([], torch.device("cpu"), torch.device("cpu"))
