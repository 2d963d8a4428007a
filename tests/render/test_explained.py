"""What is explained, in words: by kind of task and target, on pages, in titles and in tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import SIDE, faster_rcnn, scenes
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import targets as t
from lightning_explain.render.captions import Short, captions
from lightning_explain.render.explained import output_called, sides
from lightning_explain.report.stored_runs import StoredRun
from lightning_explain.report.summary import facts

COUNT = 9
NAMES = ("cat", "dog", "cow")
X = torch.randn(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(0))
CLASSES, NUMBERS = torch.arange(COUNT) % 3, torch.linspace(-1.0, 1.0, COUNT)


def flat(size: int) -> nn.Module:
    torch.manual_seed(size)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, size))


def placed(channels: int) -> nn.Module:
    torch.manual_seed(channels)
    return nn.Conv2d(1, channels, 3, padding=1)


class Heads(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.age, self.sex = flat(1), flat(3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"age": self.age(x), "sex": self.sex(x)}


def explained(model: nn.Module, labels: Any, target: Any = "label", names: Any = None, x: Any = X) -> Report:
    probe = Probe(x, labels, class_names=names)
    return replace(explain(model, probe, {"s": m.Saliency(abs=False)}, [], target), probe=probe)


def strategies(report: Report) -> list[str]:
    """The names of the groups on a page: the method, and of which output."""
    pytest.importorskip("sklearn")
    ((_, pairs),) = next(found for title, found in facts([StoredRun("a", "a", (report,))]).items() if "SpRAy" in title)
    return [name for name, _ in pairs]


POSITIVES = torch.tensor([[1.0, 0.0, 1.0]]).repeat(COUNT, 1)
SERIES = NUMBERS[:, None] + torch.tensor([0.1, 0.2, 0.3])
PLACES = (X[:, 0] > 0).long()
CASES: dict[str, tuple[Any, ...]] = {
    "one class": (flat(3), CLASSES * 0 + 1, "label", NAMES, "multiclass", "for the label", ["s, dog"]),
    "a class by number": (flat(3), CLASSES, 2, None, "multiclass", "for class 2", ["s, class 2"]),
    "one logit": (flat(1), CLASSES.clamp(max=1), "label", None, "binary", "for class 1", ["s, class 1"]),
    "one logit with names": (flat(1), CLASSES.clamp(max=1), "label", NAMES[:2], "binary", "for dog", ["s, dog"]),
    "several labels": (flat(3), POSITIVES, "label", NAMES, "multilabel", "for the label", ["s, cat", "s, cow"]),
    "a value": (flat(1), NUMBERS, "label", None, "regression", "raises the output", ["s, the output"]),
    "one of several values": (flat(3), SERIES, 2, None, "regression", "raises output 2", ["s, output 2"]),
    "all values": (flat(3), SERIES, "label", None, "regression", "raises the output", [""]),
    "a step of a forecast": (flat(3), SERIES, t.Horizon(1), None, "regression", "raises step 1", [""]),
    "pixels": (placed(3), PLACES, "label", NAMES, "dense", "for the class", [""]),
    "a reconstruction": (placed(1), None, "label", None, "reconstruction", "raises the error", [""]),
    "its absolute error": (
        placed(1),
        CLASSES,
        t.ReconstructionError(norm=1),
        None,
        "reconstruction",
        "raises the error",
        [""],
    ),
    "a similarity": (flat(5), CLASSES, t.Similarity(torch.eye(5)[:3]), None, "embedding", "raises the output", [""]),
    "a norm": (flat(5), CLASSES, t.Norm(), None, "embedding", "raises the output", [""]),
    "one number of an embedding": (flat(5), None, 4, None, "embedding", "raises output 4", ["s, output 4"]),
    "a function": (flat(3), CLASSES, lambda y: y[:, 0] - y[:, 1], None, "multiclass", "raises the output", [""]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_explained_has_the_words_of_its_task(case: str) -> None:
    model, labels, target, names, task, legend, groups = CASES[case]
    report = explained(model, labels, target, names)
    assert report.task == task
    assert " ".join(sides(report, report.probe, names)[1:]) == legend
    assert strategies(report) == groups


def test_of_several_targets_each_has_its_own_words_and_names() -> None:
    report = explained(Heads(), {"age": NUMBERS, "sex": CLASSES * 0 + 2}, {"age": "label", "sex": "label"}, NAMES)
    assert strategies(report) == ["s@age, the output", "s@sex, cow"]


def test_a_detected_object_is_named_as_one() -> None:
    images, labels = scenes([(SIDE, SIDE)] * 2)
    report = explained(faster_rcnn(), labels, x=images)
    assert sides(report, report.probe, None) == ("against", "for", "the object")
    columns, lines = report.table()
    line = dict(zip(columns, lines[0], strict=True))
    assert line["prediction"] == int(report.explained["class"][0])
    assert line["probability"] == float(report.explained["probability"][0])


@pytest.mark.parametrize("case", CASES)
def test_tables_name_a_predicted_class_only_where_there_is_one(case: str) -> None:
    model, labels, target, names, task, *_ = CASES[case]
    report = explained(model, labels, target, names)
    columns, lines = report.table()
    shown = [dict(zip(columns, line, strict=True)) for line in lines]
    predictions = [line["prediction"] for line in shown]
    if report.outputs.shape[1:] == (1,):
        assert predictions == report.outputs[:, 0].tolist()
    elif task == "multiclass":
        assert predictions == report.predictions.tolist()
        softmax = report.outputs.double().softmax(1).amax(1)
        assert [line["probability"] for line in shown] == pytest.approx(softmax.tolist())
    elif task == "dense":
        assert predictions == report.explained["predicted"].tolist()
    else:
        assert {(line["prediction"], line["prediction_name"], line["probability"]) for line in shown} == {(None,) * 3}


def test_titles_of_numbers_name_the_output_and_no_class() -> None:
    report = explained(flat(5), None, 4)
    assert captions(report, report.probe, None, 1)[0].lines[-1] == "explained output 4"
    report = explained(flat(5), CLASSES, t.Similarity(torch.eye(5)[:3]))
    (title,) = captions(report, report.probe, None, 1)
    assert (title.lines, title.wrong) == (("embedding", f"f = {float(report.values[0]):.3g}"), False)
    assert output_called(replace(report, task=""), None, None, 0) == "output 0", (
        "no labels, names or shares: no classes"
    )


def test_narrow_titles_have_the_values_of_the_output_that_is_explained() -> None:
    report = explained(flat(3), SERIES, 2)
    (title,) = captions(report, report.probe, None, 1)
    assert title.short == Short("true -0.7", f"pred. {float(report.outputs[0, 2]):.2g}")


def test_a_page_names_no_class_for_a_regression(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("sklearn")
    from lightning_explain.report.page import write_page
    from lightning_explain.store.report_files import save_report

    save_report(explained(flat(1), NUMBERS), tmp_path / "explain")
    written = write_page([tmp_path / "explain"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<dt>s, the output</dt>" in written
    assert "class 0" not in written
