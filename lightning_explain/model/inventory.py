"""A model in; its modules, and what they reach, sorted by how it is put back, out, for the state savers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_explain.model.reachable import Container, Walk, hooks_of, slots, sort_of

# In eval mode they return their input, at most in another shape.
TRANSPARENT = (
    *(nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)


SMALL = 2**20
"""Bytes of tensors and arrays behind functions and classes (a whole dataset may be a global) up to which they are put back."""


class ModuleInventory:
    """The parts of a model whose state may change; everything is searched for once and shared by all state savers.

    Args:
        model: The module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._named = dict(model.named_modules())
        self.modules = list(self._named.values())
        self.copies: dict[int, Tensor] = {}
        """By id, the copies of tensors that were made when the isolation began."""
        self.restore_hooks: Callable[[], None] = lambda: None
        """Gives the modules the hooks that they had when the isolation began."""

    @cached_property
    def walk(self) -> Walk:
        """Everything that can be reached from the modules."""
        return Walk(self._named)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, each once."""
        found = (parameter for module in self.modules for parameter in module._parameters.values())
        return list({id(parameter): parameter for parameter in found if parameter is not None}.values())

    @cached_property
    def containers(self) -> list[Container]:
        """The attribute dictionaries of the modules and of the objects in them, and all containers; without the hooks."""
        return self.walk.owned["container"]

    @cached_property
    def slots(self) -> list[tuple[Any, str]]:
        """The attributes in slots, as ``(object, name)``."""
        return [(value, name) for value in self.walk.owned["object"] for name in slots(value)]

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors but the parameters, each once."""
        found = self._all("tensor")
        if self.walk.full:
            found += [v for container in self.containers for _, v in _items(container) if sort_of(type(v)) == "tensor"]
        distinct = {id(value): value for value in found}.values()
        # A plain one is no parameter; asking whether others are is slow.
        return [value for value in distinct if type(value) is Tensor or not isinstance(value, nn.Parameter)]

    def holders(self, tensors: Iterable[Tensor]) -> list[tuple[Any, Any, Tensor]]:
        """The containers of the model's own that hold some of the tensors, as ``(container, key or index, tensor)``."""
        wanted = {id(tensor) for tensor in tensors}
        return [
            (container, key, value)
            for container in (self.containers if wanted else ())
            for key, value in _items(container)
            if id(value) in wanted
        ]

    @property
    def arrays(self) -> list[Any]:
        """The arrays that can be written into: of NumPy, of bytes, and Python's own."""
        return [value for value in self._all("array") if not isinstance(value, np.ndarray) or value.flags.writeable]

    @property
    def generators(self) -> list[Any]:
        """The random generators."""
        return self._all("generator")

    @cached_property
    def hooks(self) -> list[Container]:
        """The containers that hold the hooks of modules."""
        found = list(chain.from_iterable(map(hooks_of, map(vars, self.modules))))
        others = {kind for kind in set(map(type, found)) if sort_of(kind) != "container"}
        return [value for value in found if type(value) not in others] if others else found

    def _all(self, sort: str) -> list[Any]:
        return [*self.walk.owned[sort], *(value for value in self.walk.shared[sort] if size_of(value) <= SMALL)]


def _items(container: Container) -> Iterable[tuple[Any, Any]]:
    return dict.items(container) if isinstance(container, dict) else enumerate(container)


def size_of(value: Any) -> int:
    """Bytes of a tensor or an array; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return value.nbytes if isinstance(value, np.ndarray) else 0


def is_layer(module: nn.Module) -> bool:
    """Whether a module computes something itself: it has no children, or has parameters of its own."""
    # By any(), because a compiled module without a length has no truth value.
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))
