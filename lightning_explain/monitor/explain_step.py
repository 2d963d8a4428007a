"""Takes a checked explainer and the samples, explains once on all ranks, and returns the report the ranks agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import lightning.pytorch as pl
import torch

from lightning_explain.core.contracts import Metric
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.report import Report
from lightning_explain.distributed.collectives import reporting_failures
from lightning_explain.distributed.ranks import ELSEWHERE
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.history import History
from lightning_explain.explainer.registry import UncheckedError
from lightning_explain.loggers.tags import score_names, without
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor.failures import FailureLog, text_of

_WHOLE = "the whole explanation"

# Failures of the machine, which may pass, as opposed to mistakes in arguments or code.
_ACCIDENTS = (OSError, MemoryError, torch.OutOfMemoryError, UncheckedError)


def ready_together(trainer: pl.Trainer, work: Callable[[], object], failure_log: FailureLog) -> bool:
    """Does the work that comes before explaining, and returns whether it succeeded on all ranks.

    A mistake on any rank is raised on all. An accident, such as a full memory, is reported once, and no rank explains.

    Raises:
        Exception: The mistake; also the accident, if the failure log raises.
    """
    _, error = trainers.attempted(work)
    # The rank that failed first reports the reason.
    error = None if isinstance(error, ELSEWHERE) else error
    kind = [] if error is None else ["accident" if isinstance(error, _ACCIDENTS) else "mistake"]
    found = trainers.first_failing(trainer, ["mistake", "accident"], kind, error)
    if "mistake" in found or (found and failure_log.raising):
        trainers.raise_together(trainer, error)
    if error is not None and found.get("accident") == trainer.global_rank:
        failure_log.report_once(
            "ready",
            f"The samples or the model could not be prepared (rank {trainer.global_rank}); nothing is explained in "
            f"this run, and training continues. Fix the cause, and resume or start a run again:\n{text_of(error)}",
        )
    return not found


def report_of(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    explainer: Explainer,
    probe: Probe,
    failure_log: FailureLog,
    history: History,
) -> Report | None:
    """The report without what failed on any rank; ``None`` on all ranks if it failed as a whole on any."""
    explainer = _switched_on(explainer, failure_log)
    if failure_log.is_off(_WHOLE) or not explainer.methods:
        return None
    names = [*explainer.methods, *explainer.metrics]
    with trainers.silenced(pl_module), trainers.progress_bar(trainer, len(names)) as progress:
        explain = partial(explainer.explain, pl_module, probe, progress, history)
        report, failures = _attempt(trainer, partial(_averaged, explain), failure_log)
    with reporting_failures(failures):
        failed = trainers.first_failing(trainer, [_WHOLE, *names], failures)
    empty = trainers.first_failing(trainer, names, _numberless(report, explainer.metrics) if report else [])
    for name, rank in failed.items():
        if rank == trainer.global_rank:
            what = "No explanation" if name == _WHOLE else f"{name!r} failed and is left out of this explanation"
            failure_log.report_once(name, f"{what} (rank {rank}); training continues. Fix the cause:\n{failures[name]}")
    # If the whole explanation failed, nothing is known about single methods and metrics.
    for name in [_WHOLE] if _WHOLE in failed else [_WHOLE, *names]:
        failure_log.count(name, name in failed or name in empty, speaks=trainer.is_global_zero)
    if report is None or _WHOLE in failed:
        return None
    stage = None if trainer.state.fn is None else trainer.state.fn.value
    left = without(report, failed, explainer.metrics)
    return replace(left, epoch=trainer.current_epoch, step=trainer.global_step, stage=stage)


def _switched_on(explainer: Explainer, failure_log: FailureLog) -> Explainer:
    """The explainer without the methods and metrics that are switched off."""
    methods = {name: method for name, method in explainer.methods.items() if not failure_log.is_off(name)}
    return replace(
        explainer, methods=methods, metrics={k: v for k, v in explainer.metrics.items() if not failure_log.is_off(k)}
    )


def _attempt(
    trainer: pl.Trainer, explain: Callable[[], Report], failure_log: FailureLog
) -> tuple[Report | None, dict[str, str]]:
    """This rank's report, and for each name that failed its traceback."""
    report, error = trainers.attempted(explain)
    if isinstance(error, ELSEWHERE):
        error = None
    if failure_log.raising:
        trainers.raise_together(trainer, error)
    if error is not None:
        return None, {_WHOLE: text_of(error)}
    return report, {} if report is None else dict(report.failures)


def _averaged(explain: Callable[[], Report]) -> Report:
    """The report, if its scores can be averaged; otherwise the error counts as a failed explanation."""
    report = explain()
    report.scalars()
    return report


def _numberless(report: Report, metrics: Mapping[str, Metric]) -> set[str]:
    """Methods without a finite map on any sample, and metrics without a finite score for any of the other methods."""
    maps = {name: [x.flatten(1) for x in as_tuple(value)] for name, value in report.attributions.items()}
    empty = {name for name, parts in maps.items() if not torch.isfinite(torch.cat(parts, 1)).all(1).any()}
    for name, metric in metrics.items():
        by_method = [report.scores.get(score, {}) for score in score_names({name: metric})]
        found = [values for scores in by_method for method, values in scores.items() if method not in empty]
        if found and not any(bool(torch.isfinite(values).any()) for values in found):
            empty = empty | {name}
    return empty
