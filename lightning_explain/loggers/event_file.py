"""Summaries in; records of a TensorBoard event file out, written at once, without a thread and without a logger."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_explain.store.disk import check_room

_numbers = itertools.count()
_BLOCK = 256
_CASTAGNOLI = 0x82F63B78


class EventFile:
    """An event file of our own in the folder of a run, beside that of the run's logger; TensorBoard shows both as one run.

    A logger's writer has a thread, which dies of its first error; the next flush then raises in the training. Here each call opens
    the file, appends whole records and closes it, so that an error is the caller's, and nothing is pending or open at the end.
    Where writing failed, the next call begins another file, because TensorBoard may have read half a record of the former.

    Its ``remote`` says whether the folder is.

    Args:
        folder: The folder of the run; a local one is created when it is first needed. In a remote one (``s3://...``), where
            nothing can be appended, each call writes a file.

    Example:
        >>> import os, tempfile
        >>> from lightning_explain.loggers.event_file import EventFile, records
        >>> from torch.utils.tensorboard.summary import scalar
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     EventFile(folder).append(records([scalar("explain/infidelity/ig", 0.5)], step=120))
        ...     print(len(os.listdir(folder)))
        1
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = os.fspath(folder)
        self.remote = "://" in folder
        self._folder = folder if self.remote else os.path.abspath(folder)
        self._path: str | None = None
        self._size = 0

    @property
    def folder(self) -> str:
        """The folder of the run, absolute."""
        return self._folder

    def append(self, *parts: bytes | memoryview) -> None:
        """Writes records, as :func:`records` makes them.

        Raises:
            OSError: If they cannot be written; the file keeps what it had.
        """
        if self.remote:
            import fsspec  # type: ignore[import-untyped]

            with fsspec.open(f"{self._folder}/{_name()}", "wb") as file:
                file.write(b"".join((_first_record(), *parts)))
            return
        if self._path is None or not os.path.isfile(self._path) or os.path.getsize(self._path) != self._size:
            self._path, self._size, parts = os.path.join(self._folder, _name()), 0, (_first_record(), *parts)
        check_room(Path(self._folder), sum(map(len, parts)))
        self._append(self._path, parts)

    def _append(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        os.makedirs(self._folder, exist_ok=True)
        size = sum(map(len, parts))
        try:
            with open(path, "ab", buffering=0) as file:
                # On a full disk a write may succeed for only a part of the bytes, without an error.
                if (written := _written(file, parts)) != size:
                    raise OSError(errno.ENOSPC, f"{written} of {size} bytes could be written", path)
        except BaseException:
            self._path = None
            with suppress(OSError):
                os.truncate(path, self._size) if self._size else os.unlink(path)
            raise
        self._size += size


def _written(file: FileIO, parts: Sequence[bytes | memoryview]) -> int:
    """Writes until a part does not fit, and returns the number of bytes."""
    total = 0
    for part in parts:
        total += (written := file.write(part))
        if written != len(part):
            break
    return total


def records(summaries: Iterable[Any], step: int | None = None) -> bytes:
    """The records of ``Summary`` messages, such as those of ``torch.utils.tensorboard.summary``.

    Args:
        summaries: The messages.
        step: The step at which they appear.
    """
    event = _event_class()
    return b"".join(_record(event(wall_time=time.time(), step=step, summary=summary)) for summary in summaries)


def _first_record() -> bytes:
    """What every event file begins with."""
    return _record(_event_class()(wall_time=time.time(), file_version="brain.Event:2"))


def _name() -> str:
    """The name of a new file.

    It sorts before that of any logger, because what reads the files of a run one after the other (TensorBoard without its data server)
    never comes back to an earlier one, and is to stay with that of the logger.
    """
    return f"events.out.tfevents.0000000000.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}.explain"


def _event_class() -> Any:
    """``Event`` of the package that Lightning's logger writes with."""
    try:
        return import_module("tensorboard.compat.proto.event_pb2").Event
    except ImportError:
        return import_module("tensorboardX.proto.event_pb2").Event


def _record(event: Any) -> bytes:
    """A message in the frame of a TFRecord: length, checksum of the length, message, checksum of the message."""
    message = event.SerializeToString()
    length = struct.pack("<Q", len(message))
    return b"".join((length, _masked(length), message, _masked(message)))


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32C checksum of at least four bytes. That of tensorboard is a loop in Python, of 30 ms for a picture of 100 KB.

    Example:
        >>> from lightning_explain.loggers.event_file import crc32c
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    table, (first, second, third, fourth) = _tables()
    padded = np.zeros(len(data) + -len(data) % _BLOCK, dtype=np.uint8)
    own = padded[len(padded) - len(data) :]
    own[:] = np.frombuffer(data, dtype=np.uint8)
    # Leading zeros change nothing while the state is zero; to begin with ones is to invert the first four bytes.
    own[:4] ^= 255
    places = padded.reshape(-1, _BLOCK).astype(np.intp)
    places += 256 * np.arange(_BLOCK)
    state = 0
    for block in np.bitwise_xor.reduce(table.take(places), axis=1).tolist():
        state = block ^ first[state & 255] ^ second[state >> 8 & 255] ^ third[state >> 16 & 255] ^ fourth[state >> 24]
    return state ^ 0xFFFFFFFF


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.uint32], list[list[int]]]:
    """What each byte contributes at each place of a block, ``(place, byte)``; and as lists, at the first four places."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, last >> 1 ^ np.uint32(_CASTAGNOLI), last >> 1)
    found = [last]
    for _ in range(_BLOCK - 1):
        found.append(last[found[-1] & 255] ^ found[-1] >> 8)
    table = np.stack(found[::-1])
    return table, table[:4].tolist()
