"""Paths of runs in; their explanations, by the samples that they explain, with names that tell the runs apart, out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.render.horizon import firsts
from lightning_explain.report.clusters import Clusters, clusters
from lightning_explain.store.report_files import find_run, load_reports

_FEWEST = 8
"""The fewest samples of a class in which strategies are looked for."""


@dataclass(frozen=True, eq=False)
class StoredRun:
    """The explanations of a run, all of the same samples.

    Args:
        name: What tells it apart from the other runs.
        folder: Where its files are.
        reports: The explanations in order; at least one.
    """

    name: str
    folder: str
    reports: tuple[Report, ...]

    @property
    def last(self) -> Report:
        """The last explanation."""
        return self.reports[-1]

    @property
    def info(self) -> RunInfo | None:
        """What is true of the whole run, where it is known."""
        return self.last.run

    @property
    def probe(self) -> Probe | None:
        """The samples, where they are known."""
        return self.last.probe

    @cached_property
    def clusters(self) -> list[Clusters]:
        """Which samples of a class the last explanation explains alike, by method; empty for forecasts and without scikit-learn."""
        if firsts(self.last):
            return []
        found = []
        for report in self.last.by_targets():
            counts = Counter(report.targets.tolist())
            classes = [target for target, count in sorted(counts.items()) if target >= 0 and count >= _FEWEST]
            for method, target in product(report.attributions, classes):
                # A map may have no place on the input, or be zero on too many samples.
                with suppress(ImportError, ValueError):
                    found.append(clusters(report, method, target))
        return found

    @property
    def samples(self) -> tuple[object, ...]:
        """Equal for runs with the same samples."""
        return _samples(self.last, self.folder)


def load_runs(paths: Sequence[str | os.PathLike[str]]) -> Iterator[StoredRun]:
    """Loads runs one after the other; a run that has explained other samples too, in a test for example, comes in parts.

    Args:
        paths: Folders of runs, see :func:`~lightning_explain.store.report_files.find_run`.

    Raises:
        FileNotFoundError: If there are no reports.
        ValueError: If no run is given, or one twice.
    """
    folders = [find_run(path) for path in paths]
    resolved = [folder.resolve() for folder in folders]
    if not folders:
        raise ValueError("No run was given; give the folder of at least one.")
    twice = next((folder for folder, one in zip(folders, resolved, strict=True) if resolved.count(one) > 1), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is given twice; give each run once.")
    for folder, name in zip(folders, short_names(folders), strict=True):
        parts: dict[tuple[object, ...], list[Report]] = {}
        for report in load_reports(folder):
            parts.setdefault(_samples(report, str(folder)), []).append(report)
        for reports in parts.values():
            called = f"{name} ({_apart(reports, list(parts.values()))})" if len(parts) > 1 else name
            yield StoredRun(called, str(folder), tuple(reports))


def _samples(report: Report, folder: str) -> tuple[object, ...]:
    return report.fingerprint or folder, tuple(report.ids.tolist())


def _apart(reports: Sequence[Report], parts: Sequence[Sequence[Report]]) -> str:
    """What tells the explanations of some samples of a run from those of others: their stage, or else their samples."""
    stages = [{report.stage or "fit" for report in part} for part in parts]
    own = {report.stage or "fit" for report in reports}
    if len(own) == 1 and sum(bool(own & other) for other in stages) == 1:
        return own.pop()
    return f"samples {reports[0].fingerprint[:8]}"


def short_names(folders: Sequence[Path]) -> list[str]:
    """The parts of paths in which they differ; the whole path if there is only one.

    Example:
        >>> from pathlib import Path
        >>> from lightning_explain.report.stored_runs import short_names
        >>> short_names([Path("runs/marked/version_0/explain"), Path("runs/clean/version_0/explain")])
        ['marked', 'clean']
    """
    parts = [folder.parts for folder in folders]
    if len(parts) == 1:
        return [str(folders[0])]
    before = _common(parts)
    # At least one part of each path stays.
    after = min(_common([part[::-1] for part in parts]), *(len(part) - before - 1 for part in parts))
    return ["/".join(part[before : len(part) - max(after, 0)]) or str(Path(*part)) for part in parts]


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all paths have in common from their beginning."""
    count = 0
    for together in zip(*parts, strict=False):
        if len(set(together)) > 1:
            break
        count += 1
    return count
