"""Laws of reading a batch."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.probes.binding import samples_of

X, X2 = torch.rand(4, 3), torch.rand(4, 2, 2)
Y = torch.tensor([1, 0, 2, 1])
TOKENS = torch.ones(4, 5, dtype=torch.int64)
Pair = namedtuple("Pair", "image label")


def parts(probe: Probe) -> tuple[list[Tensor], Tensor | None, list[Any]]:
    return list(as_tuple(probe.inputs)), probe.targets, list(probe.forward_args)


@pytest.mark.parametrize(
    ("batch", "inputs", "targets", "forward_args"),
    [
        (X, [X], None, []),
        ((X,), [X], None, []),
        ([X], [X], None, []),
        ((X, Y), [X], Y, []),
        ([X, Y], [X], Y, []),
        (Pair(X, Y), [X], Y, []),
        ((X, X2, Y), [X, X2], Y, []),
        (((X, X2), Y), [X, X2], Y, []),
        ([[X, X2], Y], [X, X2], Y, []),
        (((X, X2),), [X, X2], None, []),
        ((X, X2), [X], X2, []),
        ((X, Y, ["a", "b", "c", "d"]), [X], Y, []),
        ((X, ["a", "b", "c", "d"]), [X], None, []),
        ((X, Y, {"size": X2}), [X], Y, []),
        ((X, TOKENS, Y), [X], Y, [TOKENS]),
        ((TOKENS, X, Y), [TOKENS, X], Y, []),
        ((TOKENS, Y), [TOKENS], Y, []),
        ({"image": X, "label": Y}, [X], Y, []),
        ({"b": X, "a": X2, "Labels": Y}, [X, X2], Y, []),
        ({"x": X, "y": X2, "path": ["a"] * 4}, [X], X2, []),
        ({"x": X}, [X], None, []),
        ({"label": ["cat"] * 4, "x": X, "target": Y}, [X], Y, []),
        (UserDict(pixels=X, attention_mask=TOKENS, target=Y), [X], Y, [TOKENS]),
    ],
)
def test_a_batch_is_read_as_documented(
    batch: Any, inputs: list[Tensor], targets: Tensor | None, forward_args: list[Tensor]
) -> None:
    found = parts(samples_of(batch))
    assert [id(x) for x in found[0]] == [id(x) for x in inputs]
    assert found[1] is targets
    assert [id(x) for x in found[2]] == [id(x) for x in forward_args]


def test_one_input_is_a_bare_tensor_and_several_are_a_tuple() -> None:
    assert isinstance(samples_of((X, Y)).inputs, Tensor)
    assert isinstance(samples_of((X, X2, Y)).inputs, tuple)


@pytest.mark.parametrize("batch", [(X, Y[:, None]), {"x": X, "y": Y[:, None]}])
def test_whole_numbered_columns_of_targets_become_flat(batch: Any) -> None:
    assert torch.equal(samples_of(batch).targets, Y)  # type: ignore[arg-type]
    assert torch.equal(samples_of(batch, lambda b: (X, Y[:, None])).targets, Y)  # type: ignore[arg-type]


@pytest.mark.parametrize("targets", [Y[:, None].float(), TOKENS])
def test_other_targets_keep_their_shape(targets: Tensor) -> None:
    assert samples_of((X, targets)).targets is targets


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", "Cannot read a batch of type str"),
        (None, "Cannot read a batch of type NoneType"),
        ((), "Cannot read a tuple batch that starts with nothing"),
        ((["a", "b"], Y), "Cannot read a tuple batch that starts with list"),
        (({"image": X}, Y), "Cannot read a tuple batch that starts with dict"),
        ((X, (Y, Y)), "which of the last 2 tensors of a batch is the targets"),
        ({"ids": TOKENS, "label": Y}, r"no floating-point tensor to explain, only \{'ids': 'torch.int64'\}"),
        ({}, "no floating-point tensor to explain"),
        (torch.tensor(1.0), "A tensor does not read as samples"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_fix(batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"{message}.*Give batch_fn=") as caught:
        samples_of(batch)
    assert "batch_fn" in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y[:3]), r"A tuple batch does not read as samples.*targets.*\(3,\).*4 samples"),
        ((X, X2[:2], Y), r"inputs\[1\].*\(2, 2, 2\).*4 samples"),
        ({"x": X, "label": Y, "target": Y}, r"which of \['label', 'target'\] in a batch is the targets"),
        ({"x": X, "label": Y[:1]}, r"A batch with \['x', 'label'\] does not read as samples"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_the_fix(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*Give batch_fn="):
        samples_of(batch)


def test_a_function_of_the_user_reads_what_nothing_else_can() -> None:
    batch = {"a": {"deep": X}, "b": Y}
    assert parts(samples_of(batch, lambda b: (b["a"]["deep"], b["b"]))) == ([X], Y, [])
    assert parts(samples_of(batch, lambda b: ((X, X2), None))) == ([X, X2], None, [])
    probe = Probe(X, ids=torch.tensor([3, 1, 4, 5]))
    assert samples_of(batch, lambda b: probe) is probe


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (X, "batch_fn returned a Tensor"),
        ((X,), r"batch_fn returned a tuple of \['Tensor'\]"),
        ((X, Y, Y), r"batch_fn returned a tuple of \['Tensor', 'Tensor', 'Tensor'\]"),
        ([X, Y], r"batch_fn returned a list of \['Tensor', 'Tensor'\]"),
        ((X, [1, 0, 2, 1]), r"batch_fn returned a tuple of \['Tensor', 'list'\]"),
        ((None, Y), "What batch_fn returned does not read as samples"),
    ],
)
def test_what_a_function_of_the_user_may_return_is_checked(returned: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        samples_of(X, lambda batch: returned)
