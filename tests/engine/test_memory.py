"""Freed memory stays with the process, and nothing else changes."""

from __future__ import annotations

import platform
import subprocess
import sys

SCRIPT = """
import resource, torch
from lightning_explain.engine.memory import keep_freed_memory

def faults():
    started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(8 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - started

torch.set_num_threads(1)
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


def test_blocks_of_a_pass_are_used_again_without_asking_the_system() -> None:
    # The threshold is that of the process, and may have been raised already in this one.
    shown = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    before, after = map(int, shown.split())
    assert after <= before
    if platform.libc_ver()[0] == "glibc":
        # 8 MiB have 2,048 pages; a block that is kept has them already.
        assert after < before / 4, (before, after)
