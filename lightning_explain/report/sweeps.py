"""The members of a Hydra sweep in; a table of them with their Pareto front, and a page of their runs, out."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback

from lightning_explain.core.schema import brief, one_line
from lightning_explain.report.page import write_page
from lightning_explain.report.summary import Cell, Table
from lightning_explain.store.files import replacing
from lightning_explain.store.report_files import find_run

RECORD, TABLE, PAGE = "member.json", "members.csv", "page.html"
"""Files in the folder of each member, and in that of the sweep."""
_ARROWS = {"maximize": "↑", "minimize": "↓"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """One training of a sweep.

    Args:
        name: Its folder within that of the sweep.
        folder: Its folder.
        hyperparameters: What was set for it, by key.
        objectives: ``"maximize"`` or ``"minimize"`` by metric.
        values: The values of these metrics; ``None`` if it failed.
        error: Why it failed.
    """

    name: str
    folder: Path
    hyperparameters: Mapping[str, str]
    objectives: Mapping[str, str]
    values: tuple[float, ...] | None
    error: str


class SweepReport(Callback):
    """A callback of Hydra that ends a sweep with a table of its members and a page of their runs; the presets of ``hparams_search`` set it.

    Each member writes ``member.json`` into its folder. After the last one, the folder of the sweep has ``members.csv`` and
    ``page.html``. A member whose objectives are not finite numbers counts as failed, because Optuna stops at them.

    Args:
        objectives: By any name, the ``metric`` whose value the application returns, and its ``direction``: ``"maximize"`` or
            ``"minimize"``. Their order is that of the values.

    Raises:
        ValueError: If a direction is neither.

    Example:
        >>> from lightning_explain.report.sweeps import SweepReport
        >>> callback = SweepReport({"score": {"metric": "val_accuracy", "direction": "maximize"}})
    """

    def __init__(self, objectives: Mapping[str, Mapping[str, str]]) -> None:
        self._objectives = {str(part["metric"]): str(part["direction"]) for part in objectives.values()}
        for metric, direction in self._objectives.items():
            if direction not in _ARROWS:
                raise ValueError(f"direction={direction!r} of {metric}: give one of {', '.join(map(repr, _ARROWS))}.")

    def on_job_start(self, config: Any, **_: Any) -> None:
        """Notes the member, so that one whose process dies is known."""
        self._note(config, None, "its process ended, or is still running")

    def on_job_end(self, config: Any, job_return: JobReturn, **_: Any) -> None:
        """Notes how the member ended, and marks it as failed if an objective is not a finite number."""
        try:
            values = self._checked(job_return.return_value)
        except Exception as error:
            job_return.status, job_return.return_value = JobStatus.FAILED, error
            self._note(config, None, f"{type(error).__name__}: {one_line(str(error))}")
        else:
            self._note(config, values, "")

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Writes the table and the page."""
        write_sweep(config["hydra"]["sweep"]["dir"])

    def _checked(self, returned: Any) -> list[float]:
        """The values that a member returned.

        Raises:
            ValueError: If they are not one finite number for each objective.
        """
        values = list(returned) if isinstance(returned, (list, tuple)) else [returned]
        try:
            numbers = [float(value) for value in values]
        except TypeError:
            numbers = []
        if len(numbers) != len(self._objectives) or not all(map(math.isfinite, numbers)):
            wanted = ", ".join(self._objectives)
            raise ValueError(
                f"The application returned {brief(returned)}; return a finite number for each of {wanted}."
            )
        return numbers

    def _note(self, config: Any, values: Sequence[float] | None, error: str) -> None:
        hydra = config["hydra"]
        overrides = [str(text) for text in hydra["overrides"]["task"]]
        record = {"overrides": overrides, "objectives": self._objectives, "values": values, "error": error}
        with replacing(Path(hydra["runtime"]["output_dir"]) / RECORD) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")


def load_members(folder: str | os.PathLike[str]) -> list[Member]:
    """The members of a sweep, in the order of their numbers.

    Args:
        folder: That of the sweep, such as ``multirun/2026-11-29/12-00-00``.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If a record is broken.
    """
    found = [_member(path, Path(folder)) for path in Path(folder).rglob(RECORD)]
    if not found:
        raise FileNotFoundError(
            f"No {RECORD} below '{folder}'; give the folder of a sweep that had a preset of hparams_search."
        )
    return sorted(found, key=lambda member: (len(member.name), member.name))


def _member(path: Path, folder: Path) -> Member:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        pairs = [str(text).lstrip("+").partition("=") for text in record["overrides"]]
        values = None if record["values"] is None else tuple(map(float, record["values"]))
        objectives = {str(metric): str(direction) for metric, direction in record["objectives"].items()}
        error = str(record["error"])
    except (ValueError, KeyError, TypeError, AttributeError) as broken:
        raise ValueError(f"'{path}' is broken ({broken!r}); delete it.") from broken
    name = path.parent.relative_to(folder).as_posix()
    return Member(name, path.parent, {key: value for key, _, value in pairs}, objectives, values, error)


def pareto_front(members: Sequence[Member]) -> list[Member]:
    """The members that no other one beats: none is at least as good in every objective and better in one.

    They are what Optuna calls the best trials. The one that is best in the first objective comes first.
    """
    costs = {member.name: _costs(member) for member in members if member.values is not None}
    best = {
        name
        for name, own in costs.items()
        if not any(other != own and all(map(float.__le__, other, own)) for other in costs.values())
    }
    return sorted((member for member in members if member.name in best), key=_costs)


def _costs(member: Member) -> tuple[float, ...]:
    """The values, with the sign at which lower is better."""
    values = member.values or ()
    return tuple(
        -value if direction == "maximize" else value
        for value, direction in zip(values, member.objectives.values(), strict=True)
    )


def members_table(members: Sequence[Member]) -> Table:
    """All members: hyperparameters in which they differ, objectives, who is on the Pareto front, and why others failed."""
    front = {member.name for member in pareto_front(members)}
    names = dict.fromkeys(key for member in members for key in member.hyperparameters)
    values = {name: [member.hyperparameters.get(name, "") for member in members] for name in names}
    differ = [name for name in names if len(set(values[name])) > 1]
    objectives = members[0].objectives
    lines = []
    for i, member in enumerate(members):
        scores = member.values or [None] * len(objectives)
        cells = [_cell(values[name][i]) for name in differ] + [_cell(score) for score in scores]
        marked = Cell("best" if member.name in front else "")
        lines.append((member.name, (*cells, marked, Cell(member.error))))
    heads = [f"{metric} {_ARROWS[direction]}" for metric, direction in objectives.items()]
    same = {name: found[0] for name, found in values.items() if name not in differ}
    return Table((*differ, *heads, "Pareto front", "failed"), tuple(lines), same)


def _cell(value: str | float | None) -> Cell:
    try:
        number = None if value is None else float(value)
    except ValueError:
        return Cell(str(value), value)
    return Cell("") if number is None else Cell(f"{number:.4g}", number)


def write_sweep(folder: str | os.PathLike[str]) -> Path:
    """Takes a sweep, also one that was interrupted; logs and writes the table of its members, and a page of those with reports.

    The runs of the Pareto front come first on the page.

    Args:
        folder: That of the sweep.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If no member has reports.
        ImportError: If plotly or Jinja2 is missing.
    """
    folder = Path(folder)
    members = load_members(folder)
    table = members_table(members)
    lines = [["member", *table.columns], *([name, *(cell.text for cell in cells)] for name, cells in table.lines)]
    with replacing(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    log.info("%s", "\n".join(["Members of the sweep:", *_aligned(lines)]))
    front = pareto_front(members)
    runs = [run for member in [*front, *(m for m in members if m not in front)] if (run := _run(member)) is not None]
    page = write_page(runs, folder / PAGE, f"Sweep {folder.name}", members=table)
    log.info("page: %s", page)
    return page


def _run(member: Member) -> Path | None:
    """The folder of a member's reports."""
    try:
        return find_run(member.folder)
    except FileNotFoundError:
        log.warning("Member %s has no reports of one monitor; it is not on the page.", member.name)
        return None


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
