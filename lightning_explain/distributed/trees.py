"""Tensors in dictionaries, tuples and lists: their form, and one function applied to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor


def mapped(work: Callable[..., Any], *trees: Any) -> Any:
    """The result of the work for the tensors at each place of trees of the same form, as a tree."""
    tree = trees[0]
    if isinstance(tree, Tensor):
        return work(*trees)
    if isinstance(tree, Mapping):
        return {key: mapped(work, *(each[key] for each in trees)) for key in tree}
    if isinstance(tree, (tuple, list)):
        return (tuple if isinstance(tree, tuple) else list)(mapped(work, *each) for each in zip(*trees, strict=True))
    return tree


def sent(tensor: Tensor) -> Tensor:
    """A copy on the CPU; a view would be pickled with all that it is a view of."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def digest(tensor: Tensor) -> bytes:
    """Equal for tensors of equal bytes."""
    return blake2b(sent(tensor).reshape(-1).view(torch.uint8).numpy().data, digest_size=16).digest()


def form_of(tree: Any) -> str:
    """The form of a tree of tensors ``(N, ...)`` as text, such as ``{'infidelity': float32 (N,)}``."""
    if isinstance(tree, Tensor):
        dtype = str(tree.dtype).removeprefix("torch.")
        return f"{dtype} ({', '.join(['N', *map(str, tree.shape[1:])])})".replace("(N)", "(N,)")
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {form_of(inner)}" for key, inner in tree.items()) + "}"
    if isinstance(tree, (tuple, list)):
        return f"{type(tree).__name__} of " + ", ".join(map(form_of, tree))
    return repr(tree)


def check_samples(tree: Any, count: int) -> None:
    """Refuses tensors that do not have one entry for each sample: they cannot be put together from shares.

    Raises:
        ValueError: If there is one.
    """

    def check(tensor: Tensor) -> None:
        if tensor.ndim == 0 or len(tensor) != count:
            raise ValueError(
                f"It gives {tuple(tensor.shape)} for {count} samples; where several ranks share the samples, the first dimension "
                "must be the samples."
            )

    mapped(check, tree)
