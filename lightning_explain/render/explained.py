"""A report and a probe in; what is explained, in the words of the model's task, out. All labels of targets come from here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.model.targets import single
from lightning_explain.model.tasks import task_of

_OF_CLASSES = ("multiclass", "binary", "multilabel", "tokens", "dense", "detection")
"""The tasks whose outputs stand for classes."""
_CHOSEN = {"tokens": "the tag", "dense": "the class", "detection": "the object"}
"""What a map is of, where each sample has its own class."""


def shown_task(report: Report, probe: Probe | None, class_names: Sequence[str] | None) -> str:
    """The model's task, as the report knows it, or else as its outputs, labels and names of classes tell."""
    outputs, labels = report.outputs, None if probe is None else probe.targets
    if report.task and not (report.task == "embedding" and labels is None and class_names is not None):
        return report.task
    sizes = (2,) if single(outputs) else outputs.shape[1:]
    named = class_names is not None and sizes == (len(class_names),)
    return task_of(outputs, None if labels is None else labels.cpu(), named)


def called(index: int, class_names: Sequence[str] | None) -> str:
    """A class in a sentence: its name, or ``class 3``."""
    name = str(class_names[index]) if class_names is not None and 0 <= index < len(class_names) else str(index)
    return f"class {name}" if name == str(index) else name


def output_called(report: Report, probe: Probe | None, class_names: Sequence[str] | None, index: int) -> str:
    """The explained output of an index of ``Report.targets`` in a sentence.

    Args:
        report: One of a single target.
        probe: Its samples, if they are known.
        class_names: One name per class index.
        index: The index; -1 if no single one names the output.

    Returns:
        Of classifiers the class: its name or ``class 3``, and of a model of one logit class 1, for which it speaks; ``the error`` of a
        reconstruction; ``output 3`` of other models of several outputs; else ``the output``.
    """
    task = shown_task(report, probe, class_names)
    if task == "reconstruction":
        return "the error"
    if task in _OF_CLASSES and index >= 0:
        return called(1 if single(report.outputs) else index, class_names)
    return "the output" if index < 0 or single(report.outputs) else f"output {index}"


def sides(report: Report, probe: Probe | None, class_names: Sequence[str] | None) -> tuple[str, str, str]:
    """What negative and positive places of the maps do, and to what: ``("against", "for", "the label")``."""
    labels = None if probe is None or probe.targets is None else probe.targets.cpu()
    task, found = shown_task(report, probe, class_names), report.targets
    one = int(found[0]) if len(found) and bool((found == found[:1]).all()) else -1
    if task == "multiclass" and labels is not None and torch.equal(found, labels.reshape(-1).to(found.dtype)):
        return "against", "for", "the label"
    if task == "multiclass" and torch.equal(found, report.predictions):
        return "against", "for", "the prediction"
    if task in ("multiclass", "multilabel", "binary") and one >= 0:
        return "against", "for", output_called(report, probe, class_names, one)
    if task == "multilabel" and "sample" in report.explained:
        return "against", "for", "the label"
    if task in _CHOSEN and "class" in report.explained:
        return "against", "for", _CHOSEN[task]
    return "lowers", "raises", _value(report, output_called(report, probe, class_names, one))


def _value(report: Report, words: str) -> str:
    """The step of a forecast, if it is the same one for all samples; else these words."""
    steps: Tensor | None = report.explained.get("step")
    same = steps is not None and len(steps) > 0 and bool((steps == steps[:1]).all())
    return f"step {int(steps[0])}" if steps is not None and same else words
