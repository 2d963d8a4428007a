"""``state_dict()`` inside the isolation is the training's, also from another thread or a signal handler that saves a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.model.inventory import ModuleInventory
from lightning_explain.model.reachable import sort_of


@contextmanager
def training_state(inventory: ModuleInventory) -> Iterator[None]:
    """Lets each module's ``state_dict()`` return what the module had on entry, whatever a forward moves meanwhile."""
    hook, key = _TrainingState(inventory), object()
    found = [vars(module).get("_state_dict_hooks") for module in inventory.modules]
    hooks = [each for each in found if each is not None]
    try:
        for each in hooks:
            each[key] = hook
        yield
    finally:
        for each in hooks:
            each.pop(key, None)


class _TrainingState:
    """A hook of ``state_dict()`` that puts the tensors of a module, and of those in it, in the place of what a forward made of them."""

    def __init__(self, inventory: ModuleInventory) -> None:
        self._copies = inventory.copies
        self._before = {id(module): (_registered(module), _plain(module)) for module in inventory.modules}
        # As long as these live, no other module has their id.
        self._modules = inventory.modules

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        # Copies of a module have no part in this.
        return _no_hook, ()

    def __call__(self, module: nn.Module, found: dict[str, Any], prefix: str, metadata: object) -> None:
        # Where weights are randomized, torch functions that are called with one get another one.
        with torch._C.DisableTorchFunction():
            self._correct(module, found, prefix)

    def _correct(self, module: nn.Module, found: dict[str, Any], prefix: str) -> None:
        for path, part in module.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False):
            start = f"{path}." if path else ""
            if id(part) not in self._before:
                for key in [key for key in found if key.startswith(start)]:
                    del found[key]
                continue
            before, plain = self._before[id(part)]
            now = _registered(part)
            for name in now.keys() - before.keys():
                found.pop(start + name, None)
            for name, tensor in {**plain, **before}.items():
                gone = name in before and now.get(name) is None
                # What the module itself leaves out of its state stays out.
                if start + name in found or gone:
                    self._put(found, start + name, tensor, now.get(name))

    def _put(self, found: dict[str, Any], key: str, tensor: Tensor, now: object) -> None:
        value: Any = found.get(key)
        another = _is_plain(value) and _is_plain(tensor) and value.data_ptr() != tensor.data_ptr()
        if tensor is not now or id(tensor) in self._copies or another:
            found[key] = self._copies.get(id(tensor), tensor).detach()


def _is_plain(value: Any) -> bool:
    return type(value) in (Tensor, nn.Parameter)


def _registered(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a module itself saves."""
    both = {**module._parameters, **module._buffers}
    if not both:
        return {}
    left_out = module._non_persistent_buffers_set
    return {name: tensor for name, tensor in both.items() if tensor is not None and name not in left_out}


def _plain(module: nn.Module) -> dict[str, Tensor]:
    """The tensors in plain attributes, which some modules, such as metrics, save too."""
    attributes = vars(module)
    # Most modules have none, which their types tell faster than isinstance() for each attribute.
    if "tensor" not in map(sort_of, set(map(type, attributes.values()))):
        return {}
    return {name: value for name, value in attributes.items() if isinstance(value, Tensor)}


def _no_hook() -> Callable[..., None]:
    return _unchanged


def _unchanged(*arguments: object) -> None:
    return None
