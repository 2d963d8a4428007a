"""Divides samples over ranks and puts the results together; ranks agree on what failed.

A rank that leaves a section with an error says so in its next exchange, whatever the other ranks exchange there. They leave the
section too, so that no rank waits for one that does not come.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map, tree_map_only

from lightning_explain.distributed import collectives
from lightning_explain.distributed.collectives import raise_if_lost
from lightning_explain.distributed.trees import digest, form_of, sent

T = TypeVar("T")


class FailedElsewhereError(RuntimeError):
    """This rank gave up its work because another rank failed; that rank reports the reason."""


class MemoryElsewhereError(torch.OutOfMemoryError):
    """Another rank ran out of memory, and all ranks must go on in smaller passes."""


ELSEWHERE = (FailedElsewhereError, MemoryElsewhereError)
"""Errors whose reason another rank reports."""

# How a section ended on a rank. "inside": not yet, for it exchanges something; "elsewhere": it failed because another rank did.
_DONE, _INSIDE, _SURVIVED, _ELSEWHERE, _FAILED, _MEMORY = "done", "inside", "survived", "elsewhere", "failed", "memory"

Survives: TypeAlias = "Callable[[Exception], bool]"
"""Whether a section survives an error."""


def anything(error: Exception) -> bool:
    """Whether a section survives the error: it always does."""
    return True


def nothing(error: Exception) -> bool:
    """Whether a section survives the error: it never does."""
    return False


@dataclass(frozen=True)
class _Statuses:
    """What a rank that leaves a section sends: its status in each open section, the outermost first."""

    of: tuple[str, ...]


# The sections that this process is in, the outermost first.
_OPEN: list[Survives] = []
# The section that the last exchange ended, by its place above, and how it ended on each rank.
_ended: tuple[int, list[str]] | None = None


@contextmanager
def _opened(survives: Survives) -> Iterator[None]:
    """Puts a section into the list of open ones; behind the outermost one nothing is left to be settled."""
    global _ended
    level = len(_OPEN)
    _OPEN.append(survives)
    try:
        yield
    finally:
        del _OPEN[level:]
        _ended = _ended if _OPEN else None


_GAVE_UP = "Gave up because another rank did; read the traceback printed there."
_UNEVEN = (
    "The ranks call the model, which needs all of them, different numbers of times, because their samples ask for different "
    "numbers of passes (superpixels, for example). Use a method whose passes do not depend on the sample, or, if the model "
    "needs them only because its weights are sharded, strategy='ddp'."
)


@dataclass
class Agreement:
    """The outcome of an agreed section, for errors that it survives.

    Args:
        failed_rank: The first rank on which the section failed; ``None``: it succeeded on all.
        error: This rank's own error, if there is one.
    """

    failed_rank: int | None = None
    error: Exception | None = None


class Ranks:
    """The processes that explain together. Call every method on all of them; on a single process they cost nothing.

    Methods that need the other ranks raise ``LostRanksError`` if one is gone, or does not come within the deadline.

    Args:
        world: Number of processes.
        shares: Number of shares of the samples; fewer than processes where several hold one model between them and need the
            same samples.
        share: This process's share.
        speaks: Whether this process's results count; of processes with the same share, those of one do.
        sharded: Calls of the model are collectives, so all processes must make the same calls.
        deadline: How long a process waits for the others. Default: torch's own, 30 minutes.

    Example::

        with ranks.agree("the scores"):
            scores = compute()  # if this fails on one rank, the section raises on all
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
        self.number = share if share is not None else self.rank
        self.speaks = speaks
        self.sharded = sharded and world > 1
        self._deadline = deadline

    @property
    def rank(self) -> int:
        """The number of this process."""
        return distributed.get_rank() if self.world > 1 else 0

    def samples(self, count: int) -> tuple[Tensor, int]:
        """The indices, of ``count`` samples, that this process explains, and how many of them count.

        Shares are contiguous, and of equal size but for one sample; some are empty if there are fewer samples than shares. For
        a sharded model, the last sample is repeated until all shares have the same size; these repetitions do not count.
        """
        sizes = [count // self.shares + (i < count % self.shares) for i in range(self.shares)]
        first, own = sum(sizes[: self.number]), sizes[self.number]
        size = sizes[0] if self.sharded else own
        return torch.arange(first, first + size).clamp(max=min(first + max(own, 1), count) - 1), own

    def in_company(self, needed: bool) -> Ranks:
        """These processes; from now on they make the same calls of a model if it needs the others on any of them."""
        found = copy.copy(self)
        found.sharded = self.sharded or any(self.gather(needed))
        return found

    # -- agreement -------------------------------------------------------------------------------------------------

    @contextmanager
    def agree(self, what: str, survives: Survives = nothing, retries: bool = False) -> Iterator[Agreement]:
        """A section that succeeds on all ranks or fails on all of them, wherever in it a rank fails.

        Args:
            what: What the section does, for the message on the other ranks.
            survives: Whether the section does not raise an error, if this is so for all errors on all ranks; the yielded
                agreement then names the rank.
            retries: All ranks will try again in smaller passes if one runs out of memory, those with another error too.

        Raises:
            Exception: This rank's own error.
            MemoryElsewhereError: If another rank ran out of memory.
            FailedElsewhereError: If another rank failed.
            RuntimeError: If the ranks call a sharded model different numbers of times.
        """
        agreement = Agreement()
        if self.world == 1:
            try:
                yield agreement
            except Exception as error:
                raise_if_lost(error)
                if isinstance(error, ELSEWHERE) or not survives(error):
                    raise
                agreement.failed_rank, agreement.error = 0, error
            return
        with _opened(survives):
            try:
                yield agreement
            except Exception as error:
                raise_if_lost(error)
                # Inside the handler, so that the traceback of ranks that lose each other here begins with the error.
                self._settle(agreement, what, retries, error)
            else:
                self._settle(agreement, what, retries)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """A section that calls the model: agreed upon if the model is sharded; otherwise each rank works for itself.

        Raises:
            torch.OutOfMemoryError: On all ranks of a sharded model, if any of them ran out of memory.
        """
        if self.sharded:
            with self.agree("a pass", retries=True):
                yield
            return
        try:
            yield
        except Exception as error:
            # A model may have collectives of its own without being sharded.
            raise_if_lost(error)
            raise

    def synchronized(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """For a sharded model: calls it on all ranks or on none, so that no rank waits in it for one that failed."""

        def together(*arguments: Any, **keywords: Any) -> Any:
            self.gather(_INSIDE)
            return call(*arguments, **keywords)

        return together if self.sharded else call

    def _settle(self, agreement: Agreement, what: str, retries: bool, error: Exception | None = None) -> None:
        """Exchanges how the section ended, unless an exchange inside has ended it, and raises or notes it."""
        global _ended
        *around, last = (_INSIDE if error is None else _status_of(error, survives) for survives in _OPEN)
        if _ended is None:
            self._exchange(_Statuses((*around, _DONE if error is None else last)))
        assert _ended is not None
        place, statuses = _ended
        if place < len(around):
            # It is for the section around this one to say how.
            raise error or FailedElsewhereError(_GAVE_UP)
        _ended = None
        failure = self._failure(what, statuses, retries, error)
        if failure is not None:
            raise failure
        agreement.failed_rank = statuses.index(_SURVIVED) if _SURVIVED in statuses else None
        agreement.error = error

    def _failure(
        self, what: str, statuses: list[str], retries: bool = False, error: Exception | None = None
    ) -> Exception | None:
        """What a section raises on this rank, if anything."""
        kinds, own = set(statuses), statuses[self.rank]
        if kinds == {_DONE} or (_SURVIVED in kinds and kinds <= {_DONE, _INSIDE, _SURVIVED, _ELSEWHERE}):
            return None
        if error is not None and own != _INSIDE and not (retries and _MEMORY in kinds and own != _MEMORY):
            return error
        if _MEMORY in kinds:
            return MemoryElsewhereError(
                f"Rank {statuses.index(_MEMORY)} ran out of memory in {what}; lower max_examples_per_pass."
            )
        if kinds == {_DONE, _INSIDE}:
            return RuntimeError(_UNEVEN)
        rank = next(statuses.index(kind) for kind in (_FAILED, _SURVIVED, _ELSEWHERE) if kind in kinds)
        return FailedElsewhereError(f"Gave up because {what} failed on rank {rank}; read the traceback printed there.")

    def _exchange(self, value: Any) -> list[Any]:
        """The values of all ranks; if any of them leaves a section, notes which one, and how it ended on each rank."""
        global _ended
        found = collectives.gather(value, self._deadline)
        left = [x.of for x in found if isinstance(x, _Statuses)]
        if left:
            place = min(map(len, left)) - 1
            _ended = place, [x.of[place] if isinstance(x, _Statuses) else _INSIDE for x in found]
        return found

    def failing(self, failed: Iterable[str]) -> dict[str, int]:
        """For each name that failed on any rank, the first rank on which it did. ``failed``: the names that did on this rank."""
        return _first_with_each(self.gather(list(failed)))

    def unlike(self, found: Mapping[str, Any], own: int) -> dict[str, str]:
        """Both forms, for each name whose result on this rank differs in form from that on the first rank that has one.

        Args:
            found: Trees by name, as :meth:`together` takes them.
            own: The number of this rank's samples that count; a result for none does not.
        """
        forms = {name: form_of(tree) for name, tree in found.items()} if own and self.speaks and self.world > 1 else {}
        everywhere = self.gather(forms)
        first = _first_with_each(everywhere)
        return {
            name: f"Rank {first[name]} found {everywhere[first[name]][name]}, which cannot be joined with {form} of rank {self.rank}."
            for name, form in forms.items()
            if form != everywhere[first[name]][name]
        }

    # -- exchange --------------------------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order; anything that can be pickled, with tensors on the CPU.

        Raises:
            FailedElsewhereError: If another rank has left a section that this one is in.
        """
        if self.world == 1:
            return [value]
        found = self._exchange(value) if _ended is None else []
        if _ended is not None:
            raise FailedElsewhereError(_GAVE_UP)
        return found

    def first(self, tree: Any) -> Any:
        """What rank zero has; tensors in dictionaries, tuples and lists arrive on the CPU."""
        if self.world == 1:
            return tree
        found = tree_map_only(Tensor, sent, tree) if self.rank == 0 else None
        # Whoever does not come says so in an exchange of this kind.
        self.gather(None)
        return collectives.broadcast(found, self._deadline)

    def together(self, tree: Any, own: int) -> Any:
        """The samples of all ranks in order.

        Args:
            tree: Tensors, each ``(K, ...)``, in dictionaries, tuples and lists, of the same form on all ranks that have samples.
            own: The first so many of the K samples count.

        Raises:
            RuntimeError: On all ranks, if the trees are not of the same form.
        """
        if self.world == 1:
            return tree
        mine = [tree_map_only(Tensor, lambda x: sent(x[:own]), tree)] if own and self.speaks else []
        parts = [part for found in self.gather(mine) for part in found]
        if len(set(map(form_of, parts))) > 1:
            raise RuntimeError("The ranks have results of different forms, which cannot be joined.")
        return tree_map(lambda x, *others: torch.cat([x, *others]) if isinstance(x, Tensor) else x, *parts)

    def total(self, *numbers: int) -> list[int]:
        """Sums over ranks, of each share once."""
        return [sum(column) for column in zip(*filter(None, self.gather(numbers if self.speaks else ())), strict=True)]

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all ranks the buffers of rank zero, where they differ: each rank has its own batch statistics between two steps.

        Call it inside the isolation, which puts back what was there. Buffers that differ in shape or dtype are left alone.
        """
        if self.world == 1:
            return
        plain = {
            name: buffer
            for name, buffer in model.named_buffers()
            if buffer.layout == torch.strided and not hasattr(buffer, "full_tensor") and not buffer.is_meta
        }
        everywhere = self.gather({name: (form_of(buffer[None]), digest(buffer)) for name, buffer in plain.items()})
        names = [
            name
            for name, (form, bits) in everywhere[0].items()
            if all(found.get(name, ("", b""))[0] == form for found in everywhere)
            and any(found[name][1] != bits for found in everywhere)
        ]
        shared = self.first({name: plain[name] for name in names}) if names else {}
        with torch.no_grad():
            for name, value in shared.items():
                # A buffer that is a view may not be writable, and need not be where it is equal.
                if everywhere[self.rank][name] != everywhere[0][name]:
                    plain[name].copy_(value)


ALONE = Ranks()


def _first_with_each(everywhere: Sequence[Iterable[str]]) -> dict[str, int]:
    """The first rank that has each name, in order of the ranks."""
    first: dict[str, int] = {}
    for rank, names in enumerate(everywhere):
        first |= {name: rank for name in names if name not in first}
    return first


def _status_of(error: Exception, survives: Survives) -> str:
    if isinstance(error, ELSEWHERE):
        return _ELSEWHERE
    if survives(error):
        return _SURVIVED
    return _MEMORY if isinstance(error, torch.OutOfMemoryError) else _FAILED
