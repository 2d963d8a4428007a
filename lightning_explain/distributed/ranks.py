"""Samples over ranks and back: each takes a share, all get the whole, and they agree on what failed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lightning_explain.distributed.collectives import Collectives, raise_if_lost
from lightning_explain.distributed.packing import as_bytes, as_text, form_of, kind_of, packed, read, rebuilt, unpacked

T = TypeVar("T")


_DONE, _CALL, _FAILED, _MEMORY = range(4)


class FailedElsewhereError(RuntimeError):
    """What this rank did was given up because another one failed; the reason is told there."""


class MemoryElsewhereError(torch.OutOfMemoryError):
    """Another rank ran out of memory, and all of them have to go on in smaller passes."""


ELSEWHERE = (FailedElsewhereError, MemoryElsewhereError)
"""Errors whose reason is to be told on another rank."""


class Ranks:
    """The processes that explain together. All methods are to be called on all of them; alone they cost nothing.

    Those that need the others raise ``LostRanksError`` if one of them is gone, or does not come within the deadline.

    Args:
        world: Processes.
        shares: Shares of the samples; fewer than processes where several hold one model between them and need the same samples.
        share: Which of them is this process's.
        speaks: Whether what this process finds counts; one does of those with the same share.
        sharded: Calls of the model are collectives, so that all processes have to make the same ones.
        deadline: How long a process waits for the others. Default: torch's own, 30 minutes.
    """

    def __init__(
        self,
        world: int = 1,
        shares: int | None = None,
        share: int | None = None,
        speaks: bool = True,
        sharded: bool = False,
        deadline: timedelta | None = None,
    ) -> None:
        self.world = world
        self.shares = world if shares is None else shares
        self.number = share if share is not None else distributed.get_rank() if world > 1 else 0
        self.speaks = speaks
        self.sharded = sharded and world > 1
        self._settled: Exception | None = None
        self._collectives = Collectives(deadline)

    def samples(self, count: int) -> tuple[Tensor, int]:
        """Which of ``count`` samples this process explains, and how many of them count.

        Shares are contiguous, and equal but for one sample; some are empty where there are fewer samples than shares. Where
        the model is sharded the last sample is repeated until all are of the same size; these samples do not count.
        """
        sizes = [count // self.shares + (i < count % self.shares) for i in range(self.shares)]
        first, own = sum(sizes[: self.number]), sizes[self.number]
        size = sizes[0] if self.sharded else own
        return torch.arange(first, first + size).clamp(max=min(first + max(own, 1), count) - 1), own

    def in_company(self, needed: bool) -> Ranks:
        """These processes, which make the same calls of a model from now on if it needs the others on any of them."""
        found = copy.copy(self)
        found.sharded = self.sharded or not self.all(not needed)
        return found

    # -- agreement -------------------------------------------------------------------------------------------------

    def agreed(self, work: Callable[[], T]) -> T:
        """What the work gives, if it gives it on all ranks.

        Raises:
            FailedElsewhereError: If it failed on others only; its own error where it failed.
        """
        return self._together(work, _FAILED)

    def in_step(self, work: Callable[[], T]) -> T:
        """The same where the model is sharded; elsewhere each rank works for itself.

        Raises:
            torch.OutOfMemoryError: On all ranks of a sharded model, if any of them ran out of memory.
        """
        if self.sharded:
            return self._together(work, _MEMORY)
        try:
            return work()
        except Exception as error:
            # A model may have collectives of its own without being sharded.
            raise_if_lost(error)
            raise

    def _together(self, work: Callable[[], T], memory: int) -> T:
        if self.world == 1:
            return work()
        error: Exception | None = None
        try:
            found = work()
        except Exception as failure:
            raise_if_lost(failure)
            error = failure
        if settled := self._take_settled():
            raise settled from error
        code = _DONE if error is None else memory if isinstance(error, torch.OutOfMemoryError) else _FAILED
        highest, lowest = self._codes(code, error)
        if highest == lowest == _DONE:
            return found
        raise error if error is not None and code == highest else _elsewhere(highest)

    def synchronized(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Where the model is sharded: calls it on all ranks or on none, so that no rank waits in it for one that failed."""

        def together(*arguments: Any) -> Any:
            if self._settled is None:
                highest, lowest = self._codes(_CALL)
                self._settled = None if highest == lowest else _elsewhere(highest)
            if self._settled is not None:
                raise self._settled
            return call(*arguments)

        return together if self.sharded else call

    def _take_settled(self) -> Exception | None:
        settled, self._settled = self._settled, None
        return settled

    def _codes(self, code: int, reason: Exception | None = None) -> tuple[int, int]:
        # Always of this form, so that a rank that is done and one that calls the model meet in the same collective.
        highest, lowest = self._collectives.reduced([code, -code], distributed.ReduceOp.MAX, reason)
        return highest, -lowest

    def all(self, flag: bool, reason: Exception | None = None) -> bool:
        """Whether it is so on all ranks. ``reason``: why it is not on this one, to be told if the others are lost."""
        return flag if self.world == 1 else self._codes(int(not flag), reason)[0] == 0

    def failing(self, names: Sequence[str], failed: Iterable[str]) -> set[str]:
        """The names that failed on any rank, of those that are the same on all."""
        return set(self.first_failing(names, failed))

    def first_failing(
        self, names: Sequence[str], failed: Iterable[str], reason: Exception | None = None
    ) -> dict[str, int]:
        """For each name that failed on any rank the first rank on which it did.

        Args:
            names: The same on all ranks, in the same order.
            failed: Those that failed on this rank.
            reason: Why they did, to be told if the others are lost.
        """
        failed = set(failed)
        if self.world == 1 or not names:
            return {name: 0 for name in names if name in failed}
        rank = distributed.get_rank()
        mine = [rank if name in failed else self.world for name in names]
        first = self._collectives.reduced(mine, distributed.ReduceOp.MIN, reason)
        return {name: rank for name, rank in zip(names, first, strict=True) if rank < self.world}

    def unlike(self, found: Mapping[str, Any], own: int) -> dict[str, str]:
        """For each name under which this rank found something of another form than the first rank that has it, both forms.

        Args:
            found: Trees, as :meth:`together` takes them.
            own: The samples of this rank that count; what is found for none does not.
        """
        if self.world == 1:
            return {}
        forms = {name: form_of(tree) for name, tree in found.items()} if own and self.speaks else {}
        everywhere = [read(piece) for piece in self._collectives.exchanged(as_text(forms))]
        first = {name: rank for rank in reversed(range(self.world)) for name in everywhere[rank]}
        return {
            name: f"Rank {first[name]} found {everywhere[first[name]][name]} and rank {distributed.get_rank()} {form}, which "
            "cannot be put together."
            for name, form in forms.items()
            if form != everywhere[first[name]][name]
        }

    # -- exchange --------------------------------------------------------------------------------------------------

    def together(self, tree: Any, own: int) -> Any:
        """The samples of all ranks in order.

        Args:
            tree: Tensors, each ``(K, ...)``, in dictionaries and tuples, of the same form on all ranks but those without samples.
            own: The first so many of the K samples count.

        Raises:
            RuntimeError: On all ranks, if the trees are not of the same form.
        """
        if self.world == 1:
            return tree
        tensors: list[Tensor] = []
        form = packed(tree, tensors) if own and self.speaks else None
        flat = as_bytes([tensor[:own] for tensor in tensors] if form is not None else [])
        pieces = [read(piece) for piece in self._collectives.exchanged(as_text([form, own]))]
        parts = [
            (form, rebuilt(piece, form, samples))
            for (form, samples), piece in zip(pieces, self._collectives.exchanged(flat), strict=True)
            if form is not None
        ]
        if any(form != parts[0][0] for form, _ in parts):
            raise RuntimeError("The ranks found different things for their samples, which cannot be put together.")
        columns = zip(*(tensors for _, tensors in parts), strict=True)
        return unpacked(parts[0][0], iter([torch.cat(column) for column in columns]))

    def total(self, *numbers: int) -> list[int]:
        """Sums over ranks, of each share once."""
        if self.world == 1:
            return list(numbers)
        return self._collectives.reduced([n if self.speaks else 0 for n in numbers], distributed.ReduceOp.SUM)

    def first(self, tree: Any) -> Any:
        """What rank zero has: tensors, numbers and texts in dictionaries, tuples and lists. Tensors arrive on the CPU."""
        if self.world == 1:
            return tree
        tensors: list[Tensor] = []
        form, rank = packed(tree, tensors, samples=True), distributed.get_rank()
        text = self._collectives.broadcast(as_text(form) if rank == 0 else None)
        flat = self._collectives.broadcast(as_bytes(tensors) if rank == 0 else None)
        form = read(text)
        return unpacked(form, iter(rebuilt(flat, form)))

    def equal(self, text: str) -> bool:
        """Whether all ranks have the same text."""
        if self.world == 1:
            return True
        found = [piece.tolist() for piece in self._collectives.exchanged(as_text(text))]
        return all(piece == found[0] for piece in found)

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all ranks the buffers of rank zero, for each rank has its own batch statistics between two steps.

        To be called inside the guard, which puts back what was there. Buffers that differ in form are left alone.
        """
        if self.world == 1:
            return
        plain = {
            name: buffer
            for name, buffer in model.named_buffers()
            if buffer.layout == torch.strided and not hasattr(buffer, "full_tensor") and not buffer.is_meta
        }
        forms = {name: [kind_of(buffer), list(buffer.shape)] for name, buffer in plain.items()}
        everywhere = [read(piece) for piece in self._collectives.exchanged(as_text(forms))]
        names = [name for name in everywhere[0] if all(f.get(name) == everywhere[0][name] for f in everywhere)]
        with torch.no_grad():
            for name, value in self.first({name: plain[name] for name in names}).items():
                # A buffer that is a view may not be writable, and need not be where it is equal.
                if not torch.equal(plain[name].cpu(), value):
                    plain[name].copy_(value)


ALONE = Ranks()


def _elsewhere(code: int) -> Exception:
    if code == _MEMORY:
        return MemoryElsewhereError("Another rank ran out of memory.")
    if code == _FAILED:
        return FailedElsewhereError("Given up because it failed on another rank; the traceback is told there.")
    return RuntimeError(
        "The ranks call the model, which needs all of them, different numbers of times, because their samples ask for different "
        "numbers of passes (superpixels, for example). Use a method whose passes do not depend on the sample, or, if it is for its "
        "weights that the model needs them, strategy='ddp'."
    )


def check_samples(tree: Any, count: int) -> None:
    """Refuses tensors that have not one entry for each sample, and cannot be put together from shares.

    Raises:
        ValueError: If there is one.
    """
    tensors: list[Tensor] = []
    packed(tree, tensors)
    for tensor in tensors:
        if tensor.ndim == 0 or len(tensor) != count:
            raise ValueError(
                f"It gives {tuple(tensor.shape)} for {count} samples; where several ranks share the samples, the first dimension "
                "must be the samples."
            )
