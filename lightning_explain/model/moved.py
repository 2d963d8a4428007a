"""What a forward moves and nobody can put back is found by comparing before and after, and reported by name."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_, length_hint
from typing import Any
from weakref import WeakSet

from torch import nn

from lightning_explain.core.warn import warn_or_log
from lightning_explain.model.inventory import ModuleInventory
from lightning_explain.model.reachable import MOST

_MENTIONED: WeakSet[nn.Module] = WeakSet()
# What is equal whenever it is the same; other things are compared by identity.
_PLAIN = (bool, int, float, complex, str, bytes)


@contextmanager
def reported(inventory: ModuleInventory) -> Iterator[None]:
    """Warns on exit, once for each model, of what has moved among the things that cannot be put back."""
    if inventory.model in _MENTIONED:
        yield
        return
    shared = inventory.walk.shared
    before = [(value, _mark(value)) for sort in ("container", "class", "iterator") for value in shared[sort]]
    try:
        yield
    finally:
        moved = [value for value, mark in before if not _same(mark, _mark(value))]
        if moved:
            _MENTIONED.add(inventory.model)
            warn_or_log(
                f"The model's forward changes {_named(inventory, moved)}, which cannot be put back after an explanation, so training "
                "may differ from training without the monitor. Keep that state in an attribute of the module."
            )
        if inventory.walk.full:
            _MENTIONED.add(inventory.model)
            warn_or_log(
                f"The model holds more than {MOST:,} objects. Those beyond are not searched for random generators and other things that an "
                "explanation would have to put back; if its forward changes none of them, all is well."
            )


def _mark(value: Any) -> list[Any]:
    """What tells whether a thing has moved."""
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    if isinstance(value, type):
        attributes = vars(value)
        return [attributes[name] for name in _unreserved(tuple(attributes))]
    if isinstance(value, types.GeneratorType):
        return [] if value.gi_frame is None else [value.gi_frame.f_lasti, *value.gi_frame.f_locals.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return [length_hint(value, -1), repr(value)]


@functools.lru_cache(4096)
def _unreserved(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that Python does not reserve; what it keeps under the others may come and go by itself."""
    return tuple(name for name in names if not name.startswith("__"))


def _same(before: list[Any], after: list[Any]) -> bool:
    # Nearly always everything is the same, which is seen at once.
    return len(before) == len(after) and (
        all(map(is_, before, after))
        or all(
            a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)
            for a, b in zip(before, after, strict=True)
        )
    )


def _named(inventory: ModuleInventory, moved: list[Any]) -> str:
    names = list(dict.fromkeys(inventory.walk.path(value) for value in moved))
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
