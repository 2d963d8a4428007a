"""The explanations of several runs in; the positions of one slider, and which explanation each run shows at each of them, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lightning_explain.core.report import Report


class _Key(NamedTuple):
    """Orders explanations of all runs: by epoch, training before tests, and counted from the end of the epoch.

    Runs with larger batches take fewer steps, so that steps alone would not do.
    """

    epoch: int
    apart: bool
    back: int


class Moments(NamedTuple):
    """The positions of the slider.

    Args:
        labels: What each position is.
        shown: For each run, and each position, the index of the explanation that is shown: the last one until then; ``None`` before the
            first.
    """

    labels: tuple[str, ...]
    shown: tuple[tuple[int | None, ...], ...]


def moments(runs: Sequence[Sequence[Report]]) -> Moments:
    """Takes the explanations of each run in order, and returns the positions of a slider over all of them."""
    keys = [_keys(reports) for reports in runs]
    places = sorted({key for run in keys for key in run})
    labels = []
    for place in places:
        found = [
            report
            for reports, run in zip(runs, keys, strict=True)
            for report, key in zip(reports, run, strict=True)
            if key == place
        ]
        labels.append(_label(found, sum(other[:2] == place[:2] for other in places)))
    return Moments(tuple(labels), tuple(_shown(run, places) for run in keys))


def _keys(reports: Sequence[Report]) -> list[_Key]:
    groups = [(-1 if r.epoch is None else r.epoch, r.stage not in (None, "fit")) for r in reports]
    counts = Counter(groups)
    found = []
    for group in groups:
        counts[group] -= 1
        found.append(_Key(*group, -counts[group]))
    return found


def _shown(keys: Sequence[_Key], places: Sequence[_Key]) -> tuple[int | None, ...]:
    before = [sum(key <= place for key in keys) for place in places]
    return tuple(count - 1 if count else None for count in before)


def _label(reports: Sequence[Report], several: int) -> str:
    """Epoch, and step where all runs have the same one, or where the epoch alone would not tell."""
    first = reports[0]
    steps = {report.step for report in reports}
    parts = [] if first.epoch is None else [f"epoch {first.epoch}"]
    if first.step is not None and (len(steps) == 1 or several > 1 or not parts):
        parts.append(f"step {first.step}")
    stage = "" if first.stage in (None, "fit") else f" ({first.stage})"
    return (", ".join(parts) or "explanation") + stage
