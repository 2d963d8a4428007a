"""Tensors as bytes and their form as JSON, to go from rank to rank: nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def kind_of(tensor: Tensor) -> str:
    """The dtype's name."""
    return str(tensor.dtype).removeprefix("torch.")


def packed(value: Any, tensors: list[Tensor], samples: bool = False) -> Any:
    """The form of a tree, which JSON can hold; ``samples``: with the first dimension of its tensors, which are collected."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": [kind_of(value), list(value.shape if samples else value.shape[1:])]}
    if isinstance(value, Mapping):
        return {"items": [[key, packed(inner, tensors, samples)] for key, inner in value.items()]}
    if isinstance(value, (tuple, list)):
        return {type(value).__name__: [packed(inner, tensors, samples) for inner in value]}
    return value


def form_of(value: Any) -> str:
    """The form of a tree as it is told, such as ``{'infidelity': float32 (N,)}``."""
    if isinstance(value, Tensor):
        return f"{kind_of(value)} ({', '.join(['N', *map(str, value.shape[1:])])})".replace("(N)", "(N,)")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {form_of(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of " + ", ".join(map(form_of, value))
    return repr(value)


def unpacked(form: Any, tensors: Iterator[Tensor]) -> Any:
    """The tree of that form."""
    if not isinstance(form, dict):
        return form
    ((kind, content),) = form.items()
    if kind == "tensor":
        return next(tensors)
    if kind == "items":
        return {key: unpacked(inner, tensors) for key, inner in content}
    return (tuple if kind == "tuple" else list)(unpacked(inner, tensors) for inner in content)


def _forms(form: Any) -> Iterable[tuple[torch.dtype, list[int]]]:
    if not isinstance(form, dict):
        return
    ((kind, content),) = form.items()
    if kind == "tensor":
        yield getattr(torch, content[0]), content[1]
        return
    for inner in content:
        yield from _forms(inner[1] if kind == "items" else inner)


def rebuilt(flat: Tensor, form: Any, samples: int | None = None) -> list[Tensor]:
    """The tensors of a form from their bytes, with ``samples`` in front of each shape."""
    found, start = [], 0
    for dtype, shape in _forms(form):
        shape = shape if samples is None else [samples, *shape]
        size = torch.Size(shape).numel() * dtype.itemsize
        # A copy, for bytes of another dtype may begin anywhere.
        found.append(flat[start : start + size].clone().view(dtype).reshape(shape))
        start += size
    return found


def as_bytes(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of all tensors, on the CPU."""
    parts = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)


def read(text: Tensor) -> Any:
    """What :func:`as_text` wrote."""
    return json.loads(text.numpy().tobytes())


def as_text(value: Any) -> Tensor:
    """What JSON can hold, as bytes."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
