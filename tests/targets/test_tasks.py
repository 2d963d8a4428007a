"""Which task outputs and labels tell, what ``target="label"`` means for it, and the line that says so."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain import ExplanationMonitor, Probe, explain
from lightning_explain import targets as t
from lightning_explain.targets.tasks import settled
from training import QUIET, fit, monitor_of_digits

pytestmark = QUIET

HOT = torch.tensor([[1, 0, 1], [0, 0, 1]])
LABEL = 'target="label" means the '


@pytest.mark.parametrize(
    ("outputs", "labels", "target", "line"),
    [
        ((2, 3), torch.tensor([0, 2]), "label", f"multiclass (outputs (N, 3), whole labels (N,)); {LABEL}output of the label"),
        ((2, 1), torch.tensor([0, 1]), "label", "binary (.*the output, which speaks for class 1"),
        ((2, 3), HOT.float(), t.Positive(), "multilabel (outputs (N, 3), float labels (N, 3)); .*by itself, at most 4 of a sample"),
        ((2, 3), HOT - 1, t.Positive(), "multilabel (.*"),
        ((2, 3), HOT.float().log(), t.Horizon(), "regression (.*"),
        ((2, 3), torch.tensor([[1.0, torch.nan, 0.0]] * 2), t.Positive(), "multilabel (.*"),
        ((2, 3), torch.tensor([[0.9, 0.05, 0.05]] * 2), t.Positive(), "multiclass (.*by itself, at most 4 of a sample"),
        ((2, 3), torch.randn(2, 3), t.Horizon(), f"regression (.*{LABEL}sum of all outputs"),
        ((2,), torch.randn(2), "label", f"regression (outputs (N,), .*{LABEL}output"),
        ((2, 3), torch.randn(2), "label", "regression (.*"),
        ((2, 5, 3), torch.zeros(2, 5).long(), t.Position(), f"tokens (.*{LABEL}output of the first label"),
        ((2, 3, 5), torch.zeros(2, 5).long(), t.Position(), "tokens (.*output of the first label"),
        ((2, 5, 5), torch.zeros(2, 5).long(), t.Position(), "tokens (.*; the last dimension is taken to be the classes: .*output.mT"),
        ((2, 3, 4, 4), torch.zeros(2, 4, 4).long(), t.Pixels(), "dense (.*most frequent class but 0, where it is predicted"),
        ((2, 3), None, "label", 'embedding (.*no labels); .*largest output .*task="embedding" the norm of the output'),
        ((2, 3, 4), None, "label", "not known (.*"),
    ],
)  # fmt: skip
def test_outputs_and_labels_tell_the_task(
    outputs: tuple[int, ...], labels: Tensor | None, target: Any, line: str
) -> None:
    found = settled("auto", "label", torch.randn(outputs) * 3, labels)
    assert found.target == target
    words = re.escape(line).replace(r"\.\*", ".*")
    assert re.fullmatch(f"task: {words}", found.line), found.line


@pytest.mark.parametrize(
    ("task", "shape", "target"),
    [
        ("multilabel", (2, 3), t.Positive()),
        ("regression", (2, 3), t.Horizon()),
        ("embedding", (2, 3), t.Norm()),
        ("regression", (2, 1), "label"),
        ("tokens", (2, 3, 4), t.Position()),
        ("dense", (2, 3, 4, 4), t.Pixels()),
    ],
)
def test_a_task_that_is_given_decides(task: str, shape: tuple[int, ...], target: Any) -> None:
    found = settled(task, "label", torch.randn(shape), None)
    assert (found.name, found.target) == (task, target)
    assert found.line.startswith(f"task: {task} (as given); ")
    assert settled(task, 1, torch.randn(shape), None).target == 1


@pytest.mark.parametrize(
    ("task", "shape", "message"),
    [
        ("binary", (2, 3), r'task="binary" needs outputs \(N,\) or \(N, 1\), got \(2, 3\)'),
        ("multiclass", (2, 1), r"needs outputs \(N, C\)"),
        ("tokens", (2, 3), r"needs outputs \(N, T, C\)"),
        ("dense", (2, 3), r"needs outputs \(N, C, h, w\)"),
        ("classification", (2, 3), "task='classification'; give one of 'auto', 'multiclass', 'binary'"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(task: str, shape: tuple[int, ...], message: str) -> None:
    net = nn.Sequential(nn.Linear(4, torch.Size(shape[1:]).numel()), nn.Unflatten(1, shape[1:]))
    with pytest.raises(ValueError, match=message):
        explain(net, Probe(torch.randn(2, 4)), ["Saliency"], [], task=task)
    if task == "classification":
        with pytest.raises(ValueError, match=message):
            ExplanationMonitor.from_config({"task": task})


def test_of_an_embedding_the_norm_is_explained() -> None:
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    found = explain(net, Probe(x), ["Saliency"], [], task="embedding")
    assert torch.allclose(found.values, net(x).norm(dim=1))


def test_a_monitor_says_the_task_before_the_first_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path, monitor_of_digits(metrics=[]), limit_train_batches=1, limit_val_batches=0)
        fit(tmp_path, monitor_of_digits(metrics=[], target=3), limit_train_batches=1, limit_val_batches=0)
    lines = [record.getMessage() for record in caplog.records if "task: " in record.getMessage()]
    assert lines == [
        "ExplanationMonitor: task: multiclass (outputs (N, 10), whole labels (N,)); "
        f"{LABEL}output of the label (to change that: task=... or target=...)."
    ]
