"""Tensors in dictionaries, tuples and lists: their form, and copies of them to be sent."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def sent(tensor: Tensor) -> Tensor:
    """A copy on the CPU; a view would be pickled with all that it is a view of."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def digest(tensor: Tensor) -> bytes:
    """Equal for tensors of equal bytes."""
    return blake2b(sent(tensor).reshape(-1).view(torch.uint8).numpy().data, digest_size=16).digest()


class _Form(str):
    """A form, which is written without quotes."""

    __repr__ = str.__str__


def _form(tensor: Tensor) -> _Form:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return _Form(f"{dtype} ({', '.join(['N', *map(str, tensor.shape[1:])])})".replace("(N)", "(N,)"))


def form_of(tree: Any) -> str:
    """The form of a tree of tensors ``(N, ...)`` as text, such as ``{'infidelity': float32 (N,)}``."""
    return repr(tree_map_only(Tensor, _form, tree))


def check_entries(tree: Any, count: int) -> None:
    """Refuses tensors that do not have one entry for each sample: they cannot be put together from shares.

    Raises:
        ValueError: If there is one.
    """
    for tensor in tree_leaves(tree):
        if isinstance(tensor, Tensor) and (tensor.ndim == 0 or len(tensor) != count):
            raise ValueError(
                f"It gives {tuple(tensor.shape)} for {count} samples; where ranks share samples, the first dimension must be the samples."
            )
