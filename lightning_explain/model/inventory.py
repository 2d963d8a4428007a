"""A model in; its modules, their containers, tensors, hooks and random generators out, for the state savers."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

Container: TypeAlias = "dict[Any, Any] | list[Any] | deque[Any] | set[Any] | tuple[Any, ...]"

# In eval mode they return their input, at most in another shape.
TRANSPARENT = (
    *(nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_CONTAINERS = (dict, list, deque, set, tuple)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
# Longer containers are saved but not searched: they are vocabularies or file names, which hold no tensors.
_LONGEST = 1000


class ModuleInventory:
    """The parts of a model whose state may change; each kind is searched for once and shared by all state savers.

    Args:
        model: The module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = list(model.modules())
        self.copies: dict[int, Tensor] = {}
        """By id, the copies of tensors that were made when the isolation began."""

    @cached_property
    def containers(self) -> list[Container]:
        """The attribute dictionaries of all modules and the containers in them, outermost first; without the hooks."""
        found: dict[int, Container] = {id(vars(module)): vars(module) for module in self.modules}
        level = [v for module in self.modules for name, v in vars(module).items() if not is_hooks(name)]
        while level:
            new = {id(v): v for v in level if _sort(type(v)) == "container" and id(v) not in found}
            found.update(new)
            level = [value for container in new.values() if len(container) <= _LONGEST for value in _values(container)]
        return list(found.values())

    @cached_property
    def tensors(self) -> list[tuple[Container, Any, Tensor]]:
        """All tensors but the parameters, as ``(container, key or index, tensor)``."""
        return [
            (container, key, value)
            for container in self.containers
            for key, value in (container.items() if isinstance(container, dict) else enumerate(container))
            if _sort(type(value)) == "tensor" and not isinstance(value, nn.Parameter)
        ]

    @property
    def hooks(self) -> list[Container]:
        """The containers that hold the hooks of modules."""
        found = [v for module in self.modules for name, v in vars(module).items() if is_hooks(name)]
        return [value for value in found if _sort(type(value)) == "container"]

    @property
    def generators(self) -> list[Any]:
        """The random generators that are attributes of modules."""
        return [v for module in self.modules for v in vars(module).values() if _sort(type(v)) == "generator"]


def is_layer(module: nn.Module) -> bool:
    """Whether a module computes something itself: it has no children, or has parameters of its own."""
    # By any(), because a compiled module without a length has no truth value.
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))


def _sort_of(cls: type) -> str:
    """What the instances of a class are."""
    sorts: dict[str, Any] = {"tensor": Tensor, "container": _CONTAINERS, "generator": _GENERATORS}
    return next((name for name, classes in sorts.items() if issubclass(cls, classes)), "")


_sort: Callable[[type], str] = cache(_sort_of)
"""Cached, because ``isinstance`` is slow for tensors."""


@cache
def is_hooks(name: str) -> bool:
    """Whether an attribute of a module with this name holds its hooks."""
    return name.startswith("_") and "_hooks" in name


def _values(container: Container) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)
