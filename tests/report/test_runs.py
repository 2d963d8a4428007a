"""Which reports of a run are compared and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_explain import Report
from lightning_explain.report.runs import moment, of_stage, report_at
from lightning_explain.store.report_files import save_report

IDS = torch.arange(2)


def report(step: int | None, stage: str | None = "fit", epoch: int | None = None) -> Report:
    return Report({}, {}, {}, torch.zeros(2), IDS, IDS, IDS, step=step, stage=stage, epoch=epoch)


def test_reports_of_the_training_count_unless_there_are_none_or_a_stage_is_named(tmp_path: Path) -> None:
    run = [report(4), report(8), report(8, "test")]
    for one in run:
        save_report(one, tmp_path / "version_0" / "explain")
    for given in (run, tmp_path, str(tmp_path / "version_0" / "explain")):
        assert [found.step for found in of_stage(given)] == [4, 8]
        assert [found.stage for found in of_stage(given, "test")] == ["test"]
        assert report_at(given).step == 8
        assert report_at(given, 4).step == 4
    assert of_stage(run[2:]) == run[2:]
    assert of_stage([report(None, None)], "fit")[0].stage is None
    with pytest.raises(ValueError, match="stage='validate': the run has reports of 'fit', 'test' only"):
        of_stage(run, "validate")
    with pytest.raises(ValueError, match=r"step=5: the run has reports of the steps \[4, 8\]"):
        report_at(run, 5)


def test_a_moment_is_told_in_words() -> None:
    assert moment(report(8, epoch=1)) == "epoch 1, step 8"
    assert moment(report(8, "test")) == "step 8, test"
    assert moment(report(None, None)) == "no step"
