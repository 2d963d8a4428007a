"""Takes a report, and returns what the sinks write: full tags, charts, and which end of each curve is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from lightning_explain.core.contracts import Metric
from lightning_explain.core.naming import score_name
from lightning_explain.core.probe import all_finite, as_tuple
from lightning_explain.core.report import Picture, Publication, Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.about import how_to_read

Charts: TypeAlias = "dict[str, dict[str, list[str]]]"
Metrics: TypeAlias = "Mapping[str, Metric]"
Pictures: TypeAlias = "Mapping[str, Picture]"
Scalars: TypeAlias = "Mapping[str, float]"
NOT_COMPARABLE = "not comparable between epochs"
"""What the chart of a score says that has a unit of the output."""


def score_names(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metric of each score, by the score's name (the metric's name and suffix)."""
    return {score_name(name, s): metric for name, metric in metrics.items() for s in metric.suffixes}


def with_suffix(metrics: Mapping[str, Metric], which: Callable[[Metric], Iterable[str]]) -> set[str]:
    """The names of the scores with those suffixes that ``which`` returns for each metric."""
    return {score_name(name, s) for name, metric in metrics.items() for s in which(metric)}


def tags(
    name: str, methods: Iterable[str], metrics: Mapping[str, Metric], scored: Mapping[str, Iterable[str]] | None = None
) -> dict[str, list[str]]:
    """The tags of each score, one for each method that has it: ``{score: [tags]}``.

    Args:
        name: The monitor's name.
        methods: Names of the methods.
        metrics: By name.
        scored: For each metric, the methods it scores; default: all methods.
    """
    methods, found = list(methods), {}
    for key, metric in metrics.items():
        by = (scored or {}).get(key, methods)
        for score in score_names({key: metric}) if by else ():
            found[score] = [f"{name}/{score}/{method}" for method in by]
    return found


def charts(
    name: str, methods: Iterable[str], metrics: Mapping[str, Metric], scored: Mapping[str, Iterable[str]] | None = None
) -> Charts:
    """One chart for each score that is charted, with a curve for each method that has it: ``{name: {score: [tags]}}``.

    A metric whose scores are curves of one chart has such a chart for each method: ``<metric>/<method>``. Further arguments:
    :func:`tags`.
    """
    methods, together = list(methods), _together(metrics)
    left_out = with_suffix(metrics, lambda metric: metric.uncharted) | with_suffix(together, lambda m: m.suffixes)
    known = tags(name, methods, metrics, scored)
    found = {score: of_score for score, of_score in known.items() if score not in left_out}
    for key, metric in together.items():
        by_method = {m: tags(name, [m], {key: metric}) for m in (scored or {}).get(key, methods)}
        found |= {f"{key}/{m}": [tag for part in of.values() for tag in part] for m, of in by_method.items() if of}
    return {name: found}


def _together(metrics: Metrics) -> dict[str, Metric]:
    """The metrics whose scores are curves of one chart, of which only the largest are drawn."""
    return {name: metric for name, metric in metrics.items() if metric.curves is not None}


def curves_of(name: str, methods: Iterable[str], scalars: Scalars, metrics: Metrics) -> tuple[set[str], set[str]]:
    """The tags of all curves that share a chart, and of those that this explanation draws: the largest of each chart.

    Args:
        name: The monitor's name.
        methods: Names of the methods.
        scalars: Values by ``<score>/<method>``.
        metrics: By name.
    """
    every, drawn = set[str](), set[str]()
    values = {f"{name}/{key}": value for key, value in scalars.items()}
    for key, metric in _together(metrics).items():
        for method in methods:
            known = [tag for of_score in tags(name, [method], {key: metric}).values() for tag in of_score]
            every |= set(known)
            drawn |= set(sorted(values.keys() & set(known), key=lambda tag: (-values[tag], tag))[: metric.curves])
    return every, drawn


def titled(run: RunInfo) -> dict[str, Sequence[str]]:
    """The charts of a run with a title for each: the score, and a remark if its values cannot be compared between epochs."""
    return {f"{s} ({NOT_COMPARABLE})" if s in run.incomparable else s: tags for s, tags in run.charts.items()}


def described(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """What a :class:`RunInfo` says of the metrics, by the names of its arguments."""
    return {
        "how_to_read": {name: how_to_read(name, metric) for name, metric in metrics.items()},
        "higher_is_better": {score: metric.higher_is_better for score, metric in score_names(metrics).items()},
        "incomparable": tuple(sorted(with_suffix(metrics, lambda metric: metric.incomparable))),
        "with_errors": tuple(sorted(with_suffix(metrics, lambda m: m.suffixes if m.has_standard_errors else ()))),
    }


def without(report: Report, failed: Iterable[str], metrics: Mapping[str, Metric]) -> Report:
    """The report without the maps and scores of these methods and metrics.

    Args:
        report: The report of one rank.
        failed: Names of methods and of metrics.
        metrics: All metrics, by name.
    """
    failed = set(failed)
    if not failed:
        return report
    lost = set(score_names({name: metric for name, metric in metrics.items() if name in failed}))

    def kept(named: Mapping[str, Any], gone: set[str] = failed) -> dict[str, Any]:
        return {name: value for name, value in named.items() if name not in gone}

    left: dict[str, Any] = {
        kind: kept(getattr(report, kind)) for kind in ("attributions", "maps", "n_steps", "completeness_errors")
    }
    for kind in ("scores", "standard_errors"):
        left[kind] = {score: kept(found) for score, found in kept(getattr(report, kind), lost).items()}
    left["n_draws"] = {metric: kept(found) for metric, found in kept(report.n_draws).items()}
    return replace(report, **left)


def numberless(report: Report, metrics: Mapping[str, Metric]) -> set[str]:
    """Methods without a finite map on any sample, and metrics without a finite score for any of the other methods."""
    empty = {name for name, value in report.attributions.items() if not all_finite(*as_tuple(value)).any()}
    for name, metric in metrics.items():
        found = [
            values[~values.isnan()] if score in report.undefined_reasons else values
            for score in score_names({name: metric})
            for method, values in report.scores.get(score, {}).items()
            if method not in empty
        ]
        # Undefined is not failed.
        if any(len(values) for values in found) and not any(bool(torch.isfinite(values).any()) for values in found):
            empty = empty | {name}
    return empty


def publication(
    name: str, report: Report, scalars: Scalars, pictures: Pictures, metrics: Metrics, begun: Iterable[str] = ()
) -> Publication:
    """Everything the sinks write for one explanation.

    Args:
        name: The monitor's name.
        report: The report, with epoch and step.
        scalars: Values by ``<score>/<method>``, ``seconds`` and the like.
        pictures: Pictures by key: ``overview``, ``<method>``, ``history/<method>``.
        metrics: By name; ``higher_is_better`` decides which value summarizes a curve that can be compared.
        begun: Tags of curves that go on, although others of their chart are larger by now.
    """
    ends = {None: "last", True: "max", False: "min"}
    better = {score: ends[metric.higher_is_better] for score, metric in score_names(metrics).items()}
    better |= dict.fromkeys(with_suffix(metrics, lambda metric: metric.incomparable), "last")
    by_score, left_out = tags(name, report.attributions, metrics), with_suffix(metrics, lambda metric: metric.uncharted)
    known = {tag: better[score] for score, found in by_score.items() for tag in found}
    tagged = {f"{name}/{key}": value for key, value in scalars.items()}
    every, drawn = curves_of(name, report.attributions, scalars, metrics)
    return Publication(
        name=name,
        epoch=report.epoch or 0,
        step=report.step or 0,
        scalars=tagged,
        pictures={f"{name}_maps/{key}": picture for key, picture in pictures.items()},
        directions={tag: known.get(tag, "last") for tag in tagged},
        report=report,
        errors={f"{name}/{key}": error for key, error in report.mean_errors().items()},
        uncharted=frozenset(tag for score in left_out for tag in by_score.get(score, ())) | (every - drawn - {*begun}),
    )
