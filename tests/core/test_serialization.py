"""Laws of fingerprints and of saved probes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_explain.core import serialization
from lightning_explain.core.probe import Probe
from lightning_explain.core.serialization import fingerprint, probe_state

X = torch.rand(4, 3, 5, 5)
FULL = Probe(
    (X, torch.rand(4, 2).bfloat16()),
    torch.tensor([1, 0, 2, 1]),
    torch.tensor([9, 4, 5, 6]),
    torch.rand(4, 5, 5) > 0.5,
    ["cat", "dog", "owl"],
    (torch.ones(4, dtype=torch.int32), 2, 0.5, None, True, "mean", {"bias": [torch.tensor(3.0)]}),
)


def through_a_file(probe: Probe) -> Probe:
    file = io.BytesIO()
    torch.save(probe_state(probe), file)
    file.seek(0)
    return Probe(**torch.load(file, weights_only=True))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("probe", [FULL, Probe(X), Probe((X,)), Probe(X, torch.rand(4))])
def test_a_saved_probe_comes_back_exactly(probe: Probe) -> None:
    found = through_a_file(probe)
    for name in ("inputs", "targets", "ids", "masks", "forward_args"):
        assert same(getattr(found, name), getattr(probe, name)), name
    assert list(found.class_names or ()) == list(probe.class_names or ())
    assert fingerprint(found) == fingerprint(probe)


def test_a_saved_probe_is_a_copy_without_what_it_was_cut_from() -> None:
    whole = torch.rand(10_000, 3)
    state = probe_state(Probe(whole[:2]))
    whole.zero_()
    assert state["inputs"].any()
    assert state["inputs"].untyped_storage().nbytes() == 2 * 3 * 4


def test_a_saved_probe_needs_no_gradients() -> None:
    assert not probe_state(Probe(torch.rand(2, 3, requires_grad=True)))["inputs"].requires_grad


def test_what_a_checkpoint_cannot_hold_is_refused_by_name() -> None:
    for value in (object(), np.float64(1.0), slice(3)):
        with pytest.raises(TypeError, match=rf"forward_args\.1\.k=.*{type(value).__name__}.*save_probe=False"):
            probe_state(Probe(X, forward_args=(1, {"k": value})))


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": (FULL.inputs[0] + 1e-6, FULL.inputs[1])},
        {"inputs": (FULL.inputs[0], FULL.inputs[1].float())},
        {"inputs": (FULL.inputs[0], FULL.inputs[1].reshape(4, 2, 1))},
        {"inputs": FULL.inputs[::-1]},
        {"targets": torch.tensor([1, 0, 2, 0])},
        {"targets": None},
        {"ids": torch.tensor([9, 4, 5, 7])},
        {"masks": torch.zeros(4, 5, 5, dtype=torch.bool)},
        {"masks": None},
        {"forward_args": ()},
        {"forward_args": (torch.ones(4, dtype=torch.int32), 3, *FULL.forward_args[2:])},
        {"forward_args": (*FULL.forward_args[:-1], {"bias": [torch.tensor(4.0)]})},
    ],
)
def test_a_fingerprint_tells_any_other_samples(change: dict[str, Any]) -> None:
    assert fingerprint(replace(FULL, **change)) != fingerprint(FULL)


def test_a_fingerprint_does_not_know_names_layouts_or_gradients() -> None:
    probe = Probe(X)
    assert fingerprint(replace(probe, class_names=["a"])) == fingerprint(probe)
    assert fingerprint(Probe(X.to(memory_format=torch.channels_last))) == fingerprint(probe)
    assert fingerprint(Probe(X.clone().requires_grad_())) == fingerprint(probe)


def test_a_fingerprint_takes_any_dtype_and_any_argument() -> None:
    dtypes = [torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
    found = {fingerprint(Probe(torch.zeros(2, 0), forward_args=(torch.zeros(2, 0, dtype=d), object()))) for d in dtypes}
    assert len(found) == len(dtypes)


def test_a_fingerprint_is_computed_once_and_again_for_whatever_is_written_into_the_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is remembered for a probe; the slow twin is the fingerprint of a new one."""
    x, y, further = np.random.default_rng(0).random((4, 100)), torch.tensor([1, 0, 2, 1]), torch.ones(3)
    probe, computed = Probe(torch.from_numpy(x), y, forward_args=(further, 2.0)), list[str]()
    digest = serialization._digest
    monkeypatch.setattr(serialization, "_digest", lambda parts: computed.append(digest(parts)) or computed[-1])

    def same() -> bool:
        return fingerprint(probe) == fingerprint(Probe(torch.from_numpy(x), y, forward_args=(further, 2.0)))

    first = fingerprint(probe)
    assert fingerprint(probe) == first
    assert len(computed) == 1
    for write in (
        lambda: probe.inputs[2].add_(1),
        lambda: probe.inputs.data[0].zero_(),
        lambda: x.__setitem__((3, 7), 0.5),
        lambda: y.numpy().__setitem__(2, 0),
        lambda: further.data.fill_(2),
    ):
        before = fingerprint(probe)
        write()
        assert fingerprint(probe) != before
        assert same()


def test_a_fingerprint_follows_what_is_changed_in_a_container() -> None:
    further = {"scale": 2.0}
    probe = Probe(X, forward_args=(further,))
    before = fingerprint(probe)
    further["scale"] = 3.0
    assert fingerprint(probe) != before


def test_a_fingerprint_is_this_one_in_every_version() -> None:
    probe = Probe(torch.arange(6.0).reshape(2, 3), torch.tensor([0, 1]))
    assert fingerprint(probe).startswith("dde3b09f3117a7e9")
