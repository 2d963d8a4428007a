"""Reports keep f and the predictions, and outputs only where they are small (invariant 6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain, load_reports
from lightning_explain import methods as m
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.store.report_files import save_report


class Outputs(nn.Module):
    """Returns an output of any shape for each sample: f(x) = w * sum(x)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, torch.Size(shape).numel()).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1).reshape(-1, *(1,) * self.weight.ndim) * self.weight


def explained(shape: tuple[int, ...], target: Any) -> tuple[Report, Tensor]:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = Outputs(*shape)
    return explain(model, Probe(x), [m.Saliency()], [], target=target), model(x).detach()


@pytest.mark.parametrize(
    ("shape", "target", "kept"),
    [
        ((21, 32, 32), (3, 1, 1), False),
        ((2, 501), (1, 500), False),
        ((2, 500), (1, 499), True),
        ((5, 4, 4), lambda outputs: outputs[:, 2].sum((1, 2)), True),
        ((21, 32, 32), lambda outputs: outputs[:, 2].sum((1, 2)), False),
        ((5000,), 4999, True),
        ((1,), 0, True),
        ((), 0, True),
    ],
)
def test_a_report_keeps_f_and_small_outputs(shape: tuple[int, ...], target: Any, kept: bool) -> None:
    report, outputs = explained(shape, target)
    assert torch.equal(report.outputs, outputs if kept else torch.empty(3, 0))
    chosen = (
        target(outputs) if callable(target) else outputs[(..., *(target if isinstance(target, tuple) else [target]))]
    )
    torch.testing.assert_close(report.values, chosen if shape else outputs)
    assert report.predictions.shape == (3,)


def test_the_file_of_a_dense_report_is_small_and_comes_back(tmp_path: Path) -> None:
    report, _ = explained((21, 64, 64), (3, 1, 1))
    path = save_report(report, tmp_path / "dense.safetensors")
    assert path.stat().st_size < 10_000
    (found,) = load_reports(path)
    assert found.outputs.shape == (3, 0)
    assert torch.equal(found.values, report.values)


def test_a_report_of_the_first_version_is_read(tmp_path: Path) -> None:
    path = save_report(explained((4,), 0)[0], tmp_path / "old.safetensors")
    with safe_open(path, framework="pt") as file:
        ((key, text),) = file.metadata().items()
    content = {name: value for name, value in json.loads(text).items() if name not in ("values", "maps", "n_steps")}
    save_file(
        {name: value for name, value in load_file(path).items() if name != "values"}, path, {key: json.dumps(content)}
    )
    (found,) = load_reports(path)
    assert found.values.shape == (0,)
    assert found.outputs.shape == (3, 4)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_f_is_the_same_in_any_pass(limit: int) -> None:
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    report = Explainer({"s": m.Saliency()}, {}, target=(3, 1, 1), limit=limit).explain(Outputs(21, 32, 32), Probe(x))
    torch.testing.assert_close(report.values, Outputs(21, 32, 32)(x)[:, 3, 1, 1].detach())
