"""Work in; the seconds that it takes on a machine that does nothing else, as nearly as one measurement can tell, out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stopwatch:
    """Begins with the clock on the wall and that of this process's CPU.

    Example:
        >>> from lightning_explain.core.timing import Stopwatch
        >>> watch = Stopwatch()
        >>> watch.seconds() >= 0
        True
    """

    wall: float = field(default_factory=lambda: time.perf_counter())
    cpu: float = field(default_factory=lambda: time.process_time())

    def seconds(self, on_cpu: bool = True) -> float:
        """Seconds since the beginning.

        Args:
            on_cpu: Whether only the CPU works: then they are no more than the process has computed, so that time in which other processes
                had the CPU does not count.
        """
        wall = time.perf_counter() - self.wall
        return min(wall, time.process_time() - self.cpu) if on_cpu else wall
