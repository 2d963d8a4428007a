"""Tensors with their places in a call in; positional and keyword arguments out, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Place: TypeAlias = "tuple[int | str, ...]"
"""Where a value goes in the call of the model: the argument, by position or name; then, if the argument is a mapping or a tuple,
the keys that lead to the value in it: ``("inputs", "image")``."""


EACH, SIZES = "[i]", "[i].shape[1:]"
"""The keys of an argument that is a list with one image for each sample: the images, padded to one size ``(N, C, H, W)``, and, if they
differ, their own sizes ``(N, 2)``."""


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

    Floating-point tensors are explained, and codes of categories beside tables; if there are no floating-point ones, the first tensor.
    """
    tensors = {place: value for place, value in found.items() if isinstance(value, Tensor)}
    numbers = [value for value in tensors.values() if value.is_floating_point()]
    explained = {p: x for p, x in tensors.items() if x.is_floating_point() or _are_codes(p, x, numbers)}
    explained = explained or dict(list(tensors.items())[:1])
    others = {place: value for place, value in found.items() if place not in explained}
    return tuple(explained.values()), tuple(others.values()), (*explained, *others)


_NO_CODES = ("mask", "length", "position", "type", "index", "idx", "label", "target")


def _are_codes(place: Place, x: Tensor, numbers: list[Tensor]) -> bool:
    """Whether whole numbers are columns ``(N, K)`` or a named column ``(N,)`` of a table whose other columns are ``numbers``."""
    if not numbers or any(other.ndim > 2 for other in numbers) or x.dtype == torch.bool or x.ndim not in (1, 2):
        return False
    name = str(place[-1]).lower()
    if name in ("id", "ids", "y") or any(word in name for word in _NO_CODES):
        return False
    # Of one shape with numbers in several columns they are ids, and the numbers weights or a mask of these.
    return (
        isinstance(place[-1], str)
        if x.ndim == 1
        else all(x.shape != other.shape or x.shape[1] == 1 for other in numbers)
    )


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
    if EACH in part:
        return _listed(part[EACH], part.get(SIZES))
    built = {key: _built(value) for key, value in part.items()}
    return tuple(built[key] for key in sorted(built)) if all(isinstance(key, int) for key in built) else built


def _listed(images: Tensor, sizes: Tensor | None) -> list[Tensor]:
    """Images ``(N, C, H, W)`` one by one, each of its own size."""
    if sizes is None:
        return list(images)
    cut = zip(images, sizes.tolist(), strict=True)
    # Contiguous, as they came: other strides are other rounding.
    return [image[:, :height, :width].contiguous() for image, (height, width) in cut]


def named(place: Place) -> str:
    """A place as an error message names it: ``'mask'``, ``argument 1``, ``'inputs'['image']``."""
    first, *keys = place
    return (repr(first) if isinstance(first, str) else f"argument {first}") + "".join(f"[{key!r}]" for key in keys)
