"""A few moments of ``sigkill.py``; the command tries as many as one likes."""

from __future__ import annotations

import pytest

from faults import sigkill


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--kills", "2"], ["--early"]], ids=["checkpoints of epochs", "checkpoints of last batches"]
)
def test_a_training_killed_at_any_moment_and_resumed_gives_the_same_numbers(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = sigkill.main(["--moments", "3", "--seed", "1", *options])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "3 of 3 trainings gave the numbers of the undisturbed one." in printed
