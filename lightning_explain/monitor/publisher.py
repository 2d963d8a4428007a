"""Takes a report and its scalars; draws, and writes to the loggers' sinks and files on rank zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from lightning_explain.core.contracts import Sink
from lightning_explain.core.png import to_png
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.report import Publication, Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.timing import Stopwatch
from lightning_explain.distributed.ranks import Ranks
from lightning_explain.loggers.choose import sinks_for
from lightning_explain.loggers.tags import Metrics, Scalars, curves_of, publication
from lightning_explain.loggers.tensorboard import TensorBoardSink
from lightning_explain.loggers.wandb import WandbSink
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor.drawing import Drawing, Drawn, Encoded, Made, tagged, width, words_of
from lightning_explain.monitor.failures import FailureLog
from lightning_explain.render.by_target import figures_of
from lightning_explain.render.figure import draw_sample
from lightning_explain.render.history import PictureHistory, Snapshot
from lightning_explain.render.options import Options
from lightning_explain.store.files import safe_name
from lightning_explain.store.thinning import Reports

_DRAWN: set[tuple[type, bool]] = set()
"""The modalities that this process has drawn to tell how long it takes, and whether on narrow pages."""
_SAVING, _SAVING_RUN, _DRAWING = (
    "Saving the report",
    "Saving the samples and settings of the reports",
    "Drawing pictures",
)


@dataclass
class Publisher:
    """Writes reports to the loggers' sinks and as files.

    Args:
        name: The monitor's name.
        options: How to draw pictures.
        reports: Saves reports as files, if wanted.
        failure_log: Reports what fails to draw or write, and lets training continue.
        own: The user's sinks, beside those of the Trainer's loggers.
        log_artifacts: Upload the files of the reports at the end.
        run_folder: The run's folder, if it is not that of the Trainer.
        saves_last: Save a report when the sinks have written it, so that what is saved has been written everywhere.
    """

    name: str
    options: Options
    reports: Reports
    failure_log: FailureLog
    own: Sequence[Sink] = ()
    log_artifacts: bool = False
    run_folder: Path | None = None
    saves_last: bool = False
    _directory: Path = Path()
    _loggers: list[Logger] = field(default_factory=list)  # whose sinks are open
    _sinks: dict[str, Sink] = field(default_factory=dict)
    _drafts: dict[bool, Publication] = field(default_factory=dict)  # what is to be written, by ``Sink.narrow_pages``
    drawn: Snapshot | None = None  # the maps of the last pictures, for those over epochs
    curves: set[str] = field(default_factory=set)  # tags of the curves that have begun where only the largest are drawn

    def open(self, trainer: pl.Trainer) -> None:
        """Opens the sinks on rank zero (none in a ``fast_dev_run``); those of a run that goes on, as in a test after a training, stay open.

        Paths become absolute here, so that a training may change its working directory. Call it on all ranks, because a failure
        may have to be raised on all of them.
        """
        former = self._directory, self._loggers
        self._directory = (self.run_folder or trainers.run_directory(trainer)) / safe_name(self.name)
        self._loggers = list(trainer.loggers)
        with self._on_rank_zero(trainer) as writes:
            if not self._sinks or former != (self._directory, self._loggers):
                self._sinks = {}
                if writes and not getattr(trainer, "fast_dev_run", False):
                    opening = partial(sinks_for, trainer.loggers, self._directory)
                    self._sinks = _named([*(self.failure_log.survive(opening, "Opening the sinks") or ()), *self.own])

    def begin(self, trainer: pl.Trainer, run: RunInfo, runs: Sequence[RunInfo]) -> None:
        """Reports on rank zero what is switched off, and writes what is true of the run, and once of the runs of all monitors.

        Call it on all ranks.
        """
        log = self.failure_log
        with self._on_rank_zero(trainer) as writes:
            for what in list(log.failures) if writes else ():
                log.report_switched_off(what)
            for name, sink in self._sinks.items():
                log.survive(partial(sink.begin, run), f"What {name} writes before the first explanation")
            for name, sink in self._sinks.items() if runs else ():
                log.survive(partial(sink.layout, runs), f"The layout of {name}")

    @property
    def _wanted(self) -> dict[bool, tuple[int, bool]]:
        """How many pictures the sinks that are not switched off take, and whether further pages, by ``Sink.narrow_pages``."""
        found: dict[bool, tuple[int, bool]] = {}
        for name, sink in self._sinks.items():
            if sink.most_pictures and not self.failure_log.is_off(name):
                most, further = found.get(sink.narrow_pages, (0, False))
                found[sink.narrow_pages] = max(most, sink.most_pictures), further or sink.further_pages
        return found

    @property
    def destination(self) -> str:
        """Where scalars, pictures and reports go, as one sentence; known on rank zero, once the sinks are open."""
        if not self._sinks:
            return "nothing is written: this is a fast_dev_run, or its logger is a DummyLogger"
        places = [sink.place for sink in self._sinks.values()]
        pictures = [sink.place for sink in self._sinks.values() if sink.most_pictures]
        parts = [f"scalars and pictures go to {', '.join(places)}"]
        if pictures != places:
            parts = [f"scalars go to {', '.join(places)}", f"pictures to {', '.join(pictures) or 'none of them'}"]
        if self.reports.enabled:
            uploaded = " (uploaded at the end)" if self.log_artifacts else ""
            parts.append(f"reports to {self._directory}{uploaded}")
        return "; ".join(parts)

    def seconds_of_drawing(self, probe: Probe, methods: int) -> float:
        """Seconds that the pictures of so many methods take, judging by one that shows the inputs as if they were a map."""
        samples, seconds = len(probe), 0.0
        maps = tuple(x.detach().cpu().float() for x in as_tuple(probe.inputs))
        none = torch.zeros(samples, dtype=torch.long)
        report = Report({"": maps}, {}, {}, torch.zeros(samples), none, none, torch.arange(samples))
        for narrow, (most, further) in self._wanted.items():
            kinds = {(type(modality), narrow) for modality in probe.modalities}
            if not kinds <= _DRAWN:
                # The first time in a process, fonts and colors are read.
                figures_of(report, probe, self.options, width(narrow)).pictures(most=1, further=False)
            watch = Stopwatch()
            figure = figures_of(report, probe, self.options, width(narrow))
            found = figure.pictures(most=most, further=further)
            for picture in found.values():
                to_png(picture, {})
            each = watch.seconds() / len(found)
            _DRAWN.update(kinds)
            # An overview, and for each method its panels and its history.
            seconds += min(most, figure.count(further=further) // 2 * (1 + 2 * methods)) * each
        return seconds

    def drawing(self, history: PictureHistory, encodes: bool = False) -> Drawing:
        """What draws and saves the next report, here or in another process; on rank zero.

        Args:
            history: The maps of earlier pictures.
            encodes: Whether it also makes what sinks will ask for, such as PNG files.
        """
        saves = self.reports.enabled and self._sinks and not (self.saves_last or self.failure_log.is_off(_SAVING))
        wanted = {} if self.failure_log.is_off(_DRAWING) else self._wanted
        return Drawing(
            self.options,
            wanted,
            history,
            self.reports,
            self._directory if saves else None,
            self._encoded if encodes else None,
        )

    @property
    def _encoded(self) -> Encoded:
        """What the sinks ask for."""
        sinks = {n: sink for n, sink in self._sinks.items() if sink.most_pictures and not self.failure_log.is_off(n)}
        # What a remote folder takes is known in this process alone, which may have set it up.
        local = {n: one for n, one in sinks.items() if isinstance(one, TensorBoardSink) and not one.events.remote}
        events = {name: (sink.events, sink.narrow_pages) for name, sink in local.items()}
        samples = any(isinstance(sink, WandbSink) for sink in sinks.values())
        return Encoded(self.name, events, png=len(sinks) > len(local), samples=samples)

    def prepare(
        self,
        trainer: pl.Trainer,
        ranks: Ranks,
        report: Report,
        scalars: Scalars,
        metrics: Metrics,
        make: Callable[[], Made],
    ) -> None:
        """Saves and draws one report, and lets the sinks prepare: all that takes long, before the clock is read.

        Call it on all of these ranks, because a failure may have to be raised on all of them.

        Args:
            trainer: The Trainer.
            ranks: The processes that call it.
            report: The report, which has its probe.
            scalars: Values by ``<score>/<method>``.
            metrics: By name.
            make: Saves and draws, as :meth:`drawing` does; called on rank zero alone.
        """
        log, self._drafts, self.drawn = self.failure_log, {}, None
        with self._on_rank_zero(trainer, ranks) as writes:
            if not writes:
                return
            for key, text in self._remarks(report).items():
                log.report_once(key, text)
            for key, text in self._undefined(report).items():
                log.note_once(key, text)
            drawn = self._take(make())
            probe = report.probe
            sample = None if probe is None or not drawn.pictures else partial(draw_sample, report, probe, self.options)
            for narrow in {sink.narrow_pages for sink in self._sinks.values()}:
                draft = publication(self.name, report, scalars, drawn.pictures.get(narrow, {}), metrics, self.curves)
                png, texts = tagged(self.name, drawn.png.get(narrow, {})), partial(self._texts, report, drawn.texts)
                own = replace(draft, png=png, sample_png=drawn.samples, draw_sample=sample, texts=texts)
                self._drafts[narrow] = own
            for name, sink in self._sinks.items():
                # What fails here fails again when it writes, which is reported.
                with suppress(Exception):
                    draft = self._drafts[sink.narrow_pages]
                    if name in drawn.events and isinstance(sink, TensorBoardSink):
                        sink.go_on(drawn.events[name], draft, name in drawn.written)
                    elif not log.is_off(name):
                        sink.prepare(draft)

    def _take(self, made: Made) -> Drawn:
        """The pictures, if they could be drawn; reports what failed, and says once if a sink takes fewer than there are."""
        log, self.reports = self.failure_log, made.reports
        if made.saved is not None:
            log.survive(made.saved.get, _SAVING)
        if made.saved_run is not None:
            log.survive(made.saved_run.get, _SAVING_RUN)
        drawn = log.survive(made.drawn.get, _DRAWING) or Drawn()
        for name, sink in self._sinks.items():
            count = drawn.counts.get((sink.narrow_pages, sink.further_pages), 0)
            if 0 < sink.most_pictures < count:
                log.note_once(
                    f"most_pictures/{name}",
                    f"of {count} pictures of each explanation, {name} receives the first {sink.most_pictures}. For fewer pictures, "
                    "name fewer methods, choose fewer samples, or use several monitors.",
                )
        self.drawn = drawn.snapshot
        return drawn

    def write(
        self, trainer: pl.Trainer, ranks: Ranks, scalars: Scalars, metrics: Metrics, alerts: Sequence[str] = ()
    ) -> None:
        """Writes what was prepared, with these scalars and what alerts say. Call it on all of these ranks."""
        with self._on_rank_zero(trainer, ranks) as writes:
            drafts, self._drafts = self._drafts if writes else {}, {}
            for narrow, draft in drafts.items():
                self.curves |= curves_of(self.name, draft.report.attributions, scalars, metrics)[1]
                last = publication(self.name, draft.report, scalars, {}, metrics, self.curves)
                later = {name: getattr(last, name) for name in ("scalars", "directions", "uncharted")}
                found = replace(draft, **later, alerts=alerts)
                for name, sink in self._sinks.items():
                    if sink.narrow_pages == narrow:
                        self.failure_log.survive(partial(sink.write, found), name)
            if self.saves_last and drafts:
                self._save(next(iter(drafts.values())).report)

    def upload(self, trainer: pl.Trainer) -> None:
        """Lets the sinks upload the files of the reports, if that is wanted. Call it on all ranks, at the end."""
        if not self.log_artifacts:
            return
        with self._on_rank_zero(trainer) as writes:
            for name, sink in self._sinks.items() if writes and self._directory.is_dir() else ():
                self.failure_log.survive(partial(sink.upload, self._directory), f"The upload of {name}")

    def _texts(self, report: Report, made: Mapping[str, Mapping[str, str]], form: str) -> Mapping[str, str]:
        """Maps of words as text, by full tag."""
        if form in made or report.probe is None:
            return made.get(form, {})
        return words_of(report, report.probe, self.options, self.name, form)

    def snapshot(self, report: Report, probe: Probe) -> Snapshot | None:
        """The maps of an earlier report, as the pictures of it were drawn; ``None`` where no pictures are."""
        narrow = min(self._wanted, default=None)
        return None if narrow is None else figures_of(report, probe, self.options, width(narrow)).snapshot

    def _save(self, report: Report) -> None:
        if not (self.reports.enabled and self._sinks):
            return
        if self.failure_log.survive(partial(self.reports.save, report, self._directory), _SAVING):
            self.failure_log.survive(partial(self.reports.save_run, report, self._directory), _SAVING_RUN)

    @contextmanager
    def _on_rank_zero(self, trainer: pl.Trainer, ranks: Ranks | None = None) -> Iterator[bool]:
        """A section in which rank zero alone works; yields whether this is it. A failure is raised or counted on all ranks."""
        ranks = ranks or trainers.everyone(trainer)
        with ranks.agree("writing"):
            yield trainer.is_global_zero
        self.failure_log.failures = ranks.first(self.failure_log.failures)

    def _remarks(self, report: Report) -> dict[str, str]:
        """Warnings about the numbers of a report, each under a key for which it is reported once."""
        remarks = {
            f"nonfinite/{method}": f"{method!r} has a map or score that is NaN or infinite on samples {samples}; they are "
            f"counted in {self.name}/nonfinite/{method} and left out of means. Check the model's outputs on them."
            for method, samples in report.nonfinite().items()
            if samples
        }
        remarks |= {
            f"zero/{method}": f"the map of {method!r} is zero everywhere, on all samples, and its scores mean nothing: the "
            "explained output does not depend on this input or layer. After the last block of a transformer, for example, "
            "only the class token is used; explain an earlier layer."
            for method in report.zero()
        }
        names, outputs = self.options.class_names, report.outputs
        if names is not None and not report.by_target and outputs.ndim == 2 and 1 < outputs.shape[1] != len(names):
            count = f"class_names has {len(names)} names, but the model has {outputs.shape[1]} outputs"
            remarks["class_names"] = f"{count}; give one for each."
        return remarks

    def _undefined(self, report: Report) -> dict[str, str]:
        """A line for each score that is undefined on some samples: why, and where they are counted."""
        return {
            f"undefined/{score}": f"{score!r} is undefined on some samples, because {report.undefined_reasons[score]}: "
            + "; ".join(f"{samples} for {method!r}" for method, samples in by_method.items())
            + f". They are counted in {self.name}/undefined/{score} and left out of the mean; nothing has failed."
            for score, by_method in report.undefined().items()
        }


def _named(sinks: list[Sink]) -> dict[str, Sink]:
    """The sinks by the names of their types; the second sink of one type is ``"ScalarSink 2"``."""
    kinds = [type(sink).__name__ for sink in sinks]
    before = [kinds[:i].count(kind) for i, kind in enumerate(kinds)]
    return {f"{kind} {n + 1}" if n else kind: sink for kind, n, sink in zip(kinds, before, sinks, strict=True)}
