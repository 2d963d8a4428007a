"""Runs in; what a page says of them in words and tables (scores, hyperparameters, findings, cost, settings), as plain data, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lightning_explain.core.naming import target_of
from lightning_explain.core.report import Report
from lightning_explain.core.schema import brief
from lightning_explain.render.explained import output_called
from lightning_explain.report.blocks import number
from lightning_explain.report.runs import epoch_and_step
from lightning_explain.report.stored_runs import StoredRun

_PLURAL = {True: "higher is better", False: "lower is better", None: ""}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and what it is sorted by."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table with a line for each run.

    Args:
        columns: The names of the columns behind that of the runs.
        lines: The name of each run, and its cells.
        same: What is equal in all runs, by name.
    """

    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]
    same: Mapping[str, str]


def table(runs: Sequence[StoredRun]) -> Table:
    """Hyperparameters and settings in which the runs differ, and their last scores with standard errors and own metrics."""
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for found in settings for name in found)
    values = {name: [found.get(name) for found in settings] for name in names}
    differ = [name for name in names if len(runs) > 1 and len({str(value) for value in values[name]}) > 1]
    last = [_last(run.last) for run in runs]
    scores = list(dict.fromkeys(name for found in last for name in found))
    lines = []
    for i, run in enumerate(runs):
        cells = [_cell(values[name][i]) for name in differ] + [
            _scored(*last[i].get(name, (None, None))) for name in scores
        ]
        lines.append((run.name, (Cell(epoch_and_step(run.last), run.last.step), *cells)))
    same = {name: _cell(values[name][0]).text for name in names if name not in differ}
    return Table(("last explanation", *differ, *scores), tuple(lines), same)


def _settings(run: StoredRun) -> dict[str, Any]:
    info = run.info
    return {} if info is None else {**info.hyperparameters, **info.short}


def _last(report: Report) -> dict[str, tuple[float | None, float | None]]:
    """The means of the scores and their standard errors, and what the module logged."""
    means, errors = report.scalars(), report.mean_errors()
    unsure = () if report.run is None else report.run.incomparable
    scores = sorted(report.scores, key=lambda score: score in unsure)
    tags = [f"{score}/{method}" for score in scores for method in report.scores[score]]
    found = {tag: (number(means[tag]) if tag in means else None, errors.get(tag)) for tag in tags}
    return found | {name: (number(value), None) for name, value in report.logged.items()}


def _cell(value: Any) -> Cell:
    if value is None:
        return Cell("")
    known = value if isinstance(value, (int, float, str)) else brief(value)
    return Cell(f"{known:.4g}" if isinstance(known, float) else str(known), known)


def _scored(value: float | None, error: float | None) -> Cell:
    if value is None:
        return Cell("")
    return Cell(f"{value:.3g}" if error is None else f"{value:.3g} ± {error:.1g}", value)


def curves(run: StoredRun) -> list[dict[str, Any]]:
    """For each explanation of a run: epoch, step, and by tag the mean of each score with its standard error; the module's own metrics."""
    found = []
    for report in run.reports:
        scores = {tag: pair for tag, pair in _last(report).items() if tag not in report.logged}
        about = {"epoch": report.epoch, "step": report.step}
        found.append({**about, "scores": scores, "logged": {k: number(v) for k, v in report.logged.items()}})
    return found


def scores(runs: Sequence[StoredRun]) -> dict[str, dict[str, Any]]:
    """By score of any run: which end is better, how to read it, and whether its values can be compared between epochs."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for score in {score: None for report in run.reports for score in report.scores}:
            info = run.info
            read = {} if info is None else info.how_to_read
            name = max((name for name in read if score == name or score.startswith(f"{name}_")), key=len, default="")
            better = None if info is None else info.higher_is_better.get(score)
            said = {
                "better": _PLURAL[better],
                "read": read.get(name, ""),
                "comparable": info is None or score not in info.incomparable,
            }
            found.setdefault(score, said)
    return dict(sorted(found.items(), key=lambda item: not item[1]["comparable"]))


def facts(runs: Sequence[StoredRun]) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """What is said under each heading: names of runs, and pairs of a name and a text; runs of which the same is true are together."""
    parts = {
        "What the doctor found": _findings,
        "Left out, failed or undefined": _lacking,
        "Strategies: samples of one explained output whose last maps are alike (SpRAy)": _strategies,
        "Cost": _cost,
        "Settings": _written,
    }
    return {title: _together([(run.name, say(run)) for run in runs]) for title, say in parts.items()}


def _strategies(run: StoredRun) -> list[tuple[str, str]]:
    found, parts = [], {name: replace(run.last, probe=run.probe).of_target(name) for name in run.last.by_target}
    for one in run.clusters:
        assert one.target is not None
        report = parts.get(target_of(one.method) or "", run.last)
        names = (report.run and report.run.class_names) or (report.probe and report.probe.class_names) or None
        what = output_called(report, report.probe, names, one.target)
        listed = [f"{k} of {one.number}: samples {', '.join(map(str, ids))}" for k, ids in enumerate(one.samples(), 1)]
        found.append((f"{one.method}, {what}", "; ".join(listed)))
    none = "Not computed: no explained output has 8 samples with a map on the input, or scikit-learn is missing."
    return found or [("", none)]


def _together(said: Sequence[tuple[str, list[tuple[str, str]]]]) -> list[tuple[str, list[tuple[str, str]]]]:
    names: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, pairs in said:
        names.setdefault(tuple(pairs), []).append(name)
    return [(", ".join(found), list(pairs)) for pairs, found in names.items()]


def _findings(run: StoredRun) -> list[tuple[str, str]]:
    if run.info is None:
        return [("", "Not known: the run has no run.json.")]
    return list(run.info.findings.items()) or [("", "Nothing: all methods fit this model.")]


def _lacking(run: StoredRun) -> list[tuple[str, str]]:
    found = [] if run.info is None else list(run.info.left_out.items())
    for report in run.reports:
        found += [
            (name, f"failed at {epoch_and_step(report)}: {_last_line(text)}") for name, text in report.failures.items()
        ]
    found += [
        (method, f"a map or score is NaN or infinite on samples {brief(ids)}")
        for method, ids in run.last.nonfinite().items()
        if ids
    ]
    for score, by_method in run.last.undefined().items():
        where = "; ".join(f"samples {brief(ids)} for {method}" for method, ids in by_method.items())
        found.append((score, f"undefined, because {run.last.undefined_reasons[score]}: {where}"))
    if run.probe is None:
        found.append(
            (
                "samples",
                "not stored (save_inputs=False, or no probe.safetensors): maps are shown without them, labels are not known",
            )
        )
    return found or [("", "Nothing.")]


def _cost(run: StoredRun) -> list[tuple[str, str]]:
    seconds, passes = sum(report.seconds for report in run.reports), run.last.passes
    found = [] if run.info is None or not run.info.cost else [("", f"{run.info.cost[:1].upper()}{run.info.cost[1:]}.")]
    sent = f"{passes.forward:,} samples went forward and {passes.backward:,} backward through the model at the last one"
    found += [("", f"{len(run.reports)} explanations took {seconds:.3g} seconds; {sent}.")]
    taken = {method: ("points on the path", n) for method, n in run.last.n_steps.items()}
    for metric, by_method in run.last.n_draws.items():
        taken |= {f"{metric}/{method}": ("draws", n) for method, n in by_method.items()}
    # A method has points, a score draws; the names of the two never meet.
    return [*found, *((name, _each_took(*one)) for name, one in taken.items() if len(one[1]))]


def _each_took(what: str, counts: Tensor) -> str:
    """How many points or draws the samples ``(N,)`` took where each takes as many as it needs."""
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        return f'"auto" took {low} {what} for each sample at the last explanation.'
    mean = f"{counts.double().mean():.4g} on average"
    return f'"auto" took {low} to {high} {what} for a sample at the last explanation, {mean}.'


def _written(run: StoredRun) -> list[tuple[str, str]]:
    info = run.info
    if info is None:
        return [("", "Not known: the run has no run.json.")]
    found = {**info.methods, **info.metrics, **{name: brief(info.settings[name]) for name in info.changed}}
    found |= {"modalities": ", ".join(info.modalities), "samples in a pass": str(info.pass_size or "not known")}
    found |= {"threads": str(info.threads), "memory format": info.memory_format, "precision": info.precision}
    found["versions"] = ", ".join(f"{name} {text}" for name, text in info.versions.items())
    return [(name, text) for name, text in found.items() if text]


def _last_line(text: str) -> str:
    """The last line of a traceback."""
    return brief(text.strip().splitlines()[-1]) if text.strip() else ""
