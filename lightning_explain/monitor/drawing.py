"""A report in; its pictures, as arrays, PNG files and in TensorBoard's event files, and its file on disk out, in whatever process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning_explain.core.outcome import Outcome
from lightning_explain.core.png import to_png
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.loggers.event_file import EventFile
from lightning_explain.loggers.tensorboard import picture_records
from lightning_explain.modalities import Text, of_probe
from lightning_explain.render.by_target import figures_of
from lightning_explain.render.figure import draw_sample
from lightning_explain.render.history import PictureHistory, Snapshot
from lightning_explain.render.options import Options
from lightning_explain.render.page import NARROW, WIDTH
from lightning_explain.store.thinning import Reports

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Drawn:
    """The pictures of one report.

    Args:
        pictures: By ``Sink.narrow_pages``, and by key (``overview``, ``ig``, ``history/ig``).
        png: The same as PNG files, as far as they are made.
        samples: The map of each sample alone as a PNG file, by method and index, as far as they are made.
        texts: Maps of words as text by form (``"html"``, ``"markdown"``) and full tag, as far as they are made.
        counts: How many pictures there are, by ``Sink.narrow_pages`` and ``Sink.further_pages``.
        snapshot: The maps, for later pictures.
        events: The event files to which they were to be written already, by the name of the sink.
        written: The names of the sinks to whose files they were.
    """

    pictures: Mapping[bool, Mapping[str, Picture]] = field(default_factory=dict)
    png: Mapping[bool, Mapping[str, bytes]] = field(default_factory=dict)
    samples: Mapping[tuple[str, int], bytes] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    counts: Mapping[tuple[bool, bool], int] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    events: Mapping[str, EventFile] = field(default_factory=dict)
    written: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Made:
    """What became of one report.

    Args:
        drawn: Its pictures.
        saved: Whether it is saved; ``None``: it was not to be.
        saved_run: The same of the samples and settings.
        reports: What has been saved so far, for the next one.
    """

    drawn: Outcome[Drawn]
    saved: Outcome[Path] | None
    saved_run: Outcome[None] | None
    reports: Reports

    def map_errors(self, change: Callable[[BaseException], BaseException]) -> Made:
        """The same with each error replaced."""

        def changed(outcome: Outcome[Any] | None) -> Any:
            failed = outcome is not None and outcome.error is not None
            return Outcome(error=change(outcome.error)) if failed else outcome  # type: ignore[union-attr, arg-type]

        return replace(self, **{name: changed(getattr(self, name)) for name in ("drawn", "saved", "saved_run")})


@dataclass(frozen=True, eq=False)
class Encoded:
    """What sinks ask for beside pictures: texts, and these.

    Args:
        name: The monitor's name.
        events: The event files to which the pictures are written, by the name of the sink, and its ``narrow_pages``.
        png: Whether one takes PNG files.
        samples: Whether one takes the map of each sample alone.
    """

    name: str
    events: Mapping[str, tuple[EventFile, bool]]
    png: bool
    samples: bool


@dataclass(frozen=True, eq=False)
class Drawing:
    """Draws and saves a report: all that takes long after an explanation, and needs no Trainer.

    Args:
        options: How to draw.
        wanted: How many pictures, and whether further pages, by ``Sink.narrow_pages``.
        history: The maps of earlier pictures.
        reports: Saves the report.
        folder: Where to; ``None``: it is not saved.
        encoded: What the sinks will ask for, made already; ``None``: none of it.
    """

    options: Options
    wanted: Mapping[bool, tuple[int, bool]]
    history: PictureHistory
    reports: Reports
    folder: Path | None
    encoded: Encoded | None = None

    def make(self, report: Report, probe: Probe) -> Made:
        """Does all of it."""
        saved, saved_run = None, None
        if self.folder is not None:
            saved = Outcome.of(partial(self.reports.save, report, self.folder))
            if saved.error is None:
                saved_run = Outcome.of(partial(self.reports.save_run, report, self.folder))
        return Made(Outcome.of(partial(self._draw, report, probe)), saved, saved_run, self.reports)

    def _draw(self, report: Report, probe: Probe) -> Drawn:
        pictures, counts = dict[bool, dict[str, Picture]](), dict[tuple[bool, bool], int]()
        snapshot: Snapshot | None = None
        # The wide ones last: their maps are kept for later pictures.
        for narrow, (most, further) in sorted(self.wanted.items(), reverse=True):
            found = figures_of(report, probe, self.options, width(narrow))
            counts |= {(narrow, pages): found.count(self.history, pages) for pages in (False, True)}
            pictures[narrow] = found.pictures(self.history, most, further)
            snapshot = found.snapshot
        drawn = Drawn(pictures, counts=counts, snapshot=snapshot)
        return drawn if self.encoded is None else self._encoded(drawn, self.encoded, report, probe)

    def _encoded(self, drawn: Drawn, wanted: Encoded, report: Report, probe: Probe) -> Drawn:
        """The same with what sinks would make of it, which takes much of the time of writing them."""
        name, texts, step = wanted.name, {"epoch": str(report.epoch or 0)}, report.step or 0
        png = {narrow: {key: to_png(one, texts) for key, one in of.items()} for narrow, of in drawn.pictures.items()}
        samples = dict[tuple[str, int], bytes]()
        for method in report.attributions if wanted.samples and drawn.pictures else ():
            for i in range(len(report.ids)):
                samples[method, i] = to_png(draw_sample(report, probe, self.options, method, i), {})
        words = {form: words_of(report, probe, self.options, name, form) for form in ("html", "markdown")}
        # Last, so that nothing is written of what cannot be drawn.
        events, written = {sink: file for sink, (file, _) in wanted.events.items()}, set[str]()
        for sink, (file, narrow) in wanted.events.items() if drawn.pictures else ():
            # What fails here fails again when the sink writes, which is reported.
            with suppress(Exception):
                pictures, files = tagged(name, drawn.pictures[narrow]), tagged(name, png[narrow])
                file.append(picture_records(name, pictures, files, step))
                written.add(sink)
        kept, names = png if wanted.png else {}, frozenset(written)
        return replace(drawn, png=kept, samples=samples, texts=words, events=events, written=names)


def words_of(report: Report, probe: Probe, options: Options, name: str, form: str) -> dict[str, str]:
    """Maps of words as text, ``"html"`` or ``"markdown"``, by full tag; nothing where no input is a text."""
    if not any(isinstance(modality, Text) for modality in of_probe(probe)):
        return {}
    return {f"{name}_words/{key}": text for key, text in figures_of(report, probe, options).texts(form).items()}


def tagged(name: str, by_key: Mapping[str, T]) -> dict[str, T]:
    """The same by full tag."""
    return {f"{name}_maps/{key}": value for key, value in by_key.items()}


def width(narrow: bool) -> int:
    """The width of a page in pixels."""
    return NARROW if narrow else WIDTH
