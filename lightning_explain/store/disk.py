"""A folder and a number of bytes in; an error out if writing them would leave too little of the disk to the training."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

RESERVE = 64 * 2**20
"""Bytes of a disk that are left to the training; an eighth of a disk that is smaller than eight times this."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_room(folder: Path, size: int) -> None:
    """Checks that so many bytes can be written and the training can still save its checkpoints and logs.

    Raises:
        OSError: If less than ``RESERVE`` would be left.
    """
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
    usage = None if there is None else shutil.disk_usage(there)
    # Some file systems do not know their size.
    if usage is None or not usage.total:
        return
    reserve = min(RESERVE, usage.total // 8)
    if usage.free - size < reserve:
        raise OSError(
            errno.ENOSPC,
            f"{usage.free:,} bytes are free, of which {reserve:,} are left to the training; free some disk space",
            str(folder),
        )


def is_full(error: BaseException) -> bool:
    """Whether an error tells of a full disk, which may have room again later."""
    return isinstance(error, OSError) and error.errno in _FULL
