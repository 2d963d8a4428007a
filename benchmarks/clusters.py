"""Measures whether clusters of maps show which samples a network decides by a shortcut (SpRAy).

    python benchmarks/clusters.py [SEED ...]

The demo's network is trained with and without marks, once for each seed. Then 64 validation digits of one class are explained, of which
every other one carries the mark of its class, and the clusters of their maps are compared with the marks by the adjusted Rand index: 1 if
they are the same, 0 on average by chance. Only the network that has learned marks should tell marked digits apart.
"""

from __future__ import annotations

import statistics
import sys

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score

from lightning_explain import Probe, clusters, explain
from lightning_explain import methods as m
from lightning_explain.demo.digits import MEAN, STD, DigitsModel, MarkedDigits
from lightning_explain.demo.digits import demo as digits_demo

SAMPLES = 64
CLASS = 3
SEEDS = range(5)


def trained(data: MarkedDigits, epochs: int) -> DigitsModel:
    """The demo's network, after as many epochs as in the demo."""
    L.seed_everything(data.seed, verbose=False)
    model = DigitsModel()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", **quiet)  # type: ignore[arg-type]
    trainer.fit(model, data.train_dataloader())
    return model.eval()


def samples(data: MarkedDigits) -> tuple[Probe, torch.Tensor]:
    """Validation digits of one class, and which of them carry the mark of their class: every other one."""
    (marked, labels), (plain, _) = (
        [column[-data.validation_samples :] for column in data.samples(shown)] for shown in ("right", "none")
    )
    ids = (labels == CLASS).nonzero()[:SAMPLES, 0]
    carries = torch.arange(len(ids)) % 2 == 0
    return Probe(torch.where(carries.view(-1, 1, 1, 1), marked[ids], plain[ids]), labels[ids], ids), carries


def agreement(seed: int, marked: bool, epochs: int = digits_demo().epochs) -> tuple[int, float]:
    """How many clusters there are, and how much they agree with the marks, for one network."""
    data = MarkedDigits(marked=marked, seed=seed)
    probe, carries = samples(data)
    methods = {"ig": m.IntegratedGradients(n_steps=16, baselines="black")}
    report = explain(trained(data, epochs), probe, methods, [], normalization=((MEAN,), (STD,)))
    found = clusters(report, "ig", target=CLASS)
    return found.number, float(adjusted_rand_score(carries, found.labels))


def main(seeds: list[int]) -> int:
    """Prints all seeds, and returns 1 if the medians are not as promised."""
    table = Table("seed", *(f"{name}: {what}" for name in ("marked", "clean") for what in ("clusters", "Rand index")))
    found: dict[bool, list[float]] = {True: [], False: []}
    for seed in seeds:
        cells = [str(seed)]
        for marked in found:
            number, score = agreement(seed, marked)
            found[marked].append(score)
            cells += [str(number), f"{score:.3f}"]
        table.add_row(*cells)
    medians = [statistics.median(scores) for scores in found.values()]
    table.add_row("median", "", f"{medians[0]:.3f}", "", f"{medians[1]:.3f}")
    Console().print(table)
    return 0 if medians[0] >= 0.9 and medians[1] <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main(list(map(int, sys.argv[1:])) or list(SEEDS)))
