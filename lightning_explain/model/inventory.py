"""A model in; its modules, and what they reach, sorted by how it is put back, out, for the state savers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_explain.model.reachable import Container, Walk, is_hooks, slots, sort_of

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
        self.modules = list(model.modules())
        self.copies: dict[int, Tensor] = {}
        """By id, the copies of tensors that were made when the isolation began."""

    @cached_property
    def walk(self) -> Walk:
        """Everything that can be reached from the modules."""
        return Walk(dict(self.model.named_modules()))

    @cached_property
    def containers(self) -> list[Container]:
        """The attribute dictionaries of the modules and of the objects in them, and all containers; without the hooks."""
        return [value for sort, value in self.walk.owned if sort == "container"]

    @cached_property
    def slots(self) -> list[tuple[Any, str]]:
        """The attributes in slots, as ``(object, name)``."""
        return [(value, name) for sort, value in self.walk.owned if sort == "object" for name in slots(value)]

    @cached_property
    def tensors(self) -> list[tuple[Any, Any, Tensor]]:
        """All tensors but the parameters, as ``(container, key or index, tensor)``; ``None, None`` if it is in none of the model's own."""
        held = [
            (container, key, value)
            for container in self.containers
            for key, value in (container.items() if isinstance(container, dict) else enumerate(container))
            if sort_of(type(value)) == "tensor"
        ]
        known = {id(value) for _, _, value in held}
        others = [(None, None, value) for value in self._all("tensor") if id(value) not in known]
        return [entry for entry in (*held, *others) if not isinstance(entry[2], nn.Parameter)]

    @property
    def arrays(self) -> list[Any]:
        """The arrays that can be written into: of NumPy, of bytes, and Python's own."""
        return [value for value in self._all("array") if not isinstance(value, np.ndarray) or value.flags.writeable]

    @property
    def generators(self) -> list[Any]:
        """The random generators."""
        return self._all("generator")

    @property
    def hooks(self) -> list[Container]:
        """The containers that hold the hooks of modules."""
        found = [v for module in self.modules for name, v in vars(module).items() if is_hooks(name)]
        return [value for value in found if sort_of(type(value)) == "container"]

    def _all(self, sort: str) -> list[Any]:
        shared = [value for found, value in self.walk.shared if found == sort and size_of(value) <= SMALL]
        return [*(value for found, value in self.walk.owned if found == sort), *shared]


def size_of(value: Any) -> int:
    """Bytes of a tensor or an array; 0 for anything else."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return value.nbytes if isinstance(value, np.ndarray) else 0


def is_layer(module: nn.Module) -> bool:
    """Whether a module computes something itself: it has no children, or has parameters of its own."""
    # By any(), because a compiled module without a length has no truth value.
    return not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))
