"""A report in; its pictures, as arrays and PNG files, and its file on disk out, in whatever process that is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from lightning_explain.core.png import to_png
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.loggers.tensorboard import picture_records
from lightning_explain.render.by_target import figures_of
from lightning_explain.render.history import PictureHistory, Snapshot
from lightning_explain.render.options import Options
from lightning_explain.render.page import NARROW, WIDTH
from lightning_explain.store.thinning import Reports

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Outcome(Generic[T]):
    """What a piece of work returned, or the error that it raised."""

    value: T | None = None
    error: BaseException | None = None

    @classmethod
    def of(cls, work: Callable[[], T]) -> Outcome[T]:
        """Does the work."""
        try:
            return cls(work())
        except Exception as error:
            return cls(error=error)

    def get(self) -> T:
        """Returns or raises as the work did."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


@dataclass(frozen=True, eq=False)
class Drawn:
    """The pictures of one report.

    Args:
        pictures: By ``Sink.narrow_pages``, and by key (``overview``, ``ig``, ``history/ig``).
        png: The same as PNG files, as far as they are made.
        records: The same as records of a TensorBoard event file, as far as they are made.
        counts: How many pictures there are, by ``Sink.narrow_pages`` and ``Sink.further_pages``.
        snapshot: The maps, for later pictures.
    """

    pictures: Mapping[bool, Mapping[str, Picture]] = field(default_factory=dict)
    png: Mapping[bool, Mapping[str, bytes]] = field(default_factory=dict)
    records: Mapping[bool, bytes] = field(default_factory=dict)
    counts: Mapping[tuple[bool, bool], int] = field(default_factory=dict)
    snapshot: Snapshot | None = None


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
class Drawing:
    """Draws and saves a report: all that takes long after an explanation, and needs neither Trainer nor loggers.

    Args:
        options: How to draw.
        wanted: How many pictures, and whether further pages, by ``Sink.narrow_pages``.
        history: The maps of earlier pictures.
        reports: Saves the report.
        folder: Where to; ``None``: it is not saved.
        encodes: Whether to make PNG files already.
        recorded: The monitor's name, if records of a TensorBoard event file are made, too.
    """

    options: Options
    wanted: Mapping[bool, tuple[int, bool]]
    history: PictureHistory
    reports: Reports
    folder: Path | None
    encodes: bool = False
    recorded: str | None = None

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
        if not self.encodes:
            return Drawn(pictures, counts=counts, snapshot=snapshot)
        texts = {"epoch": str(report.epoch or 0)}
        png = {narrow: {key: to_png(one, texts) for key, one in of.items()} for narrow, of in pictures.items()}
        return Drawn(pictures, png, self._records(pictures, png, report.step or 0), counts, snapshot)

    def _records(
        self, pictures: Mapping[bool, Mapping[str, Picture]], png: Mapping[bool, Mapping[str, bytes]], step: int
    ) -> dict[bool, bytes]:
        if (name := self.recorded) is None:
            return {}
        # Checksums of pictures take most of the time of writing them.
        found = {narrow: (tagged(name, of), tagged(name, png[narrow])) for narrow, of in pictures.items()}
        return {narrow: picture_records(name, *both, step) for narrow, both in found.items()}


def tagged(name: str, by_key: Mapping[str, T]) -> dict[str, T]:
    """The same by full tag."""
    return {f"{name}_maps/{key}": value for key, value in by_key.items()}


def width(narrow: bool) -> int:
    """The width of a page in pixels."""
    return NARROW if narrow else WIDTH
