"""Takes a publication; returns a table with a line for each sample and method, in words and numbers that people read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.report import Publication, Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.shares import shares_of, sigmoids_of
from lightning_explain.model.tasks import task_of
from lightning_explain.render.captions import word_at

_CLASSES: dict[str, type] = {"label": str, "prediction": str, "probability": float}
_OF_TASK: dict[str, dict[str, type]] = {
    "regression": {"true": float, "predicted": float},
    "multilabel": {"label": str, "positives": str, "sigmoids": str},
    "tokens": {"word": str, **_CLASSES},
    "dense": {"class": str, "share": float, "overlap": float},
}
"""What is said of a sample, by task: the names and types of columns; of other tasks label, prediction and probability."""
_MOST_NUMBERS = 8


class SampleTable:
    """The columns of the table of a run, which stay the same when a metric fails, and its lines.

    ``label`` and ``prediction`` are names of classes where these are known, ``probability`` is that of the prediction; regressions have
    ``true`` and ``predicted``, several labels ``positives`` and ``sigmoids``, tags the ``word``, segmentations the ``class``, its
    ``share`` of the pixels and the ``overlap`` of prediction and label. ``f`` is the explained output; each score is followed by its
    standard error, ``<score>_error``. What a sample does not have is ``None``.

    Args:
        run: What is true of the run: the names of scores and classes.
        report: The first report: which scores have standard errors.
    """

    def __init__(self, run: RunInfo | None, report: Report) -> None:
        self._names = () if run is None else run.class_names
        labels = None if report.probe is None else report.probe.targets
        # Several targets share the columns of classes.
        named = report.outputs.shape[1:] == (len(self._names),)
        self._task = "" if report.by_target else report.task or task_of(report.outputs, labels, named)
        self._scores: list[str] = []
        for score in dict.fromkeys([*(() if run is None else run.higher_is_better), *report.scores]):
            self._scores += [score, f"{score}_error"] if score in report.standard_errors else [score]

    @property
    def columns(self) -> dict[str, type]:
        """The type of each column, by its name."""
        head: dict[str, type] = {"epoch": int, "step": int, "sample": int, **_OF_TASK.get(self._task, _CLASSES)}
        return head | {"f": float, "method": str} | dict.fromkeys(self._scores, float)

    def lines(self, publication: Publication) -> Iterator[tuple[str, int, list[Any]]]:
        """The method, the index of the sample and the line of each, sample by sample; their numbers are those of ``Report.table()``."""
        for report in publication.report.by_targets():
            yield from self._of_target(publication, report)

    def _of_target(self, publication: Publication, report: Report) -> Iterator[tuple[str, int, list[Any]]]:
        columns, lines = report.table()
        several = bool(publication.report.by_target)
        shares = _shares(report.outputs, report.task if several and report.task == "multiclass" else self._task)
        known = [self._words(report, i, shares) for i in range(len(report.ids))]
        for k, line in enumerate(lines):
            i = k // len(report.attributions)
            found = dict(zip(reversed(columns), reversed(line), strict=True))  # the first of columns with one name
            f, *scores = (_finite(found.get(name)) for name in ("value", *self._scores))
            head = [publication.epoch, publication.step, found["sample"], *known[i], f, found["method"]]
            yield found["method"], i, [*head, *scores]

    def _words(self, report: Report, i: int, shares: Tensor | None) -> list[Any]:
        """What is said of a sample, by the columns of the task."""
        labels, facts = None if report.probe is None else report.probe.targets, _facts(report, i)
        label = None if labels is None else self._text(labels[i])
        if self._task == "regression":
            one = labels is not None and labels[i].numel() == 1
            true = float(labels[i]) if labels is not None and one else None
            return [facts.get("true", true), float(report.values[i]) if len(report.values) else None]
        if self._task == "multilabel":
            own = self._name(report.targets[i].item()) if report.targets[i] >= 0 else None
            return [own, *self._several(report.outputs[i], None if labels is None else labels[i].reshape(-1) > 0.5)]
        if self._task == "dense":
            own = self._name(facts.get("class"))
            return [own, facts.get("share"), facts.get("overlap")]
        if self._task == "tokens":
            return self._tag(report, i, labels, facts)
        if shares is None:
            return [label, self._text(report.outputs[i]), None]
        return [label, self._text(report.predictions[i]), float(shares[i, int(report.predictions[i])])]

    def _several(self, outputs: Tensor, positive: Tensor | None) -> list[Any]:
        """The names of the positive classes, and the sigmoids of these and of those that are predicted."""
        if positive is None or positive.shape != outputs.shape:
            return [None, None]
        shares = sigmoids_of(outputs)
        shown = (positive | (shares > 0.5)).nonzero()[:_MOST_NUMBERS, 0].tolist()
        names = [self._name(k) for k in positive.nonzero()[:, 0].tolist()]
        return [", ".join(map(str, names)), ", ".join(f"{self._name(k)} {float(shares[k]):.2f}" for k in shown)]

    def _tag(self, report: Report, i: int, labels: Tensor | None, facts: Mapping[str, float]) -> list[Any]:
        """The word, its label, what is predicted, and how probable that is."""
        if "position" not in facts:
            return [None] * 4
        at, label = int(facts["position"]), None
        if labels is not None and (known := int(labels[i].reshape(-1)[at])) >= 0:
            label = self._name(known)
        word = None if report.probe is None else word_at(report.probe, i, at)
        return [word, label, self._name(facts["predicted"]), facts["probability"]]

    def _name(self, index: float | None) -> str | None:
        """The name of a class, or its number."""
        return None if index is None else self._text(torch.tensor(int(index)))

    def _text(self, value: Tensor) -> str:
        """The name of a class, or the first numbers."""
        numbers = value.reshape(-1)[:_MOST_NUMBERS].tolist()
        index = numbers[0] if value.numel() == 1 and not value.is_floating_point() else -1
        return str(self._names[index]) if 0 <= index < len(self._names) else ", ".join(f"{x:.6g}" for x in numbers)


def _facts(report: Report, i: int) -> dict[str, float]:
    return {name: float(values[i]) for name, values in report.explained.items() if values.ndim == 1}


def _shares(outputs: Tensor, task: str) -> Tensor | None:
    """The probabilities ``(N, C)`` of the classes; ``None`` if the model tells no class from the others."""
    if task == "multiclass":
        return shares_of(outputs)
    if task != "binary":
        return None
    positive = sigmoids_of(outputs).reshape(-1)
    return torch.stack((1 - positive, positive), 1)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
