"""Where ranks meet: collectives of our own beside the model's, in which no rank waits longer than a deadline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

# How gloo says that a rank is gone or does not come; NCCL and the stores have types of their own.
_TRANSPORT = ("gloo/transport", "Application timeout caused pair closure")


class LostRanksError(RuntimeError):
    """A rank is gone, or waits where the others will not come; there is nobody left to agree with."""

    def __init__(self) -> None:
        super().__init__(
            f"ExplanationMonitor: rank {distributed.get_rank()} has lost the other ranks while explaining. One of them failed "
            "or still waits inside the model's own communication, from which there is no way back; its output says why. "
            "Resume from the last checkpoint, and leave out the method that was explained, or the monitor "
            "(enabled=False). To be told sooner: DDPStrategy(timeout=...), and likewise for the other strategies."
        )


@contextmanager
def reporting_failures(failures: Mapping[str, str]) -> Iterator[None]:
    """What failed on this rank, by name and with its traceback, is said if the ranks lose each other: else nobody would."""
    try:
        yield
    except LostRanksError as lost:
        texts = [f"{name!r} failed on this rank before that:\n{text}" for name, text in failures.items()]
        lost.args = ("\n\n".join([str(lost), *texts]),)
        raise


def raise_if_lost(error: Exception) -> None:
    """Raises if an error was made by what lies between the ranks, even if it was taken for another one on its way.

    Raises:
        LostRanksError: With the error as its cause.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    for link in _chain(error):
        if isinstance(link, LostRanksError):
            raise link
        if _of_transport(link):
            raise LostRanksError from error


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and not any(error is other for other in found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _of_transport(error: BaseException) -> bool:
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in _TRANSPORT)
    return said or isinstance(error, distributed.DistError)


class Collectives:
    """Collectives of all ranks. They exchange what is on the CPU, in a gloo group apart from the model's.

    A rank that failed in the middle of a sharded model's forward leaves the others waiting in there. What it says here is
    never taken for a part of that forward. A rank waits at most until the deadline from when it came; one that comes
    later finds the connection closed, so all of them end. Every method raises ``LostRanksError`` then.

    Args:
        deadline: How long a rank waits for the others. Default: torch's own, 30 minutes.
    """

    def __init__(self, deadline: timedelta | None = None) -> None:
        self._deadline = deadline

    def reduced(
        self, numbers: Sequence[int], how: distributed.ReduceOp.RedOpType, reason: Exception | None = None
    ) -> list[int]:
        """The maximum, minimum or sum of each number. ``reason``: what failed on this rank before, if anything did."""
        with self._group(reason) as (group, device):
            found = torch.tensor(numbers, dtype=torch.int64, device=device)
            distributed.all_reduce(found, how, group)
            return list(map(int, found.tolist()))

    def exchanged(self, mine: Tensor) -> list[Tensor]:
        """The bytes of each rank, however many they are."""
        world, rank = distributed.get_world_size(), distributed.get_rank()
        lengths = self.reduced([len(mine) if i == rank else 0 for i in range(world)], distributed.ReduceOp.SUM)
        with self._group() as (group, device):
            padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
            padded[: len(mine)] = mine.to(device)
            found = list(torch.empty(world, max(lengths), dtype=torch.uint8, device=device).unbind())
            if max(lengths):
                distributed.all_gather(found, padded, group)
            return [piece[:length].cpu() for piece, length in zip(found, lengths, strict=True)]

    def broadcast(self, value: Tensor | None) -> Tensor:
        """The bytes of rank zero."""
        (length,) = self.reduced([0 if value is None else len(value)], distributed.ReduceOp.MAX)
        with self._group() as (group, device):
            sent = torch.empty(length, dtype=torch.uint8, device=device) if value is None else value.to(device)
            if length:
                distributed.broadcast(sent, 0, group)
            return sent.cpu()

    @contextmanager
    def _group(self, reason: Exception | None = None) -> Iterator[tuple[Any, torch.device]]:
        """The group and where it exchanges tensors. Its errors mean that a rank is lost."""
        try:
            yield _side_group(self._deadline), _device()
        except RuntimeError as error:
            if reason is not None:
                # So that the traceback begins with it.
                error.__context__, error.__suppress_context__ = reason, False
            raise LostRanksError from error


def collectives_called() -> int:
    """How many collectives this process has called in all of its groups, as far as their backends count them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    groups = distributed.distributed_c10d._world.pg_map
    return sum(map(_counted, groups))


def _counted(group: Any) -> int:
    try:
        return int(group._get_sequence_number_for_group())
    except RuntimeError:
        # Not all backends count.
        return 0


_GROUPS: dict[timedelta | None, tuple[Any, Any]] = {}


def _side_group(deadline: timedelta | None) -> Any:
    """The gloo group of all ranks with that deadline, made when all of them first meet; ``None``, the default one, without gloo."""
    if not distributed.is_gloo_available():
        return None
    world = distributed.group.WORLD
    # The default group is kept as well: another one is another world.
    if deadline not in _GROUPS or _GROUPS[deadline][0] is not world:
        _GROUPS[deadline] = (world, distributed.new_group(backend="gloo", timeout=deadline))
    return _GROUPS[deadline][1]


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator()
    if distributed.is_gloo_available() or accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
