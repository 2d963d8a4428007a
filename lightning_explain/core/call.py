"""Tensors with their places in a call in; positional and keyword arguments out, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor

Place: TypeAlias = "tuple[int | str, ...]"
"""Where a value goes in the call of the model: the argument, by position or name; then, if the argument is a mapping or a tuple,
the keys that lead to the value in it: ``("inputs", "image")``."""


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """The values in nested mappings, tuples and lists that hold tensors, each with its place; anything else is one value."""
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, (tuple, list)) and any(isinstance(part, (Tensor, Mapping)) for part in value):
        items = enumerate(value)
    else:
        yield place, value
        return
    for key, part in items:
        yield from leaves(part, (*place, key if isinstance(key, int) else str(key)))


def divided(found: Mapping[Place, Any]) -> tuple[tuple[Tensor, ...], tuple[Any, ...], tuple[Place, ...]]:
    """Inputs that are explained, further arguments, and the places of both.

    Floating-point tensors are explained; if there are none, the first tensor.
    """
    tensors = {place: value for place, value in found.items() if isinstance(value, Tensor)}
    explained = {place: value for place, value in tensors.items() if value.is_floating_point()}
    explained = explained or dict(list(tensors.items())[:1])
    others = {place: value for place, value in found.items() if place not in explained}
    return tuple(explained.values()), tuple(others.values()), (*explained, *others)


def by_position(count: int) -> tuple[Place, ...]:
    """The places of the values of a call that names nothing."""
    return tuple((i,) for i in range(count))


class _Node(dict[Any, Any]):
    """A container that is being put together; its keys are those of a mapping, or the indices of a tuple."""


def arguments(places: Iterable[Place], values: Iterable[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The positional and the keyword arguments of a call that has each value at its place."""
    root = _Node()
    for (*way, last), value in zip(places, values, strict=True):
        node = root
        for key in way:
            node = node.setdefault(key, _Node())
        node[last] = value
    call = {key: _built(part) for key, part in root.items()}
    positions = sorted(key for key in call if isinstance(key, int))
    return [call[key] for key in positions], {key: value for key, value in call.items() if not isinstance(key, int)}


def _built(part: Any) -> Any:
    if not isinstance(part, _Node):
        return part
    built = {key: _built(value) for key, value in part.items()}
    return tuple(built[key] for key in sorted(built)) if all(isinstance(key, int) for key in built) else built


def named(place: Place) -> str:
    """A place as an error message names it: ``'mask'``, ``argument 1``, ``'inputs'['image']``."""
    first, *keys = place
    return (repr(first) if isinstance(first, str) else f"argument {first}") + "".join(f"[{key!r}]" for key in keys)
