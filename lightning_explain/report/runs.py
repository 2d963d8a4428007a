"""Runs as users name them, a folder or reports, in; the reports that are compared or checked, out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

from lightning_explain.core.report import Report
from lightning_explain.core.schema import brief
from lightning_explain.store.report_files import load_reports

Reports: TypeAlias = "str | os.PathLike[str] | Sequence[Report]"
"""A run: the folder of its reports, one above it, or the reports themselves."""


def reports_of(run: Reports) -> Sequence[Report]:
    """The reports of a run, in order.

    Raises:
        FileNotFoundError: If there are none.
        TypeError: If it is no run.
    """
    found = load_reports(run) if isinstance(run, (str, os.PathLike)) else run
    if not isinstance(found, Sequence) or not all(isinstance(report, Report) for report in found):
        raise TypeError(
            f"A run is the folder of its reports, or a list of them, and not {brief(run)}; give one of these."
        )
    return found


def of_stage(run: Reports, stage: str | None = None) -> list[Report]:
    """The reports of one stage of a run; without a stage those of the training, or all if there are none.

    Raises:
        ValueError: If there are none of this stage.
    """
    reports = reports_of(run)
    stages = list(dict.fromkeys(report.stage or "fit" for report in reports))
    if stage is not None and stage not in stages:
        raise ValueError(
            f"stage={brief(stage)}: the run has reports of {', '.join(map(repr, stages)) or 'no stage'} only."
        )
    chosen = stage or ("fit" if "fit" in stages else None)
    return [report for report in reports if chosen in (None, report.stage or "fit")]


def report_at(run: Reports, step: int | None = None) -> Report:
    """The last report of a run's training, or that of a step.

    Raises:
        ValueError: If there is none.
    """
    reports = of_stage(run)
    found = [report for report in reports if step in (None, report.step)]
    if not found:
        steps = brief([report.step for report in reports])
        raise ValueError(f"step={step}: the run has reports of the steps {steps}; give one of them.")
    return found[-1]


def epoch_and_step(report: Report) -> str:
    """When a report was made, such as ``epoch 3, step 252``; nothing if neither is known."""
    named = {"epoch": report.epoch, "step": report.step}
    return ", ".join(f"{name} {number}" for name, number in named.items() if number is not None)


def moment(report: Report) -> str:
    """The same with the stage, if that is not the training."""
    stage = "" if report.stage in (None, "fit") else report.stage
    return ", ".join(part for part in (epoch_and_step(report), stage) if part) or "no step"
