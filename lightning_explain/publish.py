"""From a report to what the sinks write: full tags, pictures, and which end of a curve is the better one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from lightning_explain.render import Options, draw
from lightning_explain.types import Metric, Probe, Publication, Report

Charts: TypeAlias = "dict[str, dict[str, list[str]]]"


def score_names(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The name of every score the metrics return, with its metric."""
    return {f"{name}_{s}" if s else name: metric for name, metric in metrics.items() for s in metric.suffixes}


def charts(name: str, methods: Iterable[str], metrics: Mapping[str, Metric]) -> Charts:
    """One chart for each score, all methods on it: ``{name: {score: [tags]}}``."""
    return {name: {score: [f"{name}/{score}/{method}" for method in methods] for score in score_names(metrics)}}


def publication(
    name: str, report: Report, probe: Probe, metrics: Mapping[str, Metric], options: Options, overhead: float | None
) -> Publication:
    """Everything there is to write of one explanation.

    Args:
        name: The monitor's name.
        report: With epoch and step.
        probe: The rows it explains.
        metrics: Their directions say which value summarises a curve.
        options: How pictures are drawn.
        overhead: Share of training time spent explaining; ``None`` outside of training.
    """
    scalars = {f"{name}/{key}": value for key, value in report.scalars().items()}
    scalars[f"{name}/seconds"] = report.seconds
    if overhead is not None:
        scalars[f"{name}/overhead"] = overhead
    ends = {None: "last", True: "max", False: "min"}
    better = {score: ends[metric.higher_is_better] for score, metric in score_names(metrics).items()}
    return Publication(
        name=name,
        epoch=report.epoch or 0,
        step=report.step or 0,
        scalars=scalars,
        pictures={f"{name}/{method}": image for method, image in draw(report, probe, options).items()},
        directions={tag: better.get(tag.split("/")[-2], "last") for tag in scalars},
        report=report,
    )
