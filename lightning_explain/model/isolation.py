"""The isolation: the only context in which a model is touched; on exit every state that changed is restored.

Each *state saver* is a context manager that saves and restores one kind of state. They are listed in ``STATE_SAVERS``;
a test removes each in turn and checks that non-interference (invariant 1) then fails.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import eq, is_
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.model.inventory import Container, ModuleInventory

Context: TypeAlias = "Callable[[], AbstractContextManager[Any]]"
StateSaver = Callable[[ModuleInventory], AbstractContextManager[None]]


@contextmanager
def _random_state(inventory: ModuleInventory) -> Iterator[None]:
    with preserved_random_state(*inventory.generators):
        yield


@contextmanager
def _modes(inventory: ModuleInventory) -> Iterator[None]:
    # Set directly, because an overridden train() or eval() may do more than set flags (merge weights, freeze layers).
    flags = [(module, module.training) for module in inventory.modules]
    try:
        for module, training in flags:
            if training:
                module.training = False
        yield
    finally:
        for module, training in flags:
            if module.training is not training:
                module.training = training


@contextmanager
def _inplace(inventory: ModuleInventory) -> Iterator[None]:
    modules = [module for module in inventory.modules if getattr(module, "inplace", None) is True]
    try:
        for module in modules:
            module.__dict__["inplace"] = False
        yield
    finally:
        for module in modules:
            module.__dict__["inplace"] = True


@contextmanager
def _gradients(inventory: ModuleInventory) -> Iterator[None]:
    # Without parameter gradients a backward pass costs less, and nothing is accumulated in ``.grad``.
    saved = [(parameter, parameter.requires_grad, parameter.grad) for parameter in inventory.model.parameters()]
    try:
        for parameter, _, _ in saved:
            parameter.grad = None
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad, grad in saved:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


@contextmanager
def _tensors(inventory: ModuleInventory) -> Iterator[None]:
    """Restores the values of buffers and of tensors in plain attributes (metric states, caches)."""
    found = {id(tensor): tensor for tensor in _tensors_in(inventory)}
    saved = [(tensor, tensor.detach().clone()) for tensor in found.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                _put_back(tensor, value)


def _put_back(tensor: Tensor, value: Tensor) -> None:
    if tensor.shape != value.shape:
        tensor.resize_(value.shape)
    # Unchanged tensors are skipped, as they may not be writable (views, expanded tensors). Sparse ones cannot be
    # compared.
    if tensor.layout != torch.strided or not torch.equal(tensor, value):
        tensor.copy_(value)


def _tensors_in(inventory: ModuleInventory) -> Iterator[Tensor]:
    # Tensors made in inference mode cannot change outside of it.
    yield from (value for _, _, value in inventory.tensors if not value.is_meta and not value.is_inference())
    # Parameters change in optimizer steps only, except in an embedding with max_norm, whose forward rescales them.
    for module in inventory.modules:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            yield module.weight


@contextmanager
def _attributes(inventory: ModuleInventory) -> Iterator[None]:
    """Restores which objects are in the attributes and in the containers below (also buffers and submodules)."""
    with _kept([container for container in inventory.containers if not isinstance(container, tuple)]):
        yield


@contextmanager
def _usable(inventory: ModuleInventory) -> Iterator[None]:
    """Replaces tensors made in inference mode by copies: outside of it they cannot be changed or differentiated."""
    # The state saver "attributes" puts the originals back.
    for container, key, value in inventory.tensors:
        if isinstance(container, (dict, list)) and value.is_inference():
            container[key] = value.clone()
    yield


@contextmanager
def _hooks(inventory: ModuleInventory) -> Iterator[None]:
    with _kept(inventory.hooks):
        yield


@contextmanager
def _kept(containers: list[Container]) -> Iterator[None]:
    # Nearly all containers, above all those of hooks, are empty and stay so; empty ones are not copied.
    saved = [(c, (dict(c) if isinstance(c, dict) else list(c)) if c else ()) for c in containers]
    try:
        yield
    finally:
        for container, content in saved:
            if container or content:
                _restore(container, content)


def _is_as(container: Any, saved: Any) -> bool:
    """Whether a container holds the identical objects in the same order as ``saved``."""
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(map(is_, container.values(), saved.values())) and all(map(eq, container, saved))
    return all(map(is_, container, saved))


def _restore(container: Any, saved: Any) -> None:
    if _is_as(container, saved):
        return
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(saved)


@contextmanager
def _eager(inventory: ModuleInventory) -> Iterator[None]:
    """Runs compiled code eagerly, because a compiled module that has already run silently ignores new hooks."""
    # If dynamo was never imported, nothing is compiled; importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _recurrent(inventory: ModuleInventory) -> Iterator[None]:
    """Turns cuDNN off for models with recurrent layers: it cannot run their backward pass in eval mode."""
    if not any(isinstance(module, nn.RNNBase) for module in inventory.modules):
        yield
        return
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


@contextmanager
def _grad_mode(inventory: ModuleInventory) -> Iterator[None]:
    # Within inference mode enable_grad() alone records no graph.
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _sharded(inventory: ModuleInventory) -> Iterator[None]:
    """Reshards FSDP2 modules before and after: a forward leaves gathered weights where training needs sharded ones."""
    # Recognized by their methods, because importing FSDP is slow.
    sharded: list[Any] = [
        m for m in inventory.modules if hasattr(type(m), "reshard") and hasattr(type(m), "set_reshard_after_forward")
    ]

    def reshard() -> None:
        for part in sharded:
            part.reshard()

    reshard()
    try:
        yield
    finally:
        reshard()


# Entered in this order, so restored in reverse order.
STATE_SAVERS: dict[str, StateSaver] = {
    "sharded": _sharded,
    "random_state": _random_state,
    "grad_mode": _grad_mode,
    "attributes": _attributes,
    "hooks": _hooks,
    "usable": _usable,
    "tensors": _tensors,
    "gradients": _gradients,
    "modes": _modes,
    "inplace": _inplace,
    "recurrent": _recurrent,
    "eager": _eager,
}


class Run:
    """Calls the model inside the isolation: ``run(function, *arguments)`` returns ``function(*arguments)``.

    Args:
        forward_context: A context entered around each forward pass, but not around the backward pass, such as autocast.
    """

    def __init__(self, forward_context: Context = nullcontext) -> None:
        self._forward_context = forward_context

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The value ``function(*arguments)``, computed inside the forward context."""
        with self._forward_context():
            return function(*arguments)


@contextmanager
def explaining(model: nn.Module, forward_context: Context = nullcontext) -> Iterator[Run]:
    """A context in which a model can be explained; yields the function that calls it, and restores everything on exit.

    Inside, every submodule is in eval mode, parameters require no gradient, in-place activations work out of place,
    compiled code runs eagerly, and gradients are available even within ``torch.inference_mode``. On exit, also after an
    exception, these are restored: training flags, ``.grad``, ``requires_grad``, buffers, plain attributes (metric
    states), hooks, and every random generator.

    Args:
        model: The module, as the training loop holds it.
        forward_context: A context entered around each forward pass, but not around the backward pass, such as autocast.

    Yields:
        ``run(function, *arguments)``, which calls the function inside ``forward_context``.
    """
    with ExitStack() as stack:
        inventory = ModuleInventory(model)
        for saver in STATE_SAVERS.values():
            stack.enter_context(saver(inventory))
        yield Run(forward_context)
