"""A few moments of ``sigusr1.py``, which tries as many as one likes; without what protects a checkpoint, they are not right."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from faults.sigusr1 import SIGNALS, outcomes
from lightning_explain.core.signals import HeldSignals
from lightning_explain.model.isolation import STATE_SAVERS
from training import QUIET

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:The model's forward changes"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


@pytest.fixture(autouse=True)
def _no_signals_yet() -> None:
    SIGNALS.epoch, SIGNALS.raised = -1, 0


def test_a_checkpoint_saved_in_the_middle_of_an_explanation_is_the_training_s(tmp_path: Path) -> None:
    assert outcomes(3, tmp_path) == [True] * 4


def test_without_protection_the_states_that_a_thread_reads_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STATE_SAVERS, "state_dict", lambda inventory: nullcontext())
    with pytest.raises(AssertionError, match=r"reads found others: \{'calls'\}"):
        outcomes(2, tmp_path)


def test_without_protection_a_signal_saves_the_explanation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldSignals, "__enter__", lambda self: self)
    with pytest.raises(AssertionError, match="saved in eval mode"):
        outcomes(2, tmp_path)
