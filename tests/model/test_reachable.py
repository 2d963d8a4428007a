"""One walk finds what a forward can move; what cannot be put back is reported by name before the first batch."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.model import inventory, reachable
from lightning_explain.model.inventory import ModuleInventory
from lightning_explain.model.isolation import explaining

SEEN: list[int] = []


def squares() -> Iterator[float]:
    n = 0
    while True:
        n += 1
        yield float(n)


class Moves(nn.Module):
    """Moves something in its forward."""

    count = 0

    def __init__(self, move: Callable[[Moves], object], **held: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.move = move
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.move(self)
        found: Tensor = self.layer(x)
        return found


def explained(model: nn.Module) -> list[str]:
    """What an explanation warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            explain(nn.Sequential(model), Probe(torch.rand(2, 3)), [m.Saliency()], [])
    return [str(warning.message) for warning in warned]


def bump(model: Moves) -> None:
    type(model).count += 1


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Moves(lambda model: next(model.stream), stream=squares()), "0.stream"),
        (Moves(lambda model: next(model.helper.places[0]), helper=SimpleNamespace(places=[itertools.count()])), ""),
        (Moves(lambda model: next(model.order), order=iter([1, 2] * 99)), "0.order"),
        (Moves(lambda model: SEEN.append(1)), "0.move.SEEN"),
        (Moves(bump), "0.__class__"),
    ],
    ids=["running generator", "counter", "iterator", "global", "class"],
)
def test_what_cannot_be_put_back_is_reported_once_with_its_name(model: Moves, name: str) -> None:
    (text,) = {line for line in explained(model) if "forward changes" in line}
    assert f"The model's forward changes {name or '0.helper.places[0]'!r}, which cannot be put back" in text
    assert text.endswith("Keep that state in an attribute of the module.")


def test_what_stays_is_not_reported() -> None:
    model = Moves(lambda model: None, stream=squares(), order=iter([1]), rng=np.random.default_rng(1))
    assert explained(model) == []


def test_objects_that_threads_share_are_left_alone() -> None:
    """What another thread has done meanwhile must not be undone."""
    shared = SimpleNamespace(lock=threading.Lock(), done=[1])
    model = Moves(lambda model: model.shared.done.append(2), shared=shared)
    with explaining(model) as run:
        run(model, torch.rand(2, 3))
    assert shared.done == [1, 2]


class Lazy(OrderedDict[str, Any]):
    """Loads what it holds when it is asked for it."""

    def values(self) -> Any:
        raise AssertionError("loaded")

    items = values


LOADED = Lazy(a=[1])


class Odd:
    """An object that answers every attribute."""

    __slots__ = ("empty",)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"asked for {name}")


def test_nothing_of_the_user_s_is_called_by_the_walk() -> None:
    model = Moves(lambda model: LOADED, odd=Odd())
    with explaining(model) as run:
        run(model, torch.rand(2, 3))
        model.odd.empty = 1
    with pytest.raises(RuntimeError, match="asked for empty"):
        model.odd.empty  # noqa: B018


def test_the_bound_of_the_walk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "MOST", 50)
    monkeypatch.setattr("lightning_explain.model.moved.MOST", 50)
    model = Moves(lambda model: None, many=[[i] for i in range(60)], nested=[[[i]] for i in range(60)])
    (text,) = set(explained(model))
    assert "holds more than 50 objects" in text


def test_long_lists_of_names_are_not_looked_through() -> None:
    model = Moves(lambda model: None, files=["name"] * 300_000, table=dict.fromkeys(range(300_000), 0.5))
    assert not ModuleInventory(model).walk.full


def test_tuples_are_looked_through_and_those_of_numbers_are_no_containers() -> None:
    model = Moves(
        lambda model: (model.pair[0].add_(1), model.pair[1][0].append(2)), pair=(torch.zeros(1), ([1],)), size=(3, 3)
    )
    assert not any(value is model.size for value in ModuleInventory(model).containers)
    with explaining(model) as run:
        run(model, torch.rand(2, 3))
    assert not model.pair[0].any()
    assert model.pair[1] == ([1],)


def test_a_dataset_that_is_a_global_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "SMALL", 100)
    model = Moves(lambda model: (BIG, LITTLE))
    found = ModuleInventory(model)
    assert any(value is LITTLE for value in found.arrays)
    assert not any(value is BIG for value in found.arrays)


BIG, LITTLE = np.zeros(100), np.zeros(2)


def test_a_large_array_of_a_helper_is_mentioned_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_explain.model.isolation.LARGE", 10_000)
    model = Moves(lambda model: None, helper=SimpleNamespace(bank=np.zeros(2000)))
    with pytest.warns(UserWarning, match=r"the largest is 'helper\.bank' \(0 MB\)"), explaining(model):
        model.helper.bank += 1
    assert not model.helper.bank.any()


@pytest.mark.filterwarnings("error")
def test_it_holds_where_warnings_are_errors() -> None:
    """What is reported then is logged, and everything is put back all the same."""
    model = Moves(lambda model: (next(model.stream), model.seen.append(1)), stream=squares(), seen=[])
    model.register_buffer("moved", torch.zeros(1))
    with explaining(model) as run:
        run(model, torch.rand(2, 3))
        model.moved.add_(1)
    assert model.seen == []
    assert not model.moved.any()
    assert model.training
