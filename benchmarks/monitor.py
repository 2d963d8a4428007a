"""Compares ExplanationMonitor with a callback written by hand with Captum: same Trainer, same network, same epochs.

Both callbacks explain at the end of each epoch, one after the other. "Without pictures" covers maps and scores. "With
pictures" adds, by hand, a figure for each sample and method and the scores in TensorBoard; for the monitor, the composite
pictures, the scores and the saved report. Random draws differ, so only deterministic maps are compared number by number:
those of all methods but NoiseTunnel. Scores are random on both sides, and the table shows their means over the samples
side by side (the sensitivity of NoiseTunnel is smaller with the monitor, which repeats the noise of the clean map at the
perturbed sample). The interval (95%) of a ratio is that of the pairs' median, by the bootstrap.

    python benchmarks/monitor.py [--repeat 5] [--threads 2] [--no-pictures] [--pass-size 64]
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from _handwritten import SAMPLES_EACH, HandwrittenMonitor
from _measure import console, parser, ratios, seconds, start, table, with_interval
from _workload import DISTINCT, SAMPLES, images, methods, metrics, probe, samples_sent, trained
from lightning_explain import ExplanationMonitor, Probe
from lightning_explain.modalities import guess
from lightning_explain.modalities.placement import arrange, onto


class Still(pl.LightningModule):
    """A network that does not train, so that every epoch explains the same function.

    Args:
        net: The network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.automatic_optimization = False

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> None: ...


@dataclass
class Side:
    """The callback of one side, and the samples and seconds of each epoch."""

    callback: HandwrittenMonitor | ExplanationMonitor
    samples: list[int] = field(default_factory=list)
    maps: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Patched on the instance, so that the Trainer calls the real callback.
        self.callback.on_train_epoch_end = partial(self._timed, self.callback.on_train_epoch_end)  # type: ignore[method-assign]

    def _timed(self, hook: Callable[..., None], trainer: pl.Trainer, pl_module: Still) -> None:
        self.samples.append(
            samples_sent(pl_module.net, lambda: self.whole.append(seconds(lambda: hook(trainer, pl_module))))
        )
        report = getattr(self.callback, "last_report", self.callback)
        self.maps.append(report.seconds)
        name = type(self.callback).__name__
        console.print(f"epoch {trainer.current_epoch}: {name} {report.seconds:.1f} s, with logs {self.whole[-1]:.1f} s")


def run(sides: Iterable[Side], repeat: int, folder: Path) -> None:
    """Trains one epoch per measurement."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = pl.Trainer(
        max_epochs=repeat,
        accelerator="cpu",
        logger=TensorBoardLogger(folder),
        callbacks=[side.callback for side in sides],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    # By default, the batch size is the monitor's pass limit.
    trainer.fit(Still(trained()), DataLoader(TensorDataset(*images(64, seed=1)), batch_size=64))


def differences(by_hand: HandwrittenMonitor, ours: ExplanationMonitor, samples: Probe) -> Table:
    """Largest relative difference of the maps, and the mean scores."""
    found = table(
        "Results of both sides",
        "method",
        "max |a - b| / max |b|",
        "infidelity by hand",
        "ours",
        "sensitivity by hand",
        "ours",
    )
    attributions = ours.last_report.attributions
    scores = {
        (metric, name): value.mean().item()
        for metric, by_method in ours.last_report.scores.items()
        for name, value in by_method.items()
    }
    for name in methods():
        theirs = by_hand.maps[name]
        arranged = arrange((attributions[name],), (samples.inputs,), guess((samples.inputs,)))
        (mine,) = onto(arranged, (samples.inputs,), guess((samples.inputs,)))
        apart = ((mine - theirs).flatten(1).abs().amax(1) / theirs.flatten(1).abs().amax(1)).max().item()
        shown = "other draws" if name in ("smoothgrad", "vargrad") else f"{apart:.0e}"
        values = []
        for metric in ("infidelity", "sensitivity"):
            score = by_hand.scores[metric].get(name)
            values += ["", ""] if score is None else [f"{score.mean():.4g}", f"{scores[metric, name]:.4g}"]
        found.add_row(name, shown, *values)
    return found


def summary(sides: dict[str, Side], pictures: bool) -> Table:
    first, second = sides.values()
    found = table(f"Median of {len(first.samples)} pairs, {torch.get_num_threads()} threads", "", *sides, "ratio (95%)")
    ratio = f"{first.samples[-1] / second.samples[-1]:.2f}x"
    found.add_row("samples sent through the model", f"{first.samples[-1]:,}", f"{second.samples[-1]:,}", ratio)
    shown = {"without pictures, s": (first.maps, second.maps), "with pictures and logs, s": (first.whole, second.whole)}
    for title, (a, b) in list(shown.items())[: 1 + pictures]:
        medians = (f"{statistics.median(times):.2f}" for times in (a, b))
        found.add_row(title, *medians, with_interval(ratios(a, b)))
    return found


def main() -> None:
    arguments = parser(__doc__, repeat=5, clocks=False)
    arguments.add_argument(
        "--no-pictures", action="store_true", help="leave out the pictures made by hand, which take longest"
    )
    arguments.add_argument(
        "--pass-size", type=int, help="samples in a pass of the callback written by hand; default: Captum's, about 5 GB"
    )
    chosen = start(arguments)
    samples = probe()
    with tempfile.TemporaryDirectory() as folder:
        by_hand = HandwrittenMonitor(
            samples.inputs, samples.targets, Path(folder) / "by_hand", not chosen.no_pictures, chosen.pass_size
        )
        ours = ExplanationMonitor(methods("net."), metrics(), probe=samples, on_error="raise")
        sides = {"by hand": Side(by_hand), "ours": Side(ours)}
        run(sides.values(), chosen.repeat, Path(folder))
    assert set(sides["by hand"].samples) == {SAMPLES * SAMPLES_EACH}, sides["by hand"].samples
    console.print(differences(by_hand, ours, samples), summary(sides, not chosen.no_pictures))
    console.print(f"Distinct samples: {SAMPLES * DISTINCT:,}.")


if __name__ == "__main__":
    main()
