"""One explanation on all ranks: made, agreed upon, told, and written by rank zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch

from lightning_explain import trainer as trainers
from lightning_explain.gather import ELSEWHERE
from lightning_explain.history import History
from lightning_explain.meeting import telling
from lightning_explain.pipeline import Explainer
from lightning_explain.publish import Charts, publication, score_names, without
from lightning_explain.render import Options, draw
from lightning_explain.requests import UncheckedError
from lightning_explain.sinks import sinks_for
from lightning_explain.store import safe_name, save_report
from lightning_explain.telling import Teller, text_of
from lightning_explain.types import Metric, Probe, Publication, Report, Sink, as_tuple

_WHOLE = "the whole explanation"
# What the machine does, as opposed to what somebody wrote.
_ACCIDENTS = (OSError, MemoryError, torch.OutOfMemoryError, UncheckedError)


def ready_together(trainer: pl.Trainer, work: Callable[[], object], teller: Teller) -> bool:
    """Whether the work that comes before explaining went well on all ranks.

    A mistake on any is raised on all; an accident is told, and none of them explains.

    Raises:
        Exception: The mistake; accidents too, if the teller raises.
    """
    _, error = trainers.attempted(work)
    # Whose reason is told elsewhere.
    error = None if isinstance(error, ELSEWHERE) else error
    kind = [] if error is None else ["accident" if isinstance(error, _ACCIDENTS) else "mistake"]
    found = trainers.first_failing(trainer, ["mistake", "accident"], kind, error)
    if "mistake" in found or (found and teller.raising):
        trainers.raise_together(trainer, error)
    if error is not None and found.get("accident") == trainer.global_rank:
        teller.tell_once(
            "ready",
            f"The rows or the model could not be made ready (rank {trainer.global_rank}); nothing is explained in this "
            f"run, training goes on. The next run tries again:\n{text_of(error)}",
        )
    return not found


def report_of(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    explainer: Explainer,
    probe: Probe,
    teller: Teller,
    history: History,
) -> Report | None:
    """The report without what failed on any rank; ``None`` on all ranks if it failed as a whole on any."""
    explainer = _switched_on(explainer, teller)
    if teller.is_off(_WHOLE) or not explainer.methods:
        return None
    names = [*explainer.methods, *explainer.metrics]
    with trainers.silenced(pl_module), trainers.progress_bar(trainer, len(names)) as progress:
        explain = partial(explainer.explain, pl_module, probe, progress, history)
        report, failures = _attempt(trainer, partial(_averaged, explain), teller)
    with telling(failures):
        failed = trainers.first_failing(trainer, [_WHOLE, *names], failures)
    empty = trainers.first_failing(trainer, names, _numberless(report, explainer.metrics) if report else [])
    for name, rank in failed.items():
        if rank == trainer.global_rank:
            what = "No explanation" if name == _WHOLE else f"{name!r} failed and is left out of this explanation"
            teller.tell_once(name, f"{what} (rank {rank}); training goes on:\n{failures[name]}")
    # Of what a failed explanation would have found nothing is known.
    for name in [_WHOLE] if _WHOLE in failed else [_WHOLE, *names]:
        teller.count(name, name in failed or name in empty, speaks=trainer.is_global_zero)
    if report is None or _WHOLE in failed:
        return None
    stage = None if trainer.state.fn is None else trainer.state.fn.value
    left = without(report, failed, explainer.metrics)
    return replace(left, epoch=trainer.current_epoch, step=trainer.global_step, stage=stage)


def _switched_on(explainer: Explainer, teller: Teller) -> Explainer:
    """Without the methods and metrics that are switched off."""
    methods = {name: method for name, method in explainer.methods.items() if not teller.is_off(name)}
    return replace(
        explainer, methods=methods, metrics={k: v for k, v in explainer.metrics.items() if not teller.is_off(k)}
    )


def _attempt(
    trainer: pl.Trainer, explain: Callable[[], Report], teller: Teller
) -> tuple[Report | None, dict[str, str]]:
    """This rank's report, and what failed on it, with the traceback."""
    report, error = trainers.attempted(explain)
    if isinstance(error, ELSEWHERE):
        error = None
    if teller.raising:
        trainers.raise_together(trainer, error)
    if error is not None:
        return None, {_WHOLE: text_of(error)}
    return report, {} if report is None else dict(report.failures)


def _averaged(explain: Callable[[], Report]) -> Report:
    """The report, if it can be averaged: what cannot has failed, too."""
    report = explain()
    report.scalars()
    return report


def _numberless(report: Report, metrics: Mapping[str, Metric]) -> set[str]:
    """Methods whose map is finite on no row, and metrics that have no finite score of any other method."""
    maps = {name: [x.flatten(1) for x in as_tuple(value)] for name, value in report.attributions.items()}
    empty = {name for name, parts in maps.items() if not torch.isfinite(torch.cat(parts, 1)).all(1).any()}
    for name, metric in metrics.items():
        by_method = [report.scores.get(score, {}) for score in score_names({name: metric})]
        found = [values for scores in by_method for method, values in scores.items() if method not in empty]
        if found and not any(bool(torch.isfinite(values).any()) for values in found):
            empty = empty | {name}
    return empty


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
        self._sinks: dict[str, Sink] = {}

    def open(self, trainer: pl.Trainer, directory: Path, layout: Charts) -> None:
        """Finds the sinks of a Trainer on rank zero, none of a dry run, and writes the layout if there is one."""
        self._directory = directory
        for what in self._teller.failures if trainer.is_global_zero else ():
            self._teller.tell_of_off(what)
        dry = getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero
        self._sinks = {} if dry else _named(sinks_for(trainer.loggers, directory))
        self._agree(trainer, partial(self._lay_out, layout))

    def _lay_out(self, layout: Charts) -> None:
        for name, sink in self._sinks.items() if layout else ():
            self._teller.survive(partial(sink.layout, layout), f"The layout of {name}")

    def publish(
        self,
        trainer: pl.Trainer,
        report: Report,
        probe: Probe,
        scalars: Mapping[str, float],
        metrics: Mapping[str, Metric],
    ) -> None:
        """Draws and writes. To be called on all ranks, for a failure may have to be raised on all."""

        def work() -> None:
            self._tell_of_nonfinite(report)
            self._tell_of_odd(report)
            pictures = self._teller.survive(partial(draw, report, probe, self._options), "Drawing pictures")
            self._write(publication(self._name, report, scalars, pictures or {}, metrics))

        self._agree(trainer, work)

    def _agree(self, trainer: pl.Trainer, work: Callable[[], None]) -> None:
        """Rank zero alone works; what fails is raised on all ranks, or counted on all of them."""
        _, error = trainers.attempted(work) if trainer.is_global_zero else (None, None)
        trainers.raise_together(trainer, error)
        self._teller.failures = trainers.everyone(trainer).first(self._teller.failures)

    def _tell_of_nonfinite(self, report: Report) -> None:
        for method, rows in report.nonfinite().items():
            if rows:
                self._teller.tell_once(
                    f"nonfinite/{method}",
                    f"{method!r} has a map or score that is NaN or infinite on rows {rows}; they are counted in "
                    f"{self._name}/nonfinite/{method} and left out of means.",
                )

    def _tell_of_odd(self, report: Report) -> None:
        for method, value in report.attributions.items():
            if not any(bool(part.any()) for part in as_tuple(value)):
                self._teller.tell_once(
                    f"zero/{method}",
                    f"the map of {method!r} is zero everywhere, on all rows, and its scores mean nothing: the explained output "
                    "does not move with what it looks at. Behind the last block of a transformer only the class token is "
                    "read; explain an earlier layer.",
                )
        names, outputs = self._options.class_names, report.outputs
        if names is not None and outputs.ndim == 2 and 1 < outputs.shape[1] != len(names):
            self._teller.tell_once(
                "class_names", f"class_names has {len(names)} names, but the model has {outputs.shape[1]} outputs."
            )

    def _write(self, found: Publication) -> None:
        if self._save_reports and self._sinks:
            folder = self._directory / safe_name(self._name)
            self._teller.survive(partial(save_report, found.report, folder), "Saving the report")
        for name, sink in self._sinks.items():
            self._teller.survive(partial(sink.write, found), name)


def _named(sinks: list[Sink]) -> dict[str, Sink]:
    """Sinks by the name of their type; the second of a type is ``"ScalarSink 2"``."""
    seen: Counter[str] = Counter()
    found = {}
    for sink in sinks:
        kind = type(sink).__name__
        seen[kind] += 1
        found[kind if seen[kind] == 1 else f"{kind} {seen[kind]}"] = sink
    return found
