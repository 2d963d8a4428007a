"""Takes a checked explainer and the samples, explains once on all ranks, and returns the report the ranks agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import lightning.pytorch as pl
import torch

from lightning_explain.checks.preflight import UncheckedError
from lightning_explain.core.contracts import Metric
from lightning_explain.core.probe import Probe, all_finite, as_tuple
from lightning_explain.core.report import Report
from lightning_explain.distributed.collectives import reporting_failures
from lightning_explain.distributed.ranks import Agreement, Ranks
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.history import History
from lightning_explain.loggers.tags import score_names, without
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor.failures import FailureLog

_WHOLE = "the whole explanation"

# Failures of the machine, which may pass, as opposed to mistakes in arguments or code.
_ACCIDENTS = (OSError, MemoryError, torch.OutOfMemoryError, UncheckedError)


@contextmanager
def getting_ready(ranks: Ranks, failure_log: FailureLog) -> Iterator[Agreement]:
    """A section for the work that comes before explaining; yields the agreement of all ranks on it.

    A mistake on any rank is raised on all. An accident, such as a full memory, is reported once, and no rank explains.

    Raises:
        Exception: The mistake; also the accident, if the failure log raises.
    """
    with ranks.agree("getting ready", () if failure_log.raising else _ACCIDENTS) as ready:
        yield ready
    if ready.failed_rank == ranks.rank:
        failure_log.report_once(
            "ready",
            f"The samples or the model could not be prepared (rank {ranks.rank}); nothing is explained in "
            f"this run, and training continues. Fix the cause, and resume or start a run again:\n{ready.reason}",
        )


def report_of(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    explainer: Explainer,
    probe: Probe,
    failure_log: FailureLog,
    history: History,
) -> Report | None:
    """The report without what failed on any rank; ``None`` on all ranks if it failed as a whole on any."""
    explainer = replace(
        explainer,
        methods=failure_log.without_off(explainer.methods),
        metrics=failure_log.without_off(explainer.metrics),
    )
    if failure_log.is_off(_WHOLE) or not explainer.methods:
        return None
    names, ranks, report = [*explainer.methods, *explainer.metrics], trainers.everyone(trainer), None
    with (
        ranks.agree(_WHOLE, () if failure_log.raising else (Exception,)) as whole,
        trainers.silenced(pl_module),
        trainers.progress_bar(trainer, len(names)) as bar,
    ):

        def progress(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        report = explainer.explain(pl_module, probe, progress, history)
        report.scalars()  # If its scores cannot be averaged, the explanation has failed.
    if report is None or whole.failed_rank is not None:
        if whole.failed_rank == ranks.rank:
            text = f"No explanation (rank {ranks.rank}); training continues. Fix the cause:\n{whole.reason}"
            failure_log.report_once(_WHOLE, text)
        # Nothing is known about single methods and metrics.
        failure_log.count(_WHOLE, True, speaks=trainer.is_global_zero)
        return None
    with reporting_failures(report.failures):
        failed = ranks.failing(report.failures)
    empty = ranks.failing(_numberless(report, explainer.metrics))
    for name in (name for name, rank in failed.items() if rank == ranks.rank):
        what = f"{name!r} failed and is left out of this explanation (rank {ranks.rank})"
        text = f"{what}; training continues. Fix the cause:\n{report.failures[name]}"
        failure_log.report_once(name, text)
    for name in (_WHOLE, *names):
        failure_log.count(name, name in failed or name in empty, speaks=trainer.is_global_zero)
    stage = None if trainer.state.fn is None else trainer.state.fn.value
    left = without(report, failed, explainer.metrics)
    return replace(left, epoch=trainer.current_epoch, step=trainer.global_step, stage=stage)


def _numberless(report: Report, metrics: Mapping[str, Metric]) -> set[str]:
    """Methods without a finite map on any sample, and metrics without a finite score for any of the other methods."""
    empty = {name for name, value in report.attributions.items() if not all_finite(*as_tuple(value)).any()}
    for name, metric in metrics.items():
        by_method = [report.scores.get(score, {}) for score in score_names({name: metric})]
        found = [values for scores in by_method for method, values in scores.items() if method not in empty]
        if found and not any(bool(torch.isfinite(values).any()) for values in found):
            empty = empty | {name}
    return empty
