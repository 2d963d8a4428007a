"""Exchanges Python objects between ranks, within a deadline and apart from the model's own communication."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")

# How gloo reports a rank that is gone or does not come; NCCL and the stores have exceptions of their own.
_TRANSPORT = ("gloo/transport", "Application timeout caused pair closure")


class LostRanksError(RuntimeError):
    """A rank is gone, or waits where the others will not come; nobody is left to agree with."""

    def __init__(self) -> None:
        super().__init__(
            f"ExplanationMonitor: rank {distributed.get_rank()} has lost the other ranks while explaining. One of them failed "
            "or still waits inside the model's own communication, from which there is no way back; its output gives the reason. "
            "Resume from the last checkpoint, and leave out the method that was explained, or the monitor "
            "(enabled=False). To wait less next time: DDPStrategy(timeout=...), and likewise for the other strategies."
        )


@contextmanager
def reporting_failures(failures: Mapping[str, str]) -> Iterator[None]:
    """Adds this rank's failures (name to traceback) to a ``LostRanksError``; they would be reported nowhere otherwise."""
    try:
        yield
    except LostRanksError as lost:
        texts = [f"{name!r} failed on this rank before that:\n{text}" for name, text in failures.items()]
        lost.args = ("\n\n".join([str(lost), *texts]),)
        raise


def raise_if_lost(error: Exception) -> None:
    """Raises if an error comes from the communication between ranks, even if other code has turned it into another error.

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


def gather(value: T, deadline: timedelta | None = None) -> list[T]:
    """The values of all ranks, in order of the ranks. Tensors must be on the CPU.

    Args:
        value: Any object that can be pickled; all ranks are processes of the same program.
        deadline: How long a rank waits for the others. Default: torch's own, 30 minutes.

    Raises:
        LostRanksError: If a rank is gone, or does not come within the deadline. A rank that comes later finds the connection
            closed, so all of them end.
    """
    with _lost_ranks():
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, value, group=_side_group(deadline))
        return found


def broadcast(value: T, deadline: timedelta | None = None) -> T:
    """The value of rank zero; see :func:`gather`."""
    with _lost_ranks():
        found = [value if distributed.get_rank() == 0 else None]
        distributed.broadcast_object_list(found, src=0, group=_side_group(deadline))
        return found[0]  # type: ignore[return-value]


def all_arrive(deadline: timedelta) -> bool:
    """Whether every rank calls this within the deadline; those that do all get the same answer.

    It takes a few words with the store and no collective, in which a rank would be stuck if another one never comes.

    Raises:
        LostRanksError: If the process that keeps the store is gone.
    """
    store = distributed.distributed_c10d._get_default_store()
    with _lost_ranks():
        # Counted by the store, because ranks that did not come last time have not counted.
        key = f"lightning_explain/arrival/{store.add('lightning_explain/arrivals', 0)}"
        complete = store.add(f"{key}/ranks", 1) == distributed.get_world_size()
        late = not complete
        if late:
            with suppress(RuntimeError):
                store.wait([f"{key}/answer"], deadline)
                late = False
        # Of the last rank to come and those that have waited for long enough, the first one decides.
        if (complete or late) and store.add(f"{key}/decisions", 1) == 1:
            store.add("lightning_explain/arrivals", 1)
            store.set(f"{key}/answer", "all" if complete else "some")
        return bool(store.get(f"{key}/answer") == b"all")


@contextmanager
def _lost_ranks() -> Iterator[None]:
    """Turns the errors of a collective into ``LostRanksError``."""
    try:
        yield
    except RuntimeError as error:
        raise LostRanksError from error


_GROUPS: dict[timedelta | None, tuple[Any, Any]] = {}


def _side_group(deadline: timedelta | None) -> Any:
    """The gloo group of all ranks with that deadline, made when all of them first call it; ``None``, the default one, without gloo.

    The group is apart from the model's: a rank that fails in the middle of a sharded model's forward leaves the others waiting in
    there, and what it sends here is never taken for a part of that forward.
    """
    if not distributed.is_gloo_available():
        return None
    world = distributed.group.WORLD
    # The default group is kept as well: another one is another world.
    if deadline not in _GROUPS or _GROUPS[deadline][0] is not world:
        _GROUPS[deadline] = (world, distributed.new_group(backend="gloo", timeout=deadline))
    return _GROUPS[deadline][1]


def collectives_called() -> int:
    """How many collectives this process has called in all of its groups, as far as their backends count them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0
    groups: Any = distributed.distributed_c10d._world.pg_map
    called = 0
    for group in groups:
        # Not all backends count.
        with suppress(RuntimeError):
            called += group._get_sequence_number_for_group()
    return called
