"""The default explanation of each modality beside the same written by hand with Captum, in one process; tables beside shap.

    pip install "lightning-explain[demo]" transformers shap
    python benchmarks/modalities.py [--only NAME ...]

For texts, tables, series, images, volumes, videos, segmentations and pairs of images, a small network is trained for a few steps. The
methods and metrics that ``ExplanationMonitor()`` takes by itself then explain 16 samples, and ``_few_lines.py`` does the same in plain
Captum. Printed are

- maps: the largest difference of any map to Captum's, relative to the largest value of that map;
- scores: the largest relative difference of any score, and maps 64: the same of maps, both computed in float64;
- evaluations: samples sent through the model for each sample explained, counted by a hook on the model: by hand, and by an explanation of
  a monitor;
- seconds: the median by hand, of ``explain()``, which checks the model each time, and of an explanation of a monitor, which has checked it
  before; then medians of the ratios to the time by hand in the same turn. By hand, all steps of a path go through the model at once, here
  256 samples; the package sends 64, which takes less memory. "monitor, 256" is a monitor with ``max_examples_per_pass=256``.

The second table compares, in float64, Shapley values and DeepLIFT on tables with ``shap`` (if it is installed), and the ablation of words
with its formula. The third is of segmentations: how far integrated gradients of 1,000 steps are from the change of the output that they
explain, with the package's region, frozen at the sample, and with the moving one of Captum's tutorial, whose sum jumps where a pixel
changes its class; in a U-Net, and in a network without kinks. The benchmark fails if a difference is above 1e-5, or if the frozen region
misses more than 1e-3 of the change.
"""

from __future__ import annotations

import copy
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from captum import attr as ca
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset, default_collate

import _few_lines as by_hand
from _against_shap import peers
from _few_lines import Draws, Found
from _measure import in_turn, median_ratio, parser, start, table
from _setups import dense, images, series, tabular, text, volumes
from _setups._base import Net
from _workload import samples_sent
from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.core.warn import warn_or_log
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import AUTO_LIMIT, REMOVALS, build_methods, build_metrics
from lightning_explain.metrics._perturbed import exact, half
from lightning_explain.probes.binding import bound
from lightning_explain.probes.signature import signature_of

SAMPLES, EQUAL, MOVES = 16, 1e-5, 3
FINE, COMPLETE, FEW = 1000, 1e-3, 4
METRICS = ("infidelity", "sensitivity_max")
Batch = Any  # a tensor, several ones, or a mapping of names to tensors


@dataclass(frozen=True)
class Case:
    """A network, its data, and its explanation by hand: ``by_hand(model, batch, labels, draws)``."""

    modality: str
    make: Callable[[], nn.Module]
    data: Callable[[int, torch.Generator], Dataset[Any]]
    by_hand: Callable[[nn.Module, Batch, Tensor, Draws], Found]


def cases() -> Iterator[tuple[str, Case]]:
    """By name, the smaller ones of a modality first."""
    reading = partial(by_hand.text, embedding="embedding")
    yield "LSTM", Case("text", lambda: text.Recurrent(nn.LSTM), text.one_decoy, reading)
    if importlib.util.find_spec("transformers"):
        size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        layer = "model.bert.embeddings.word_embeddings"
        with_mask = partial(by_hand.bert, embedding=layer)
        yield "HF BERT", Case("text", lambda: text.HuggingFace("Bert", **size), text.Mappings, with_mask)
    yield "MLP, BatchNorm", Case("table", lambda: Net(tabular.mlp(norm=True)), tabular.classes, by_hand.table)
    convolved = partial(by_hand.series, layer="net.4")
    yield "1-D CNN", Case("series", lambda: Net(series.cnn()), series.windows, convolved)
    yield "GRU", Case("series", lambda: series.Recurrent(nn.GRU), series.times_first, by_hand.series)
    yield "2-D CNN", Case("image", lambda: Net(images.cnn()), images.squares, partial(by_hand.image, layer="net.7"))
    bands = volumes.planted((5, 24, 24), volumes.FIELD)
    yield "2-D CNN, 5 bands", Case("bands", lambda: Net(volumes.cnn2d(5)), bands, partial(by_hand.image, layer="net.6"))
    scans, clips = volumes.planted((1, 12, 16, 12), volumes.LESION), volumes.planted((8, 3, 16, 16), volumes.EVENT)
    yield "3-D CNN", Case("volume", lambda: Net(volumes.cnn3d()), scans, partial(by_hand.volume, layer="net.6"))
    yield "2-D CNN and LSTM", Case("video", volumes.Frames, clips, partial(by_hand.frames, layer="cnn.6"))
    segmented = partial(by_hand.dense, layer="net.bottleneck")
    yield "U-Net", Case("segmentation", lambda: Net(dense.UNet(3, 3)), dense.colored, segmented)
    pairs, shared = volumes.pairs((1, 20, 20), volumes.PATCH, 0), partial(by_hand.siamese, layer="encoder.6")
    yield "siamese CNN", Case("two images", volumes.Siamese, pairs, shared)


def smooth() -> nn.Module:
    """A segmentation network without kinks, along which a path is integrated exactly."""
    layers = (nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 8, 5, padding=2), nn.Tanh())
    return Net(nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1)))


CASES = dict(cases())
SMOOTH = replace(CASES["U-Net"], make=smooth)


def prepared(case: Case, samples: int = SAMPLES, steps: int = 20) -> tuple[nn.Module, Batch, Tensor]:
    """The trained network, and the inputs and labels of samples that it did not see."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = case.make()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(steps):
            data = case.data(32, generator)
            batch = default_collate([data[i] for i in range(32)])
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()  # type: ignore[operator]
            optimizer.step()
    data = case.data(samples, generator)
    batch = default_collate([data[i] for i in range(samples)])
    if isinstance(batch, dict):
        return model.eval(), batch, batch.pop("labels")
    *inputs, labels = batch
    return model.eval(), inputs[0] if len(inputs) == 1 else tuple(inputs), labels


def drawn(report: Report, case: Case) -> Draws:
    """What the explanation of a report has drawn."""
    assert report.probe is not None
    inputs, modalities = as_tuple(report.probe.inputs), report.probe.modalities
    x, ids = inputs[0], torch.arange(len(inputs[0]))
    samples = Samples(inputs, inputs, (), ids, torch.zeros_like(ids))
    draws, removed = KeyedDraws(0), []
    for index in range(REMOVALS):
        at = torch.full_like(ids, index)
        if all(modality.grid(x) for x, modality in zip(inputs, modalities, strict=True)):
            square = partial(draws.uniform, "square", samples, at)
            regions = tuple(kind.region(x, None, square) for x, kind in zip(inputs, modalities, strict=True))
            removed.append(whole(regions).bool())
        else:
            removed.append(half(SimpleNamespace(draws=draws), samples, at, [(x, modalities[0])])[0])  # type: ignore[arg-type]
    # Ids stay, and what their embedding returns moves.
    layer = getattr(case.by_hand, "keywords", {}).get("embedding")
    found: dict[int | str, Tensor] = dict(enumerate(inputs))
    if layer is not None:
        found = {layer: as_tuple(report.attributions["ig"])[0]}
    moved = []
    for index in range(MOVES):
        at = torch.full_like(ids, index)
        parts = [draws.uniform(f"sensitivity/{key}", samples, at, exact(value)) for key, value in found.items()]
        moved.append(whole(tuple(parts)))
    return Draws(torch.stack(removed, 1), torch.stack(moved, 1))


def whole(parts: Attribution) -> Tensor:
    """Those of several inputs side by side."""
    return torch.cat(as_tuple(parts), 1)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest value; infinite if the shapes are others."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())


def differences(
    case: Case, model: nn.Module, batch: Batch, labels: Tensor
) -> tuple[dict[str, float], dict[str, float]]:
    """Those of each map and of each score; infinite where one side has none."""
    report = explain(model, Probe(batch, labels))
    found = case.by_hand(model, batch, labels, drawn(report, case))
    ours = {name: whole(value) for name, value in report.attributions.items()}
    maps = {name: distance(ours[name], found.maps[name]) for name in ours if name in found.maps}
    maps |= dict.fromkeys(ours.keys() ^ found.maps.keys(), float("inf"))
    # What its authors define; the other scores of infidelity are from the same draws.
    mine = {f"{k}/{name}": v for k in METRICS for name, v in report.scores.get(k, {}).items()}
    theirs = {f"{k}/{name}": v for k, by_method in found.scores.items() for name, v in by_method.items()}
    scores = {key: distance(mine[key], theirs[key]) for key in mine if key in theirs}
    scores |= dict.fromkeys(mine.keys() ^ theirs.keys(), float("inf"))
    return maps, scores


def doubled(model: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
    """Both in float64, except for ids."""
    return copy.deepcopy(model).double(), tree_map_only(
        Tensor, lambda x: x.double() if x.is_floating_point() else x, batch
    )


def monitored(model: nn.Module, probe: Probe, limit: int = AUTO_LIMIT) -> Callable[[], Report]:
    """What a monitor does at the end of an epoch, after its checks before the training."""
    probe = bound(probe, signature_of(model, None), warn_or_log)
    asked = Explainer(
        build_methods(None),
        build_metrics(None, True),
        limit=limit,
        auto_limit=limit == AUTO_LIMIT,
        default_methods=True,
        default_metrics=True,
    )
    ready = asked.check(model, probe)
    return lambda: ready.explain(model, probe)


def line(name: str, repeat: int) -> tuple[list[str], list[str]]:
    """The cells of a network in the table, and what differs."""
    case = CASES[name]
    model, batch, labels = prepared(case)
    maps, _ = differences(case, model, batch, labels)
    maps64, scores = differences(case, *doubled(model, batch), labels)
    probe = Probe(batch, labels)
    draws = drawn(explain(model, probe), case)
    sides: dict[str, Callable[[], object]] = {
        "hand": lambda: case.by_hand(model, batch, labels, draws),
        "explain": lambda: explain(model, probe),
        "monitor": monitored(model, probe),
        "as wide": monitored(model, probe, SAMPLES * by_hand.STEPS),
    }
    sent = {side: samples_sent(model, sides[side]) / len(labels) for side in ("hand", "monitor")}
    times = in_turn(sides, repeat)
    medians = [f"{statistics.median(times[side]):.3f}" for side in ("hand", "explain", "monitor")]
    ratios = [f"{median_ratio(times[side], times['hand']):.2f}" for side in ("explain", "monitor", "as wide")]
    largest = [f"{max(part.values()):.0e}" for part in (maps, maps64, scores)]
    what = {f"{name}, map {k}": v for k, v in maps.items()} | {f"{name}, float64 map {k}": v for k, v in maps64.items()}
    what |= {f"{name}, {k}": v for k, v in scores.items()}
    cells = [case.modality, name, ", ".join(maps), *largest, *(f"{v:.0f}" for v in sent.values()), *medians, *ratios]
    return cells, [f"{key}: {value:.1e}" for key, value in what.items() if not value <= EQUAL]


def regions(case: Case) -> dict[str, tuple[float, float]]:
    """How far a map of a segmentation is from complete, and the same relative to the change, with each region."""
    model, batch, labels = prepared(case, steps=100)
    model, x = doubled(model, batch)
    x, labels = x[:FEW], labels[:FEW]
    classes = labels.flatten(1).amax(1)
    held, moving = by_hand.frozen(model, x, classes, labels), by_hand.moving(model, classes)
    ours = explain(model, Probe(x, labels), {"ig": m.IntegratedGradients(n_steps=FINE)}, [])
    found = {"frozen": by_hand.incompleteness(held, x, as_tuple(ours.attributions["ig"])[0])}
    for name, f in (("frozen, Captum", held), ("moving, Captum", moving)):
        by_captum = ca.IntegratedGradients(f).attribute(x, target=0, n_steps=FINE, internal_batch_size=256)
        found[name] = by_hand.incompleteness(f, x, by_captum)
    return found


def main() -> int:
    made = parser(__doc__, repeat=5)
    made.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help="networks by name")
    chosen, failed = start(made), []
    columns = ("modality", "network", "methods", "maps", "maps 64", "scores 64", "evaluations by hand", "monitor")
    columns += ("seconds by hand", "explain()", "monitor", "explain() / hand", "monitor / hand")
    columns += (f"monitor, {SAMPLES * by_hand.STEPS} / hand",)
    shown = table(f"The default explanation of {SAMPLES} samples, and the same by hand", *columns)
    for name in chosen.only or list(CASES):
        cells, wrong = line(name, chosen.repeat)
        shown.add_row(*cells)
        failed += wrong
    beside = table("Beside others, in float64", "ours", "theirs", "difference")
    for ours, theirs, difference in peers(prepared(CASES["MLP, BatchNorm"]), prepared(CASES["LSTM"])):
        beside.add_row(ours, theirs, f"{difference:.0e}")
        failed += [] if difference <= EQUAL else [f"{ours}: {difference:.1e}"]
    missed = table(f"|sum of ig - change of the output|, {FINE} steps", "network", "region", "largest", "relative")
    for name, case in {"U-Net": CASES["U-Net"], "smooth": SMOOTH}.items():
        found = regions(case)
        for region, values in found.items():
            missed.add_row(name, region, *(f"{value:.1e}" for value in values))
        relative = found["frozen"][1]
        failed += [f"{name}, frozen region: {relative:.1e}"] if relative > COMPLETE else []
    console = Console(width=200)
    console.print(shown, beside, missed)
    console.print(f"above {EQUAL:.0e}: {'; '.join(failed)}" if failed else f"all within {EQUAL:.0e}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
