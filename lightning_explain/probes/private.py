"""What a forked process still shares with the one it comes from in; a private copy of it, and what has moved all the same, out.

Memory is private after a fork. Shared are the positions of open files, memory maps, pipes and sockets, the workers of loaders, and
signals. Call :func:`make_private` in the child alone, which must leave by ``os._exit``. It needs Linux.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os
import signal
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch.utils.data import DataLoader

LARGE = 64 * 2**20
"""Bytes that are copied at most, of files that are open for reading and writing, and of shared memory without a file."""

_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = ("/dev/zero", "/dev/shm/")
# What is mapped there, and is no shared memory, is not memory but a device.
_DEVICES = ("/dev/", "anon_inode", "[")


def make_private() -> Callable[[], list[str]]:
    """Makes what this process shares with its parent its own; returns what tells which shared things have moved since."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _ignore_signals()
    # What the parent dropped is not finalized here: the end of an iterator would stop the parent's workers.
    gc.freeze()
    # Both processes would speak with the workers that a loader keeps.
    DataLoader.__iter__ = DataLoader._get_iterator  # type: ignore[method-assign]
    # As in the workers of a DataLoader: the threads of the parent's pools do not exist here.
    torch.set_num_threads(1)
    _own_files()
    with suppress(OSError):
        _own_memory(libc)
    return _watch()


def _ignore_signals() -> None:
    """Leaves to the parent what its handlers do, such as saving a checkpoint."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            ends = number in (signal.SIGCHLD, signal.SIGTERM)
            signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)


def _descriptors() -> Iterator[tuple[int, os.stat_result]]:
    """The open descriptors, except those of the output."""
    outputs = {1, 2}
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            outputs.add(stream.fileno())
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if number not in outputs:
                yield number, os.fstat(number)


def _own_files() -> None:
    """Opens regular files once more, at the same position; what is written goes nowhere, or to a copy."""
    left = LARGE
    for number, info in [*_descriptors()]:
        if not stat.S_ISREG(info.st_mode):
            continue
        with suppress(OSError):
            access = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
            if access == os.O_WRONLY:
                own = os.open(os.devnull, os.O_WRONLY)
            elif access == os.O_RDWR and info.st_size <= left:
                left -= info.st_size
                own = _copy(number, info.st_size)
            else:
                own = os.open(f"/proc/self/fd/{number}", os.O_RDONLY)
            os.lseek(own, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(own, number, os.get_inheritable(number))
            os.close(own)


def _copy(number: int, size: int) -> int:
    own, done = os.memfd_create("probe"), 0
    while done < size and (sent := os.sendfile(own, number, done, size - done)):
        done += sent
    return own


def _own_memory(libc: ctypes.CDLL) -> None:
    """Replaces shared memory that can be written by private memory with the same content, at the same place."""
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    left = LARGE
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps.readlines():
            span, rights, offset, _, inode, *rest = line.split(maxsplit=5)
            path = rest[0].strip() if rest else ""
            if rights[1] != "w" or rights[3] != "s":
                continue
            first, end = (int(place, 16) for place in span.split("-"))
            size, protection = end - first, mmap.PROT_WRITE | mmap.PROT_READ
            fixed = mmap.MAP_PRIVATE | 0x10  # MAP_FIXED, which Python does not name
            with suppress(OSError):
                if _is_file(path, int(inode)):
                    own = os.open(path, os.O_RDONLY)
                    libc.mmap(first, size, protection, fixed, own, int(offset, 16))
                    os.close(own)
                elif size <= left and (path.startswith(_SHARED_MEMORY) or not path.startswith(_DEVICES)):
                    left -= size
                    # Read as a file, because touching pages that are not there ends a process.
                    content = os.pread(memory.fileno(), size, first)
                    if len(content) == size:
                        libc.mmap(first, size, protection, fixed | mmap.MAP_ANONYMOUS, -1, 0)
                        ctypes.memmove(first, content, size)


def _is_file(path: str, inode: int) -> bool:
    return os.path.isfile(path) and os.stat(path).st_ino == inode


def _watch() -> Callable[[], list[str]]:
    """A function that says, in words, what is gone from pipes and sockets since now, and which files were opened for writing."""
    written: dict[str, None] = {}
    waiting = _waiting()

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or len(written) > 9:
            return
        path, _, flags = arguments
        wrote = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        # Compiled modules are written at any import, as the parent would.
        if wrote and isinstance(path, str) and ".pyc" not in path and not path.startswith(("/dev/", "/proc/")):
            written[os.path.abspath(path)] = None

    def moved() -> list[str]:
        now = _waiting()
        gone = {number: count - now.get(number, count) for number, count in waiting.items()}
        lines = [f"{count} bytes of descriptor {number} are consumed" for number, count in gone.items() if count > 0]
        return [*lines, *(f"{path} was opened for writing" for path in written)]

    sys.addaudithook(note)
    return moved


def _waiting() -> dict[int, int]:
    """The bytes that this process can read from each pipe and socket."""
    found = {}
    for number, info in _descriptors():
        if stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode):
            with suppress(OSError):
                # What goes out here, such as to the resource tracker of multiprocessing, is read by others, whenever they will.
                if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                    continue
                found[number] = struct.unpack("i", fcntl.ioctl(number, termios.FIONREAD, b"\0" * 4))[0]
    return found
