"""Follows the elements of the inputs through a forward pass, up to the embeddings that look them up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_explain.core.contracts import Lookup
from lightning_explain.model.activations import name_of, words

_MOVES = words(
    "getitem select narrow index_select unbind split chunk tensor_split squeeze unsqueeze reshape reshape_as view view_as flatten "
    "unflatten transpose permute swapaxes movedim t expand expand_as repeat tile cat concat stack hstack column_stack flip roll"
)
"""They only move elements, so that they do the same with their numbers."""
_ELEMENTWISE = words(
    "clone detach contiguous alias to long int short char byte type type_as float double half bfloat16 cpu cuda requires_grad "
    "add radd iadd sub rsub isub mul rmul imul div truediv floor_divide floordiv ifloordiv remainder mod imod rmod fmod pow abs "
    "clamp clip clamp_min clamp_max minimum maximum bitwise_and bitwise_or bitwise_xor and or xor lshift rshift where masked_fill "
    "round floor ceil trunc bucketize searchsorted"
)
"""They compute each element from the one in its place, and from what is no input."""


class Followed:
    """Knows, for each tensor that is made of elements of one input, which elements those are."""

    def __init__(self, points: Sequence[Tensor]) -> None:
        # The tensors are kept alive, so that their ids are not used again.
        self._known: dict[int, tuple[Tensor, int, Tensor]] = {}
        for i, x in enumerate(points):
            if x.ndim in (1, 2):
                numbers = torch.arange(x[0].numel(), device=x.device).reshape(1, *x.shape[1:])
                self._known[id(x)] = (x, i, numbers.expand(x.shape))

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Notes what a call returned, if it is known what that is made of."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = [self._known[id(x)] for x in tensors if id(x) in self._known]
        name = name_of(func)
        if not known or name not in _MOVES | _ELEMENTWISE or len({i for _, i, _ in known}) > 1:
            return
        try:
            numbers = self._moved(func, args, kwargs) if name in _MOVES else _in_place(known, out)
        except (RuntimeError, IndexError, TypeError, KeyError):
            return
        for tensor, own in zip(tree_leaves(out), tree_leaves(numbers), strict=False):
            if isinstance(tensor, Tensor) and isinstance(own, Tensor) and tensor.shape == own.shape:
                self._known[id(tensor)] = (tensor, known[0][1], own)

    def _moved(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        first, index = (*args, None, None)[:2]
        if isinstance(first, Tensor) and id(first) not in self._known:
            # A table of numbers, such as hashes of words, in which a tensor looks something up.
            own = self._known[id(index)][2]
            return own.reshape(*own.shape, *(1,) * (first.ndim - 1)).expand(*own.shape, *first.shape[1:])
        moved = isinstance(first, Tensor)
        taken = (first,) if moved else first
        if not all(id(x) in self._known for x in tree_leaves(taken) if isinstance(x, Tensor)):
            return None
        numbers = tree_map_only(Tensor, lambda x: self._known[id(x)][2], taken)
        return func(*(numbers if moved else (numbers,)), *args[1:], **kwargs)

    def lookup(self, ids: Any) -> Lookup | None:
        """What a tensor ``(N, ...)`` is made of; ``None`` if that is not known, or differs between samples."""
        if id(ids) not in self._known:
            return None
        _, i, numbers = self._known[id(ids)]
        same = numbers.ndim > 0 and torch.equal(numbers, numbers[:1].expand_as(numbers))
        return Lookup(i, tuple(numbers[0].flatten().tolist())) if same else None


def _in_place(known: Sequence[tuple[Tensor, int, Tensor]], out: Any) -> Tensor | None:
    """The numbers of the elements of what an elementwise call returned; ``None`` if it mixed some."""
    first, *further = (numbers.broadcast_to(out.shape) for _, _, numbers in known)
    return first if all(torch.equal(first, other) for other in further) else None
