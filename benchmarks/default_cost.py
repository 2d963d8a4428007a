"""What a default explanation costs, and how far its numbers are from those of a longer one, on three trained networks.

    pip install "lightning-explain[demo]"
    python benchmarks/default_cost.py

The networks: a CNN on digits, a residual CNN with BatchNorm on their parity, and a multilayer perceptron on the breast-cancer table.
For each, on 16 samples:

- evaluations: samples sent forward and backward, for each explained sample;
- maps: Spearman's correlation of the default integrated gradients with those of 200 steps, mean and worst sample;
- scores: the standard error of the probe's mean score, relative to that mean, the largest over the methods. It is measured as the
  standard deviation over eight seeds, so it covers scores that have no standard error of their own. The plain infidelity, which
  is not charted, is left out.

The benchmark fails if a default explanation takes more than 100 evaluations with a gradient, if a mean correlation is below
0.95, or if a relative standard error is above 20%.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.report import Report
from lightning_explain.explainer.registry import build_methods, build_metrics

SAMPLES, SEEDS, STEPS = 16, range(8), 200
MOST_EVALUATIONS, LEAST_CORRELATION, LARGEST_ERROR = 100, 0.95, 0.20


def digits() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), x.float().reshape(-1, 1, 8, 8) / 16, y


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norms[1](self.second(F.relu(self.norms[0](self.first(x))))))


def parity() -> tuple[nn.Module, Tensor, Tensor]:
    _, x, y = digits()
    layers = [
        nn.Conv2d(1, 16, 3, 2, 1),
        Residual(16),
        nn.Conv2d(16, 32, 3, 2, 1),
        Residual(32),
        nn.AdaptiveAvgPool2d(1),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 2)), F.interpolate(x, scale_factor=2), y % 2


def table() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = (torch.tensor(part) for part in load_breast_cancer(return_X_y=True))
    x = ((x - x.mean(0)) / x.std(0)).float()
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)), x, y


def trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """Three epochs in batches of 32, without the samples that are explained."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for epoch in range(3):
        order = torch.randperm(len(x) - SAMPLES, generator=torch.Generator().manual_seed(epoch)) + SAMPLES
        for batch in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def with_more(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The same methods with many steps."""
    return {n: replace(v, n_steps=STEPS) if isinstance(v, m.IntegratedGradients) else v for n, v in methods.items()}


def correlations(report: Report, longer: Report) -> list[float]:
    """Spearman's correlation of each map with its longer form, the lowest of all methods for each sample."""
    rows = zip(*(zip(a, longer.attributions[n], strict=True) for n, a in report.attributions.items()), strict=True)
    return [min(float(spearmanr(a.flatten(), b.flatten()).statistic) for a, b in pairs) for pairs in rows]


def errors(reports: list[Report]) -> dict[str, float]:
    """For each metric the standard deviation, over seeds, of the probe's mean score over that mean; the largest of the methods."""
    found = {}
    for metric, by_method in reports[0].scores.items():
        if metric == "infidelity":
            continue
        means = torch.stack([torch.stack([r.scores[metric][n].nanmean() for n in by_method]) for r in reports])
        found[metric] = (means.std(0) / means.mean(0).abs()).max().item()
    return found


def main() -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    shown, wrong = (
        Table("network", "accuracy", "evaluations", "maps (worst)", "scores", title="The default explanation"),
        [],
    )
    for make in (digits, parity, table):
        torch.manual_seed(0)
        model, x, y = make()
        trained(model, x, y)
        accuracy = (model(x[:SAMPLES]).argmax(1) == y[:SAMPLES]).float().mean().item()
        probe, methods = Probe(x[:SAMPLES], y[:SAMPLES]), build_methods(None)
        usable = {n: v for n, v in methods.items() if x.ndim == 4 or n != "cam"}
        reports = [explain(model, probe, usable, build_metrics(None, True), seed=seed) for seed in SEEDS]
        evaluations = reports[0].passes.backward / SAMPLES
        found = correlations(reports[0], explain(model, probe, with_more(usable), []))
        errs = errors(reports)
        mean = sum(found) / len(found)
        scores = ", ".join(f"{name} {error:.1%}" for name, error in errs.items())
        forward = reports[0].passes.forward / SAMPLES
        shown.add_row(
            make.__name__,
            f"{accuracy:.2f}",
            f"{forward:g} forward, {evaluations:g} backward",
            f"{mean:.3f} ({min(found):.3f})",
            scores,
        )
        if evaluations > MOST_EVALUATIONS or mean < LEAST_CORRELATION or max(errs.values()) > LARGEST_ERROR:
            wrong.append(make.__name__)
    Console(width=160).print(shown)
    print(f"not as promised: {', '.join(wrong)}" if wrong else "all as promised")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
