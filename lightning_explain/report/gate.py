"""Expressions about scores and a run in; which of them came true, with what was read, out. For CI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_explain.core.alert import Alert, parsed
from lightning_explain.core.naming import nearest
from lightning_explain.core.report import Report
from lightning_explain.core.schema import brief
from lightning_explain.report.runs import Reports, moment, of_stage


@dataclass(frozen=True)
class Finding:
    """What a run says about one expression.

    Args:
        expression: The expression, as the user writes it.
        state: ``"passed"``; ``"failed"``: it is true of the last reports; ``"not read"``: nobody knows.
        found: What was read, or why nothing could be.
    """

    expression: str
    state: str
    found: str

    def __str__(self) -> str:
        return f"{self.state}: {brief(self.expression)}: {self.found}"


def findings(run: Reports, fail_if: Sequence[str], stage: str | None = None) -> list[Finding]:
    """Takes a run and expressions; returns what became of each. The arguments are those of :func:`check`.

    Raises:
        FileNotFoundError: If the run has no reports.
        ValueError: If there is no expression, or there are no reports of the stage.
        TypeError: If an argument has the wrong type.
    """
    if isinstance(fail_if, str) or not isinstance(fail_if, Sequence) or not all(isinstance(e, str) for e in fail_if):
        raise TypeError(f"fail_if={brief(fail_if)}; give a list of expressions such as 'relevance_mass/ig > 0.3'.")
    if not fail_if:
        raise ValueError("fail_if has no expression; give at least one, such as 'relevance_mass/ig > 0.3'.")
    reports = of_stage(run, stage)
    return [_finding(expression, reports) for expression in fail_if]


def check(run: Reports, fail_if: Sequence[str], stage: str | None = None) -> None:
    """Takes a run and expressions, and raises an ``AssertionError`` if one of them is true of the run's last report: for tests.

    ``"relevance_mass/ig > 0.3"`` is true if the mean over samples is above 0.3, ``"... > 0.3 for 2"`` if it is in both of the last two
    reports. The mean is the one that is logged as a curve: samples for which the score is undefined or not finite are left out.
    :class:`Alert` takes the same expressions, and ``lightning-explain check`` does the same on the command line.

    Args:
        run: The folder of its reports, ``<run>/<name>`` or ``<run>``, or a list of reports.
        fail_if: The expressions: ``<metric>/<method>``, then ``>``, ``>=``, ``<`` or ``<=``, a number, and perhaps ``for N``.
        stage: ``"fit"``, ``"validate"`` or ``"test"``. Default: the training, or whatever there is if there are no reports of it.

    Raises:
        AssertionError: If an expression is true, or it is not known whether it is: there is no such score, no sample has a finite one,
            there are fewer than N reports, or it is no expression. It says what was read for all of them.
        FileNotFoundError: If the run has no reports.
        ValueError: If there is no expression, or there are no reports of the stage.
        TypeError: If an argument has the wrong type.

    Example:
        >>> from lightning_explain import check
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Concentration()])
        >>> check([report], fail_if=["concentration/saliency > 0.99", "nonfinite/saliency > 0"])
        >>> check([report], fail_if=["concentration/saliency > 0.01"])
        Traceback (most recent call last):
        ...
        AssertionError: failed: 'concentration/saliency > 0.01': 0... at no step (mean of 2 samples)
    """
    found = findings(run, fail_if, stage)
    if any(one.state != "passed" for one in found):
        raise AssertionError("\n".join(map(str, found)))


def _finding(expression: str, reports: Sequence[Report]) -> Finding:
    try:
        condition = Alert(**parsed(expression))
    except ValueError as error:
        return Finding(expression, "not read", str(error).removeprefix(f"{brief(expression)} "))
    if len(reports) < condition.patience:
        return Finding(expression, "not read", f"the run has only {len(reports)} of {condition.patience} reports.")
    last = reports[-condition.patience :]
    read = [(report, report.scalars().get(condition.metric, math.nan)) for report in last]
    missing = [report for report, value in read if not math.isfinite(value)]
    if missing:
        return Finding(expression, "not read", _missing(missing[-1], condition.metric))
    state = "failed" if all(condition.out(value, value) for _, value in read) else "passed"
    return Finding(expression, state, ", ".join(_read(report, condition.metric, value) for report, value in read))


def _read(report: Report, name: str, value: float) -> str:
    scores = _scores(report)
    if name not in scores:
        return f"{value:.6g} at {moment(report)}"
    known, count = int(torch.isfinite(scores[name]).sum()), len(scores[name])
    return f"{value:.6g} at {moment(report)} (mean of {known if known == count else f'{known} of {count}'} samples)"


def _missing(report: Report, name: str) -> str:
    """Why a report has no such number."""
    scores = _scores(report)
    if name in scores:
        return f"no sample has a finite score at {moment(report)}{_reason(report, name)}."
    failed = [f"{what} failed: {brief(why)}" for what, why in report.failures.items() if what in name.split("/")]
    why = f" ({'; '.join(failed)})" if failed else ""
    return (
        f"there is no such score at {moment(report)}{why}: {nearest(name, dict.fromkeys([*scores, *report.scalars()]))}"
    )


def _reason(report: Report, name: str) -> str:
    reasons = [why for score, why in report.undefined_reasons.items() if name.startswith(f"{score}/")]
    return f" ({brief(reasons[0])})" if reasons else ""


def _scores(report: Report) -> dict[str, torch.Tensor]:
    return {f"{score}/{method}": v for score, found in report.scores.items() for method, v in found.items()}
