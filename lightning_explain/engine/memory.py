"""Memory that one pass has freed stays with the process, so that the next pass need not ask the system for it."""

from __future__ import annotations

from functools import cache

import torch

LARGEST = 30 * 2**20
"""Bytes, just below the most to which glibc raises its threshold by itself (32 MiB)."""


@cache
def keep_freed_memory() -> None:
    """Lets the C library keep blocks of up to 30 MiB that are freed, once in a process; it writes nothing into memory.

    Blocks above a threshold go back to the system, and their pages are cleared again when they are next used: that takes 19% of an
    explanation by a ResNet-20 in passes of 64 samples. The threshold of glibc becomes the size of a block that it has given back, so
    freeing one large block raises it. Other C libraries have rules of their own.
    """
    torch.empty(LARGEST, dtype=torch.uint8)
