"""The one context in which a model is touched. Everything it changes, or lets the model change, is put back.

Each *keeper* is a context manager that owns one kind of state. They are listed in ``STATE_SAVERS``; a test takes each away
in turn and sees the law of non-interference fail.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from operator import eq, is_
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.verdict import Canonizer
from lightning_explain.model.activations import CANONIZERS, Route
from lightning_explain.model.inventory import Container, ModuleInventory

Context: TypeAlias = "Callable[[], AbstractContextManager[Any]]"
StateSaver = Callable[[ModuleInventory], AbstractContextManager[None]]


@contextmanager
def _random_state(inventory: ModuleInventory) -> Iterator[None]:
    with preserved_random_state(*inventory.generators):
        yield


@contextmanager
def _modes(inventory: ModuleInventory) -> Iterator[None]:
    # The flags are set directly: an overridden train() or eval() may do more than set them (merge weights, freeze).
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
    # Without parameter gradients a backward pass costs less, and nothing can be added to ``.grad``.
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
    """The values of buffers and of tensors kept as plain attributes (metric states, caches)."""
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
    # Sparse tensors cannot be compared, and those that did not change may not be writable (views, expanded ones).
    if tensor.layout != torch.strided or not torch.equal(tensor, value):
        tensor.copy_(value)


def _tensors_in(inventory: ModuleInventory) -> Iterator[Tensor]:
    # Those made in inference mode cannot change outside of it.
    yield from (value for _, _, value in inventory.tensors if not value.is_meta and not value.is_inference())
    # Weights change in optimizer steps only, except those that an embedding rescales as it looks them up.
    for module in inventory.modules:
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            yield module.weight


@contextmanager
def _attributes(inventory: ModuleInventory) -> Iterator[None]:
    """Which objects the attributes are, and what the containers among them hold (buffers and submodules too)."""
    with _kept([container for container in inventory.containers if not isinstance(container, tuple)]):
        yield


@contextmanager
def _usable(inventory: ModuleInventory) -> Iterator[None]:
    """Copies stand in for tensors made in inference mode, which cannot be changed or differentiated outside of it."""
    # What they stand in for returns with the attributes.
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
    # Nearly all are empty, and stay so: those of hooks above all.
    saved = [(c, (dict(c) if isinstance(c, dict) else list(c)) if c else ()) for c in containers]
    try:
        yield
    finally:
        for container, content in saved:
            if container or content:
                _restore(container, content)


def _is_as(container: Any, saved: Any) -> bool:
    """Whether the very same objects are in it, in the same order."""
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
    """Runs compiled code eagerly: a compiled module that has already run ignores hooks without a word."""
    # Where dynamo was never imported nothing can be compiled, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _recurrent(inventory: ModuleInventory) -> Iterator[None]:
    """cuDNN cannot go back through a recurrent layer in eval mode."""
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
    # Inside inference mode, enable_grad() alone records nothing.
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _sharded(inventory: ModuleInventory) -> Iterator[None]:
    """FSDP2 leaves gathered weights in the place of sharded ones after a forward, and remembers that it did."""
    # Known by their methods, for importing FSDP takes long.
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


# Those that come first are put back last.
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
    """Calls the model: ``run(function, *arguments)``.

    ``calls`` are the modules that stand for calls while something is canonized; whoever hooks the model has to hook them too.

    Args:
        forward_context: Entered around each forward and not around the backward, such as autocast.
    """

    def __init__(self, forward_context: Context = nullcontext) -> None:
        self.calls = nn.ModuleList()
        self._forward_context = forward_context
        self._routes: list[Route] = []

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value, inside the forward context and what is canonized."""
        with ExitStack() as stack:
            stack.enter_context(self._forward_context())
            for route in self._routes:
                stack.enter_context(route())
            return function(*arguments)

    @contextmanager
    def canonized(self, canonizers: Iterable[Canonizer]) -> Iterator[None]:
        """Explanations in here see the model with these canonizers; numbers of its forward stay what they are."""
        with ExitStack() as stack:
            routes = [
                stack.enter_context(CANONIZERS[m.kind](self.calls, m.calls)) for m in canonizers if m.kind in CANONIZERS
            ]
            saved, self._routes = self._routes, routes
            try:
                yield
            finally:
                self._routes = saved


@contextmanager
def explaining(
    model: nn.Module, forward_context: Context = nullcontext, canonizers: Iterable[Canonizer] = ()
) -> Iterator[Run]:
    """Puts a model into a state in which it can be explained, and everything back afterwards, exceptions included.

    Inside: every submodule is in eval mode, parameters need no gradient, activations are out of place, compiled code
    runs eagerly and gradients can be taken, also within ``torch.inference_mode``. Restored: training flags, ``.grad``,
    ``requires_grad``, buffers, plain attributes (metric states), hooks, and every random generator.

    Args:
        model: The module, as the training loop holds it.
        forward_context: Entered around each forward and not around the backward, such as autocast.
        canonizers: What the doctor found necessary for everything that is done inside; ``run.canonized(canonizers)`` for a part of it.

    Yields:
        ``run(function, *arguments)``, which calls the function inside ``forward_context``.
    """
    with ExitStack() as stack:
        inventory = ModuleInventory(model)
        for saver in STATE_SAVERS.values():
            stack.enter_context(saver(inventory))
        run = Run(forward_context)
        with run.canonized(canonizers):
            yield run
