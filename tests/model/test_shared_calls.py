"""Calls of a model that several checks share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_explain.model.heads import SharedCalls


class Failing:
    """A model that fails as often as there are errors, and then returns twice its input."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 2 * x


def test_a_call_is_made_once_and_its_result_shared() -> None:
    model, calls, x = Failing(), SharedCalls(), torch.ones(2, 3)
    call = calls.shared(model)
    first = call(x)
    calls.begin()
    second = call(x)
    assert second is first
    assert model.calls == 1
    calls.begin()
    assert torch.equal(call(x + 1), 2 * (x + 1))
    assert model.calls == 2


def test_a_call_that_failed_fails_again_with_the_same_error() -> None:
    error = RuntimeError("device-side assert triggered")
    model, calls, x = Failing(error), SharedCalls(), torch.ones(2, 3)
    call = calls.shared(model)
    for _ in range(2):
        calls.begin()
        with pytest.raises(RuntimeError, match="device-side") as raised:
            call(x)
        assert raised.value is error
    assert model.calls == 1


def test_a_call_without_memory_is_made_again() -> None:
    model, calls, x = Failing(torch.OutOfMemoryError("tried to allocate 20.00 GiB")), SharedCalls(), torch.ones(2, 3)
    call = calls.shared(model)
    with pytest.raises(torch.OutOfMemoryError):
        call(x)
    calls.begin()
    assert torch.equal(call(x), 2 * x)
    assert model.calls == 2
