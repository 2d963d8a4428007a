"""Takes a report, and returns what the sinks write: full tags, charts, and which end of each curve is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from torch import Tensor

from lightning_explain.core.contracts import Metric
from lightning_explain.core.report import Image, Publication, Report

Charts: TypeAlias = "dict[str, dict[str, list[str]]]"


def score_names(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metric of each score, by the score's name (the metric's name and suffix)."""
    return {f"{name}_{s}" if s else name: metric for name, metric in metrics.items() for s in metric.suffixes}


def charts(
    name: str, methods: Iterable[str], metrics: Mapping[str, Metric], scored: Mapping[str, Iterable[str]] | None = None
) -> Charts:
    """One chart for each score, with a curve for each method that has it: ``{name: {score: [tags]}}``.

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
    return {name: found}


def without(report: Report, failed: Iterable[str], metrics: Mapping[str, Metric]) -> Report:
    """The report without the maps and scores of these methods and metrics.

    Args:
        report: The report of one rank.
        failed: Names of methods and of metrics.
        metrics: All metrics, by name.
    """
    failed = set(failed)
    lost = set(score_names({name: metric for name, metric in metrics.items() if name in failed}))

    def kept(scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        left = {score: found for score, found in scores.items() if score not in lost}
        return {score: {m: v for m, v in found.items() if m not in failed} for score, found in left.items()}

    return replace(
        report,
        attributions={name: value for name, value in report.attributions.items() if name not in failed},
        scores=kept(report.scores),
        standard_errors=kept(report.standard_errors),
        n_steps={name: steps for name, steps in report.n_steps.items() if name not in failed},
        maps={name: value for name, value in report.maps.items() if name not in failed},
    )


def publication(
    name: str,
    report: Report,
    scalars: Mapping[str, float],
    pictures: Mapping[str, Image],
    metrics: Mapping[str, Metric],
) -> Publication:
    """Everything the sinks write for one explanation.

    Args:
        name: The monitor's name.
        report: The report, with epoch and step.
        scalars: Values by ``<score>/<method>``, ``seconds`` and the like.
        pictures: Pictures by method.
        metrics: By name; ``higher_is_better`` decides which value summarizes a curve.
    """
    ends = {None: "last", True: "max", False: "min"}
    better = {score: ends[metric.higher_is_better] for score, metric in score_names(metrics).items()}
    by_score = charts(name, report.attributions, metrics)[name]
    known = {tag: better[score] for score, tags in by_score.items() for tag in tags}
    tagged = {f"{name}/{key}": value for key, value in scalars.items()}
    return Publication(
        name=name,
        epoch=report.epoch or 0,
        step=report.step or 0,
        scalars=tagged,
        pictures={f"{name}/{method}": image for method, image in pictures.items()},
        directions={tag: known.get(tag, "last") for tag in tagged},
        report=report,
    )
