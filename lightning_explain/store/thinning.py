"""Which reports of a run stay as files: saves them, and deletes those that ``keep_every`` and ``keep_last`` do not keep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_explain.core.report import Report
from lightning_explain.core.serialization import columns
from lightning_explain.store.disk import check_room
from lightning_explain.store.report_files import report_path, save_report
from lightning_explain.store.run_files import save_probe, save_run


@dataclass(frozen=True)
class _Written:
    """A file that was written here: its number among those of its stage, and what tells whether another one has taken its place."""

    number: int
    path: Path
    mark: tuple[int, ...]


@dataclass
class Reports:
    """Saves reports, and deletes the files of earlier ones that are not to be kept, if it has written them itself.

    The first and the last file of each stage always stay, and whatever was in the folder before.

    Args:
        enabled: Whether reports are saved at all.
        keep_every: Keep every n-th file. ``None``: no matter which.
        keep_last: Keep the newest n files. ``None``: no matter which. All files stay if both are ``None``.
        save_inputs: Save the samples, and texts about them. Otherwise no file holds any of it.
    """

    enabled: bool = True
    keep_every: int | None = None
    keep_last: int | None = None
    save_inputs: bool = True
    _counts: dict[tuple[Path, str | None], int] = field(default_factory=dict)
    _later: dict[tuple[Path, str | None], list[_Written]] = field(default_factory=dict)  # files that may be deleted
    _of_run: tuple[Any, ...] = ()  # what was saved last of a run
    _paths: Sequence[Path] = ()  # and where

    def save(self, report: Report, folder: Path) -> Path:
        """Saves one report, deletes what is no longer to be kept, and returns the path of the file."""
        found = report if self.save_inputs else replace(report, meta={})
        _check_room(folder, list(vars(replace(found, run=None, probe=None)).values()))
        path = report_path(found, folder)
        mine = self._later.setdefault((folder, report.stage), [])
        foreign = os.path.lexists(path) and not any(one.path == path and one.mark == _mark(path) for one in mine)
        save_report(found, path)
        number = self._counts.get((folder, report.stage), 0)
        self._counts[folder, report.stage] = number + 1
        mine[:] = [one for one in mine if one.path != path]
        if number and not foreign:
            mine.append(_Written(number, path, _mark(path)))
        self._thin(mine, number)
        return path

    def save_run(self, report: Report, folder: Path) -> None:
        """Saves what is true of the whole run, and its samples, if they are not saved yet."""
        of_run = folder, report.run, report.probe
        if of_run == self._of_run and all(path.exists() for path in self._paths):
            return
        paths = [] if report.run is None else [save_run(report.run, folder)]
        if report.probe is not None and self.save_inputs:
            _check_room(folder, columns(report.probe))
            paths.append(save_probe(report.probe, folder))
        self._of_run, self._paths = of_run, paths

    def _thin(self, written: list[_Written], newest: int) -> None:
        if self.keep_every is None and self.keep_last is None:
            return
        for one in [one for one in written if one.number <= newest - (self.keep_last or 1)]:
            written.remove(one)
            due = self.keep_every is not None and one.number % self.keep_every == 0
            if not due and _mark(one.path) == one.mark:
                one.path.unlink(missing_ok=True)


def _mark(path: Path) -> tuple[int, ...]:
    try:
        found = path.lstat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_room(folder: Path, values: object) -> None:
    check_room(folder, sum(part.nbytes for part in tree_leaves(values) if isinstance(part, Tensor)))
