"""Buffers and other tensors are put back after an explanation (invariant 1), and are copied once, however many views there are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.model import isolation
from lightning_explain.model.isolation import LARGE, explaining

MANY = 100_000


class Copied(TorchDispatchMode):
    """Counts the bytes of all copies that are made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if "clone" in str(func):
            self.size += found.numel() * found.element_size()
        return found


class Held(nn.Module):
    """Holds tensors, as buffers and in plain containers."""

    def __init__(self, first: Tensor, *others: Tensor) -> None:
        super().__init__()
        self.register_buffer("first", first)
        self.others = list(others)

    def tensors(self) -> list[Tensor]:
        return [self.first, *self.others]  # type: ignore[list-item]


def views(kind: str) -> Held:
    base = torch.arange(float(MANY))
    return {
        "slices": lambda: Held(base, base[10:], base[5 : MANY // 2], base.reshape(10, -1).T),
        "overlapping, without the whole": lambda: Held(base[: MANY - 10], base[10:]),
        "expanded": lambda: Held(torch.ones(MANY, 1).expand(MANY, 50), torch.ones(1).expand(MANY)),
        "other dtype": lambda: Held(base, base.view(torch.int32), base.view(torch.uint8)[8:]),
        "halves": lambda: Held(base[: MANY // 2], base[MANY // 2 :]),
        "a small view of much": lambda: Held(base[:3], base[5:8]),
        "twice the same": lambda: Held(base, base, base.detach()),
    }[kind]()


KINDS = {
    "slices": MANY * 4,
    "overlapping, without the whole": MANY * 4,
    "expanded": MANY * 4 + 4,
    "other dtype": MANY * 4,
    "halves": MANY * 4,
    "a small view of much": 24,
    "twice the same": MANY * 4,
}


@pytest.mark.parametrize(("kind", "most"), KINDS.items())
def test_what_views_share_is_copied_once(kind: str, most: int) -> None:
    model = views(kind)
    with Copied() as copied, explaining(model):
        pass
    assert copied.size == most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, -1])
def test_what_was_written_into_any_view_is_put_back(kind: str, place: int) -> None:
    model, expected = views(kind), [tensor.clone() for tensor in views(kind).tensors()]
    with explaining(model):
        tensor = model.tensors()[place]
        (tensor[:, :1] if kind == "expanded" and place == 0 else tensor[:1]).fill_(7)
    assert all(map(torch.equal, model.tensors(), expected))


@pytest.mark.parametrize(
    "change",
    [lambda tensor: tensor.resize_(4).fill_(1), lambda tensor: tensor.set_(torch.ones(3)), lambda tensor: tensor.t_()],
)
def test_a_view_that_was_moved_or_resized_has_its_numbers_again(change: Callable[[Tensor], Any]) -> None:
    def held() -> Held:
        base = torch.arange(12.0).reshape(3, 4)
        return Held(base, base[1:], base[:, 1:])

    model = held()
    with explaining(model):
        change(model.others[0])
    assert all(torch.equal(a, b) for a, b in zip(model.tensors(), held().tensors(), strict=True))


def test_what_is_large_is_mentioned_once_with_its_size() -> None:
    model = Held(torch.zeros(LARGE // 4 + 1), torch.zeros(MANY))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            with explaining(model):
                model.first.fill_(1)  # type: ignore[operator]
    (text,) = (str(warning.message) for warning in told)
    assert "copies 64 MB of buffers" in text
    assert "the largest is 'first' (64 MB)" in text
    assert text.endswith("can be nn.Parameter(..., requires_grad=False), which is not copied.")
    assert not model.first.any()  # type: ignore[operator]


def test_views_of_one_storage_are_not_large_together() -> None:
    base = torch.zeros(LARGE // 4 - 1000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with explaining(Held(base, *(base[i:] for i in range(9)))):
            base.fill_(1)
    assert not told
    assert not base.any()


@pytest.mark.parametrize("nested", [False, True])
def test_a_parameter_without_gradient_is_not_copied(nested: bool) -> None:
    model = Held(torch.zeros(1))
    model.bank = nn.Parameter(torch.zeros(LARGE // 4 + 1), requires_grad=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Copied() as copied, explaining(nn.Sequential(model) if nested else model):
            pass
    assert not told
    assert copied.size == 4


def test_explain_leaves_a_bank_and_its_views_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("bank", torch.ones(64, 3))
            self.newest = self.bank[:2]

        def forward(self, x: Tensor) -> Tensor:
            self.newest.add_(x.detach().mean())
            return x.cumsum(1)

    monkeypatch.setattr(isolation, "LARGE", 100)
    model, probe = Bank(), Probe(torch.rand(4, 3))
    with pytest.warns(UserWarning, match="copies 0 MB"):
        explain(model, probe, [m.Saliency()], [])
    assert torch.equal(model.bank, torch.ones(64, 3))
    model.newest.zero_()
    assert not model.bank[:2].any()


CHANGES: dict[str, Callable[[Held], Any]] = {
    "nothing": lambda held: None,
    "a number": lambda held: held.others[1].fill_(7),
    "a sign of zero": lambda held: held.others[0].neg_(),
    "a number without its version": lambda held: held.others[2].data.fill_(7),
    "a shape": lambda held: held.others[1].resize_(4).fill_(1),
    "a shape of as many numbers": lambda held: held.others[1].resize_(2, 4).fill_(1),
    "a dtype": lambda held: setattr(held.others[1], "data", torch.ones(8, dtype=torch.int64)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_small_tensors_are_copied_together_and_put_back_to_the_last_bit(change: Callable[[Held], Any]) -> None:
    def held() -> Held:
        odd = torch.tensor([0.0, -0.0, 1.0])
        model = Held(torch.tensor(3), odd, torch.arange(8.0), torch.tensor([torch.nan, torch.inf]))
        model.register_buffer("count", torch.tensor(5))
        return model

    model, expected = held(), held().tensors()
    with Copied() as copied, explaining(model):
        change(model)
    if change is CHANGES["nothing"]:
        assert copied.size == 0, "copied one by one"
    for found, before in zip(model.tensors(), expected, strict=True):
        assert (found.shape, found.dtype) == (before.shape, before.dtype)
        assert torch.equal(found.reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8))
