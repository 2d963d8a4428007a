"""Takes a publication; returns a table with a line for each sample and method, in words and numbers that people read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.report import Publication, Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.shares import shares_of, sigmoids_of
from lightning_explain.model.tasks import task_of

HEAD = {
    "epoch": int,
    "step": int,
    "sample": int,
    "label": str,
    "prediction": str,
    "probability": float,
    "f": float,
    "method": str,
}
"""The first columns and their types."""
_MOST_NUMBERS = 8


class SampleTable:
    """The columns of the table of a run, which stay the same when a metric fails, and its lines.

    ``label`` and ``prediction`` are names of classes where these are known, ``probability`` is that of the prediction, ``f`` the explained
    output; each score is followed by its standard error, ``<score>_error``. What a sample does not have is ``None``.

    Args:
        run: What is true of the run: the names of scores and classes.
        report: The first report: which scores have standard errors.
    """

    def __init__(self, run: RunInfo | None, report: Report) -> None:
        self._names = () if run is None else run.class_names
        self._scores: list[str] = []
        for score in dict.fromkeys([*(() if run is None else run.higher_is_better), *report.scores]):
            self._scores += [score, f"{score}_error"] if score in report.standard_errors else [score]

    @property
    def columns(self) -> dict[str, type]:
        """The type of each column, by its name."""
        return HEAD | dict.fromkeys(self._scores, float)

    def lines(self, publication: Publication) -> Iterator[tuple[str, int, list[Any]]]:
        """The method, the index of the sample and the line of each, sample by sample; their numbers are those of ``Report.table()``."""
        report = publication.report
        columns, lines = report.table()
        labels = None if report.probe is None else report.probe.targets
        named = report.outputs.shape[1:] == (len(self._names),)
        shares = _shares(report.outputs, task_of(report.outputs, labels, named))
        known = [self._words(report, i, shares) for i in range(len(report.ids))]
        for k, line in enumerate(lines):
            i = k // len(report.attributions)
            found = dict(zip(reversed(columns), reversed(line), strict=True))  # the first of columns with one name
            f, *scores = (_finite(found.get(name)) for name in ("value", *self._scores))
            head = [publication.epoch, publication.step, found["sample"], *known[i], f, found["method"]]
            yield found["method"], i, [*head, *scores]

    def _words(self, report: Report, i: int, shares: Tensor | None) -> list[Any]:
        """Label, prediction and probability of a sample, whatever the model was trained for."""
        labels = None if report.probe is None else report.probe.targets
        label = None if labels is None else self._text(labels[i])
        if shares is None:
            return [label, self._text(report.outputs[i]), None]
        return [label, self._text(report.predictions[i]), float(shares[i, int(report.predictions[i])])]

    def _text(self, value: Tensor) -> str:
        """The name of a class, or the first numbers."""
        numbers = value.reshape(-1)[:_MOST_NUMBERS].tolist()
        index = numbers[0] if value.numel() == 1 and not value.is_floating_point() else -1
        return str(self._names[index]) if 0 <= index < len(self._names) else ", ".join(f"{x:.6g}" for x in numbers)


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
