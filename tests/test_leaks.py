"""Explanations leave nothing behind: no threads, files, hooks or tensors, and no memory to speak of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import leaks

from training import QUIET

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

STEPS = 15


def test_many_explanations_by_two_monitors_leave_nothing_behind() -> None:
    left, module = leaks.run(STEPS)
    assert len(left.mib) == STEPS
    half = STEPS // 2
    for name in ("threads", "files", "hooks"):
        values = getattr(left, name)
        # Files and threads that other tests left may go meanwhile; none may come.
        assert max(values[half:]) <= values[half], (name, values)
    assert left.hooks[-1] == 0
    assert left.tensors[1] <= left.tensors[0] + 5, left.tensors
    # KiB for each step, of two explanations; a map of each method is 20. The benchmark tells more, over 200.
    assert left.slope(half) < 1000
    assert not any(hasattr(part, "log") and "log" in vars(part) for part in module.modules())
