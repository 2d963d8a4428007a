"""Does ``ExplanationMonitor()`` alone work on what people train, and does it point at what decides?

    pip install "lightning-explain[demo]" timm transformers
    python benchmarks/one_line.py [--only NAME ...] [--seeds 0 1 2] [--pictures FOLDER]

Every set-up is a small network of text, tables, series or images, whose data have a planted cause at a known place: a word, a column, a
window of a channel, a square. It is trained for seconds with ``ExplanationMonitor()`` as the only callback, and once more without. Printed
are

- the loss on new samples, and the loss where the units on the planted cause come from another sample: a network that has learned the
  cause needs them, one whose loss does not double has not learned it, and nothing can be said of its maps;
- which default methods were explained, and for each the share of the samples whose strongest unit (a word, a column, a cell, a pixel)
  lies on the planted cause, and in brackets how many times stronger the map is there than on average, 1 for a map that is equal everywhere;
  "no place" for a map that has none on the input;
- what was left out, in the monitor's own words (below the table);
- whether the training was disturbed: its weights must be those without the monitor, bit for bit;
- whether all maps and charted scores are finite;
- whether that is useful: it is if the numbers are finite and the mean share over the methods is at least one half.

With ``--pictures`` the overview and the first page of each method, as TensorBoard shows them after the last epoch, are written as PNG.
Their names are numbers in random order, so that a reader can be asked for the cause from the picture alone; ``FOLDER-key.json`` says what
each number is.

The benchmark fails if a training stops or is disturbed, or if fewer than 7 of 8 set-ups whose network has learned the cause are useful.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d
from torch.utils.data import DataLoader, default_collate

from _setups import SETUPS, Setup
from lightning_explain import ExplanationMonitor
from lightning_explain.core.naming import target_of
from lightning_explain.core.probe import Probe, as_tuple, flat
from lightning_explain.core.report import Report
from lightning_explain.modalities import Volume, of_probe
from lightning_explain.modalities.placement import arrange, onto

TRAINING, VALIDATION, BATCH = 512, 64, 32
LEAST_SHARE = 7 / 8
SEEDED = ", seed "


@dataclass
class Result:
    """What became of one set-up.

    Args:
        loss: The loss on new samples after the training.
        exchanged: The same where the units on the cause come from another sample.
        pointing: For each method: the share of the samples whose strongest unit lies on the cause; ``None`` without a place.
        times: For each method with a place: how many times stronger the map is on the cause than on average.
        said: What the monitor said.
        finite: Whether all maps and charted scores are finite.
        undisturbed: Whether the weights are those of a training without the monitor.
        error: What stopped the training.
        seconds: Of the training with the monitor.
        pictures: The last picture of each tag, as a PNG file.
    """

    loss: float = float("nan")
    exchanged: float = float("nan")
    pointing: dict[str, float | None] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    finite: bool = False
    undisturbed: bool = False
    error: str = ""
    seconds: float = 0.0
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def learned(self) -> bool:
        return self.exchanged >= 2 * self.loss

    @property
    def useful(self) -> bool:
        found = [share for share in self.pointing.values() if share is not None]
        return self.finite and bool(found) and sum(found) / len(found) >= 0.5


def trained(setup: Setup, folder: str, callbacks: list[L.Callback], seed: int) -> L.LightningModule:
    L.seed_everything(seed, verbose=False)
    generator = torch.Generator().manual_seed(seed)
    loaders = [
        DataLoader(setup.data(count, generator), BATCH, shuffle=count == TRAINING, collate_fn=setup.collate)
        for count in (TRAINING, VALIDATION)
    ]
    trainer = L.Trainer(
        max_epochs=setup.epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(folder) if callbacks else False,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = setup.make()
    trainer.fit(model, *loaders)
    return model


def run(setup: Setup, seed: int = 0) -> Result:
    """Trains with and without the monitor; the seed is that of weights, data and their order."""
    result, monitor, started = Result(), ExplanationMonitor(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                model = trained(setup, folder, [monitor], seed)
            except Exception as error:
                result.error = f"{type(error).__name__}: {error}"
        result.seconds, result.pictures = time.perf_counter() - started, pictures(folder)
        ours = [
            str(w.message) for w in said if "lightning_explain" in w.filename or "ExplanationMonitor" in str(w.message)
        ]
        result.said = list(dict.fromkeys(ours))
        if result.error:
            return result
        result.loss, result.exchanged = losses(model, setup, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = trained(setup, folder, [], seed)
    result.undisturbed = same(model, alone)
    report = monitor.last_report
    # With several labels the samples of the report are there once for each of them.
    probe = None if report is None else report.probe
    if report is not None and probe is not None:
        left_out = report.run.left_out if report.run else {}
        further = {name: why for name, why in {**left_out, **report.failures}.items() if why not in " ".join(ours)}
        result.said += [f"{name}: {why}" for name, why in further.items()]
        found = {name: on_cause(report, name, probe, setup) for name in report.attributions}
        result.pointing = {name: None if one is None else one[0] for name, one in found.items()}
        result.times = {name: one[1] for name, one in found.items() if one is not None}
        result.finite = finite(report)
    return result


def pictures(folder: str) -> dict[str, bytes]:
    """The last picture of each tag in the runs of a folder, as a PNG file; only first pages, without those of former epochs."""
    found = {}
    for run_folder in {str(file.parent) for file in Path(folder).rglob("events.out.tfevents*")}:
        events = EventAccumulator(run_folder).Reload()
        for tag in events.Tags()["images"]:
            _, _, name = tag.partition("_maps/")
            if name and not name.startswith("history/") and not name.rpartition("/")[2].isdigit():
                found[tag] = events.Images(tag)[-1].encoded_image_string
    return found


def write_pictures(results: dict[str, Result], folder: Path) -> None:
    """Writes all pictures under numbers in random order, and beside the folder what each number is."""
    found = [(name, tag, png) for name, result in results.items() for tag, png in result.pictures.items()]
    random.Random(0).shuffle(found)
    folder.mkdir(parents=True, exist_ok=True)
    key = {}
    for number, (name, tag, png) in enumerate(found, 1):
        key[f"{number:03}"] = {"set-up": name, "tag": tag}
        (folder / f"{number:03}.png").write_bytes(png)
    folder.with_name(f"{folder.name}-key.json").write_text(json.dumps(key, indent=1))


@torch.no_grad()
def losses(model: L.LightningModule, setup: Setup, seed: int = 0) -> tuple[float, float]:
    """The loss on new samples, and where each has the units on its cause from the sample before."""
    data = setup.data(VALIDATION, torch.Generator().manual_seed(seed + 1))
    if setup.losses is not None:
        model.eval()
        return setup.losses(model, data)
    batch = default_collate([data[i] for i in range(VALIDATION)])
    *inputs, labels = batch.values() if isinstance(batch, dict) else batch
    masks = setup.cause(tuple(inputs), labels)
    moved = [x.roll(1, 0).where(mask.expand(x.shape), x) for x, mask in zip(inputs, masks, strict=True)]
    exchanged = dict(zip(batch, [*moved, labels], strict=True)) if isinstance(batch, dict) else [*moved, labels]
    model.eval()
    return float(model.training_step(batch, 0)), float(model.training_step(exchanged, 0))


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def finite(report: Report) -> bool:
    """Whether the numbers of all samples are finite; undefined is not failed."""
    return bool(report.attributions) and not any(report.nonfinite().values())


def on_cause(report: Report, name: str, probe: Probe, setup: Setup) -> tuple[float, float] | None:
    """The share of the samples whose strongest unit lies on the cause, and how many times stronger their maps are there than on average.

    ``None`` if the map has no place on the inputs.

    The units are those of the map: a cell of a layer's grid, or a time of all channels, counts if the cause reaches into it.
    """
    inputs = as_tuple(probe.inputs)
    maps = by_unit(report, name, probe)
    if maps is None:
        return None
    masks = setup.of_targets.get(target_of(name), setup.cause)(inputs, probe.targets)
    columns = [(flat(a).abs(), flat(reached(mask, a))) for a, mask in zip(maps, masks, strict=True)]
    strengths, planted = (torch.cat(parts, 1) for parts in zip(*columns, strict=True))
    strongest = strengths.nan_to_num(-1).argmax(1, keepdim=True)
    times = (strengths * planted).sum(1) / strengths.sum(1) / planted.float().mean(1)
    return float(planted.gather(1, strongest).float().mean()), float(times.nanmean())


def reached(mask: Tensor, found: Tensor) -> Tensor:
    """The mask in the units of a map: where it reaches into them."""
    if mask.ndim == 4 and mask.shape[2:] != found.shape[2:]:
        mask = adaptive_max_pool2d(mask.float(), found.shape[2:]).bool()
    if mask.ndim == 5 and mask.shape[1] == found.shape[1] and mask.shape[2:] != found.shape[2:]:
        mask = adaptive_max_pool3d(mask.float(), found.shape[2:]).bool()
    coarser = [axis for axis, size in enumerate(found.shape) if size < mask.shape[axis]]
    return mask.any(coarser, keepdim=True) if coarser else mask


def by_unit(report: Report, name: str, probe: Probe) -> tuple[Tensor, ...] | None:
    """The map with one number for each unit of each input, or of a layer that is laid on an image or a volume; or ``None``."""
    inputs, kinds = as_tuple(probe.inputs), of_probe(probe)
    found: Any = report.maps.get(name, as_tuple(report.attributions[name]))
    # The map of a layer beside a table has a part for each input already.
    laid = name in report.maps and len(found) == len(inputs) > 1
    arranged = found if laid else arrange(found, inputs, kinds) if found else None
    if arranged is None:
        return None
    placed = (
        arranged
        if all(kind.pixels(x) or isinstance(kind, Volume) for kind, x in zip(kinds, inputs, strict=True))
        else onto(arranged, inputs, kinds)
    )
    return tuple(kind.by_unit(part) for kind, part in zip(kinds, placed, strict=True))


def summary(results: dict[str, Result]) -> Table:
    table = Table(title="ExplanationMonitor() alone", title_justify="left")
    numbers = ("loss", "cause exchanged", "seconds")
    for title in (
        "",
        "set-up",
        *numbers[:2],
        "strongest unit on the cause",
        "finite",
        "training",
        "useful",
        numbers[2],
    ):
        table.add_column(title, justify="right" if title in numbers else "left")
    for name, result in results.items():
        shares = ", ".join(
            f"{method} " + ("no place" if share is None else f"{share:.0%} ({result.times[method]:.1f})")
            for method, share in result.pointing.items()
        )
        training = "stopped" if result.error else "unchanged" if result.undisturbed else "DISTURBED"
        verdict = "yes" if result.useful else "NO"
        words = ("yes" if result.finite else "no", training, verdict if result.learned else "not learned")
        figures = (f"{result.loss:.3f}", f"{result.exchanged:.3f}", shares or "nothing explained")
        table.add_row(SETUPS[name.partition(SEEDED)[0]][0], name, *figures, *words, f"{result.seconds:.1f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETUPS), metavar="NAME", help="set-ups by name")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write what TensorBoard shows, as numbered PNG")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="train each set-up with each")
    arguments = parser.parse_args()
    chosen = arguments.only or list(SETUPS)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {}
    for name, seed in product(chosen, arguments.seeds):
        title = name if len(arguments.seeds) == 1 else f"{name}{SEEDED}{seed}"
        results[title] = run(SETUPS[name][1], seed)
        print(f"{title}: {results[title].seconds:.0f} s", file=sys.stderr, flush=True)
    if arguments.pictures:
        write_pictures(results, arguments.pictures)
    Console(width=180).print(summary(results))
    for name, result in results.items():
        print(f"\n{name}")
        for line in [f"STOPPED: {result.error}"] * bool(result.error) + result.said:
            print(f"  {line}")
    learned = {name: result for name, result in results.items() if result.learned}
    useful = sum(result.useful for result in learned.values())
    print(
        f"\nuseful: {useful} of {len(learned)}; cause not learned: {', '.join(results.keys() - learned.keys()) or 'none'}"
    )
    harmed = [name for name, result in results.items() if result.error or not result.undisturbed]
    print(f"stopped or disturbed: {', '.join(harmed) or 'none'}")
    return int(bool(harmed) or useful < LEAST_SHARE * len(learned))


if __name__ == "__main__":
    sys.exit(main())
