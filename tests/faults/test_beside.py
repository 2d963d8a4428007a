"""Some of the faults of ``beside.py``; the command tries all."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import beside

SAMPLE = ("worker killed, then Ctrl-C", "training killed")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_training_goes_on_or_ends_and_nothing_is_left_behind(tmp_path: Path) -> None:
    cases = [case for case in beside.CASES if case.name in SAMPLE]
    assert beside.outcomes(cases, tmp_path) == {name: [] for name in SAMPLE}
