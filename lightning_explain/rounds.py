"""One explanation on all ranks: made, agreed upon, told, and written by rank zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl

from lightning_explain import trainer as trainers
from lightning_explain.gather import ELSEWHERE
from lightning_explain.history import History
from lightning_explain.pipeline import Explainer
from lightning_explain.publish import Charts, publication, without
from lightning_explain.render import Options, draw
from lightning_explain.sinks import sinks_for
from lightning_explain.store import safe_name, save_report
from lightning_explain.telling import Teller, text_of
from lightning_explain.types import Metric, Probe, Publication, Report, Sink

_WHOLE = "explanation"


def report_of(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    explainer: Explainer,
    probe: Probe,
    teller: Teller,
    history: History,
) -> Report | None:
    """The report without what failed on any rank; ``None`` on all ranks if it failed as a whole on any."""
    report: Report | None = None
    error: Exception | None = None
    names = [*explainer.methods, *explainer.metrics]
    with trainers.progress_bar(trainer, len(names)) as progress:
        try:
            with trainers.silenced(pl_module):
                report = explainer.explain(pl_module, probe, progress, history)
        except ELSEWHERE:
            pass
        except Exception as failure:
            error = failure
    if teller.raising:
        trainers.raise_together(trainer, error)
    failures = {_WHOLE: text_of(error)} if error is not None else dict(report.failures) if report is not None else {}
    failed = trainers.first_failing(trainer, [_WHOLE, *names], failures)
    for name, rank in failed.items():
        if rank == trainer.global_rank:
            what = "No explanation" if name == _WHOLE else f"{name!r} failed and is left out of this explanation"
            teller.tell_once(name, f"{what} (rank {rank}); training goes on:\n{failures[name]}")
    if report is None or _WHOLE in failed:
        return None
    return replace(without(report, failed, explainer.metrics), epoch=trainer.current_epoch, step=trainer.global_step)


class Publisher:
    """Writes reports to the loggers' sinks and as files.

    Args:
        name: The monitor's name.
        options: How pictures are drawn.
        save_reports: Keep every report as a file.
        teller: Survives what fails.
    """

    def __init__(self, name: str, options: Options, save_reports: bool, teller: Teller) -> None:
        self._name = name
        self._options = options
        self._save_reports = save_reports
        self._teller = teller
        self._directory = Path()
        self._sinks: list[Sink] = []

    def open(self, trainer: pl.Trainer, directory: Path, layout: Charts) -> None:
        """Finds the sinks of a Trainer on rank zero, none of a dry run, and writes the layout if there is one."""
        self._directory = directory
        dry = getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero
        self._sinks = [] if dry else sinks_for(trainer.loggers, directory)
        for sink in self._sinks if layout else []:
            self._teller.survive(partial(sink.layout, layout), f"The layout of {type(sink).__name__}")

    def publish(
        self,
        trainer: pl.Trainer,
        report: Report,
        probe: Probe,
        scalars: Mapping[str, float],
        metrics: Mapping[str, Metric],
    ) -> None:
        """Draws and writes. To be called on all ranks, for a failure may have to be raised on all."""
        error: Exception | None = None
        try:
            if trainer.is_global_zero:
                self._tell_of_nonfinite(report)
                pictures = self._teller.survive(partial(draw, report, probe, self._options), "Drawing pictures")
                self._write(publication(self._name, report, scalars, pictures or {}, metrics))
        except Exception as failure:
            error = failure
        trainers.raise_together(trainer, error)

    def _tell_of_nonfinite(self, report: Report) -> None:
        for method, rows in report.nonfinite().items():
            if rows:
                self._teller.tell_once(
                    f"nonfinite/{method}",
                    f"{method!r} has a map or score that is NaN or infinite on rows {rows}; they are counted in "
                    f"{self._name}/nonfinite/{method} and left out of means.",
                )

    def _write(self, found: Publication) -> None:
        if self._save_reports and self._sinks:
            folder = self._directory / safe_name(self._name)
            self._teller.survive(partial(save_report, found.report, folder), "Saving the report")
        for sink in self._sinks:
            self._teller.survive(partial(sink.write, found), type(sink).__name__)
