"""The table of samples has the columns of the task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Publication, Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.samples import SampleTable
from lightning_explain.modalities import Text

RUN = RunInfo("explain", class_names=("cat", "dog", "owl"))
FACTS = {"position": 1, "class": 2, "predicted": 0, "probability": 0.5, "share": 0.25, "overlap": 0.125}


def row(
    task: str, outputs: Tensor, labels: Tensor | None, probe: Probe | None = None, **facts: float
) -> dict[str, Any]:
    """What the table says of the one sample of a report, but for the first and last columns."""
    ids, explained = torch.tensor([7]), {name: torch.tensor([value]) for name, value in facts.items()}
    probe = probe or Probe(torch.zeros(1, 2), labels)
    values, maps = torch.tensor([1.5]), {"ig": torch.zeros(1, 2)}
    made = Report(
        maps, {}, {}, outputs, ids * 0, ids * 0, ids, values=values, explained=explained, task=task, probe=probe
    )
    table = SampleTable(RUN, made)
    ((_, _, line),) = table.lines(Publication("explain", 0, 0, {}, {}, {}, made))
    found = dict(zip(table.columns, line, strict=True))
    assert (list(found)[:3], list(found)[-2:]) == (["epoch", "step", "sample"], ["f", "method"])
    assert all(value is None or isinstance(value, table.columns[name]) for name, value in found.items())
    return dict(list(found.items())[3:-2])


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "facts", "said"),
    [
        ("multiclass", [[0.0, 2.0, 0.0]], [1], {}, {"label": "dog", "prediction": "cat", "probability": pytest.approx(0.107, abs=0.001)}),
        ("regression", [[1.5]], [2.0], {}, {"true": 2.0, "predicted": 1.5}),
        ("regression", [[1.0, 0.5]], [[1.0, 1.0]], {"true": 2.0}, {"true": 2.0, "predicted": 1.5}),
        ("multilabel", [[9.0, -9.0, 0.0]], [[1.0, 0.0, 1.0]], {},
         {"label": "cat", "positives": "cat, owl", "sigmoids": "cat 1.00, owl 0.50"}),
        ("dense", [[]], [[[0]]], FACTS, {"class": "owl", "share": 0.25, "overlap": 0.125}),
    ],
)  # fmt: skip
def test_the_columns_are_those_of_the_task(
    task: str, outputs: Any, labels: Any, facts: dict[str, float], said: dict[str, Any]
) -> None:
    assert row(task, torch.tensor(outputs), torch.tensor(labels), **facts) == said


def test_of_tags_the_word_is_said() -> None:
    text = Probe(torch.tensor([[0, 1]]), torch.tensor([[-100, 2]]), modalities=(Text(vocabulary=["a", "Paris"]),))
    said = {"word": "Paris", "label": "owl", "prediction": "cat", "probability": 0.5}
    assert row("tokens", torch.empty(1, 0), None, text, **FACTS) == said
