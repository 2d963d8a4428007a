"""What one process writes into the memory, another reads: the same objects, and nothing of it is left behind."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_explain.core.shared_memory import SharedMemory
from lightning_explain.core.torch_settings import set_torch_settings, torch_settings
from networks import DigitNet
from states import assert_equal


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory()
    yield memory
    memory.close()


def through(memory: SharedMemory, value: Any, known: list[Any] | None = None) -> Any:
    """The value as another process reads it."""
    numbers = {id(one): number for number, one in enumerate(known or [])}
    layout = pickle.loads(pickle.dumps(memory.write(value, numbers)))
    other = SharedMemory(os.dup(memory.descriptor))
    try:
        return other.read(layout, known or ())
    finally:
        other.close()


def test_a_module_arrives_with_its_weights_buffers_hooks_and_attributes(memory: SharedMemory) -> None:
    net = DigitNet().to(memory_format=torch.channels_last)
    net.stem.register_forward_hook(lambda module, inputs, output: 2 * output)
    net.scale, net.table = 0.5, np.arange(3.0)  # type: ignore[assignment]
    found, x = through(memory, net), torch.rand(2, 1, 8, 8)
    assert_equal(dict(found.state_dict()), dict(net.state_dict()))
    assert [p.stride() for p in found.parameters()] == [p.stride() for p in net.parameters()]
    assert vars(found).keys() == vars(net).keys()
    assert (found.scale, found.table.tolist()) == (0.5, [0.0, 1.0, 2.0])
    assert torch.equal(found.eval()(x), net.eval()(x))


class Replacing(nn.Sequential):
    """Takes its state as it comes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state


class Reading(nn.Linear):
    """Reads containers of its state that are mostly empty."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        assert not state["_modules"]
        assert not state["_forward_hooks"]
        super().__setstate__(state)


def test_a_module_that_restores_its_state_itself_is_given_all_of_it(memory: SharedMemory) -> None:
    net = Replacing(Reading(3, 4), nn.ReLU(), Replacing(), nn.MultiheadAttention(4, 2))
    found, x = through(memory, net), torch.rand(2, 3)
    assert [vars(one).keys() for one in found.modules()] == [vars(one).keys() for one in net.modules()]
    assert torch.equal(found[:2](x), net[:2](x))
    found[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert torch.equal(found[0](x), 2 * net[0](x))


def test_what_shares_memory_shares_it_again(memory: SharedMemory) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    whole = torch.arange(6.0)
    found, (part, rest) = through(memory, (net, (whole[2:4], whole[3:])))
    assert found[0].weight is found[1].weight
    rest[0] = -1
    assert part.tolist() == [2.0, -1.0]


def test_who_reads_changes_nothing_of_what_others_read(memory: SharedMemory) -> None:
    layout = memory.write(torch.ones(3))
    memory.read(layout).zero_()
    assert memory.read(layout).tolist() == [1.0, 1.0, 1.0]


def test_the_memory_grows_and_is_written_again(memory: SharedMemory) -> None:
    for size in (0, 1, 10_000, 7):
        assert torch.equal(through(memory, torch.full((size,), size)), torch.full((size,), size))


def test_known_objects_are_named_instead_of_sent(memory: SharedMemory) -> None:
    known = [DigitNet(), DigitNet]
    found = through(memory, {"net": known[0], "kind": known[1]}, known)
    assert found["net"] is known[0]
    assert found["kind"] is DigitNet
    assert memory.write(known[0], {id(known[0]): 0}).storages == ()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(2, 3).to_sparse(),
        torch.rand(2, 3, dtype=torch.complex64).conj(),
        torch.empty(2, device="meta"),
        torch.rand(4, 4, dtype=torch.bfloat16).t(),
        nn.Parameter(torch.rand(2), requires_grad=False),
        torch.rand(3, requires_grad=True) * 2,
    ],
    ids=["sparse", "conjugated", "meta", "transposed bfloat16", "frozen", "with a graph"],
)
def test_every_kind_of_tensor_arrives(memory: SharedMemory, tensor: torch.Tensor) -> None:
    found = through(memory, tensor)
    assert type(found) is type(tensor)
    assert (found.dtype, found.layout, found.device) == (tensor.dtype, tensor.layout, tensor.device)
    if tensor.device.type != "meta":
        assert torch.equal(found.to_dense(), tensor.detach().to_dense())


def test_a_class_of_a_script_arrives_without_its_script(memory: SharedMemory) -> None:
    script: dict[str, Any] = {"__name__": "__main__"}
    exec("import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return 3 * x", script)
    assert through(memory, script["Net"]())(2) == 6


def test_what_cannot_be_pickled_is_an_error(memory: SharedMemory) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        memory.write({"lock": threading.Lock()})


CHANGES: dict[str, Callable[[], Any]] = {
    "precision": lambda: torch.set_float32_matmul_precision("high"),
    "determinism": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "efficient attention": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "attention in 16 bits": lambda: torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True),
    "fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "denormal numbers": lambda: torch.set_flush_denormal(True),
    "mkldnn": lambda: setattr(torch.backends.mkldnn, "deterministic", True),
}
NEWER: dict[str, Callable[[], Any]] = {
    "fp32_precision of all": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "fp32_precision of CUDA": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "fp32_precision of mkldnn": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "fp32_precision of cuDNN": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}
if hasattr(torch.backends, "fp32_precision"):
    CHANGES |= NEWER


@pytest.fixture
def settings() -> Iterator[dict[str, Any]]:
    """The settings of torch, which are restored."""
    before = copy.deepcopy(torch_settings())
    yield before
    set_torch_settings(before)
    assert torch_settings() == before


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_settings_of_torch_are_set_as_they_were(settings: dict[str, Any], change: Callable[[], Any]) -> None:
    change()
    changed = pickle.loads(pickle.dumps(torch_settings()))
    assert changed != settings
    set_torch_settings(settings)
    assert torch_settings() == settings
    set_torch_settings(changed)
    assert torch_settings() == changed


def test_attention_gives_the_same_numbers_where_its_settings_are_set(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 128, 64)
    found = F.scaled_dot_product_attention(x, x, x)
    torch.backends.cuda.enable_flash_sdp(False)
    assert not torch.equal(F.scaled_dot_product_attention(x, x, x), found), "nothing to tell them apart by"
    set_torch_settings(settings)
    assert torch.equal(F.scaled_dot_product_attention(x, x, x), found)


@pytest.mark.usefixtures("settings")
def test_another_default_device_is_that_of_the_process_and_does_not_change_what_arrives(memory: SharedMemory) -> None:
    sent = DigitNet(), torch.ones(2), torch.zeros(0)
    set_torch_settings({**torch_settings(), "device": "cuda:0"}, "meta")
    assert torch.get_default_device() == torch.device("meta")
    found = through(memory, sent)
    assert {p.device.type for p in found[0].parameters()} == {"cpu"}
    assert found[1].tolist() == [1.0, 1.0]
    assert found[2].device.type == "cpu"
