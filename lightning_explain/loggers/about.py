"""What is true of a run, and one explanation, as Markdown for people who see the dashboard for the first time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping

from lightning_explain.core.contracts import Metric
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.schema import brief

_PAPER = re.compile(r" \([^()]*\d{4}[^()]*\)")
_CHANCE = re.compile(r"^Chance: (.+?)(?=\n\S|\n\n|\Z)", re.MULTILINE | re.DOTALL)
_ENDS = {True: "Higher is better.", False: "Lower is better.", None: ""}


def how_to_read(name: str, metric: Metric) -> str:
    """How to read the curves of a metric: what it is, its range, the better end, chance level; from its docstrings and attributes.

    Args:
        name: The metric's name in the run.
        metric: The metric.

    Example:
        >>> from lightning_explain import metrics as q
        >>> from lightning_explain.loggers.about import how_to_read
        >>> how_to_read("rank", q.RelevanceRank()).split(". ")[1]
        'In 0..1, without unit; NaN for samples with an empty mask or a constant map'
    """
    classes = type(metric).__mro__[: type(metric).__mro__.index(Metric)]
    text = next((inspect.cleandoc(cls.__doc__) for cls in classes if cls.__doc__), "")
    works = next(vars(cls)[work] for cls in classes for work in ("measure", "score") if work in vars(cls))
    summary, result = (_PAPER.sub("", part.partition("\n\n")[0]) for part in (text, inspect.getdoc(works) or ""))
    end, chance = _ENDS[metric.higher_is_better], _CHANCE.search(text)
    low, high = metric.bounds
    parts = [summary, result]
    if not result and (low, high) != (None, None):
        parts.append(f"From {'any value' if low is None else low} to {'any value' if high is None else high}.")
    parts += [end if end not in result else "", f"Chance: {chance[1]}" if chance else ""]
    found = " ".join(" ".join(parts).split()).replace("``", "`")
    return re.sub(r"`_(\w+)`", rf"`{name}_\1`", found)


def about(run: RunInfo) -> str:
    """What is true of a run, as Markdown: its task, how to read its curves, what was checked and left out, what it costs, its settings."""
    read = [f"- **{name}**: {text}" for name, text in run.how_to_read.items()]
    unsure = [
        f"- `{score}` is not comparable between epochs: it has a unit of the output." for score in run.incomparable
    ]
    findings = [f"- `{name}`: {text}" for name, text in run.findings.items()]
    left_out = [f"- `{name}`: {text}" for name, text in run.left_out.items()]
    written = {**run.methods, **run.metrics, **{name: brief(run.settings[name]) for name in run.changed}}
    settings = [f"| `{name}` | `{value}` |" for name, value in written.items()]
    parts = {
        "What is explained": [f"{run.task[:1].upper()}{run.task[1:]}." if run.task else "What `target` says."],
        "How to read the curves": [*read, *unsure],
        "What the doctor says of the methods": findings or ["Nothing: all of them fit this model."],
        "Left out": left_out or ["Nothing."],
        "Cost": [f"{run.cost[:1].upper()}{run.cost[1:]}." if run.cost else "Not known."],
        "Settings": ["| name | value |", "| --- | --- |", *settings, "", "All others have their defaults."],
        "Pictures": [
            "TensorBoard keeps ten pictures of each tag; to see those of all explanations, start it with "
            "`tensorboard --logdir ... --samples_per_plugin images=1000`."
        ],
    }
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts.items())


def remarks(publication: Publication) -> str:
    """What is to be said of one explanation, as Markdown; empty if nothing.

    Alerts that fired, failures, and samples without a finite or defined score.
    """
    report = publication.report
    lines = [f"- Alert: {text}" for text in publication.alerts]
    lines += [f"- `{name}` failed: {_last(text)}" for name, text in report.failures.items()]
    lines += [
        f"- `{m}`: a map or score is NaN or infinite on samples {ids}" for m, ids in report.nonfinite().items() if ids
    ]
    for score, by_method in report.undefined().items():
        where = _listed(by_method)
        lines.append(f"- `{score}` is undefined, because {report.undefined_reasons[score]}: {where}")
    return "\n".join(lines)


def _listed(by_method: Mapping[str, Iterable[int]]) -> str:
    return "; ".join(f"samples {ids} for `{method}`" for method, ids in by_method.items())


def _last(text: str) -> str:
    """The last line of a traceback."""
    return brief(text.strip().splitlines()[-1]) if text.strip() else ""
