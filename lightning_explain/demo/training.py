"""Takes an output folder, trains on a demo's data with the monitor, and prints what the network relies on."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from rich.console import Console
from rich.table import Table

from lightning_explain.core.probe import Probe, as_tuple, flat
from lightning_explain.core.report import Report
from lightning_explain.demo.epochs import METHOD, Training, write_epochs
from lightning_explain.demo.shortcut import Demo, ShortcutData
from lightning_explain.modalities import of_probe
from lightning_explain.modalities.placement import arrange, onto
from lightning_explain.monitor.callback import ExplanationMonitor
from lightning_explain.render.composite import composite
from lightning_explain.render.options import Options
from lightning_explain.report.page import write_page
from lightning_explain.store.files import replacing
from lightning_explain.store.report_files import load_reports

MODALITIES = {"image": "digits", "text": "text", "tabular": "tabular", "series": "series"}
"""The file of each demo."""
VARIANTS = {False: "marked", True: "clean"}
SAMPLES = 16


def run(output: Path, epochs: int | None = None, clean: bool | None = None, modality: str = "image") -> None:
    """Trains, writes TensorBoard logs and pictures, and prints a table of all variants found in the folder.

    Args:
        output: Folder of all runs; those of other modalities than images have a folder of their own in it.
        epochs: Passes over the training samples; ``None`` for the demo's own.
        clean: Whether to train without the shortcut, or with it; ``None`` for both, one after the other.
        modality: ``"image"``, ``"text"``, ``"tabular"`` or ``"series"``.
    """
    demo: Demo = importlib.import_module(f"lightning_explain.demo.{MODALITIES[modality]}").demo()
    folder = output if modality == "image" else output / modality
    pictures = []
    for variant in VARIANTS if clean is None else (clean,):
        pictures += _train(demo, folder, epochs or demo.epochs, variant)
    _print_summary(demo, modality, output, folder, pictures)


def _train(demo: Demo, folder: Path, epochs: int, clean: bool) -> list[Path]:
    """Trains one variant; returns the paths of its pictures."""
    L.seed_everything(0, workers=True)
    data = demo.data(marked=not clean)
    monitor = ExplanationMonitor(
        probe=data.probe_samples(SAMPLES),
        target="predicted",
        at_start=True,
        class_names=data.class_names,
        **demo.monitor,
    )
    logger = TensorBoardLogger(folder, name=VARIANTS[clean])
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logger, callbacks=[monitor], enable_model_summary=False
    )
    model = demo.model()
    trainer.fit(model, data)
    report = monitor.last_report
    assert report is not None
    assert report.probe is not None
    found = {"with": data.accuracy(model, "right"), "without": data.accuracy(model, "none")}
    with replacing(Path(logger.log_dir) / "accuracy.json") as temporary:
        temporary.write_text(json.dumps(found))
    options = Options(normalization=demo.monitor.get("normalization"), class_names=data.class_names, max_rows=6)
    return _save_pictures(report, report.probe, options, Path(logger.log_dir) / "pictures")


def _save_pictures(report: Report, probe: Probe, options: Options, folder: Path) -> list[Path]:
    paths = []
    for method, picture in composite(report, probe, options).items():
        paths.append(folder / f"{method}.png")
        with replacing(paths[-1]) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    return paths


def _print_summary(demo: Demo, modality: str, output: Path, folder: Path, pictures: Sequence[Path]) -> None:
    console = Console()
    runs = {name: run for name in VARIANTS.values() if (run := _last_run(folder / name)) is not None}
    console.print(_table(demo, runs))
    console.print("pictures: ", *(str(path) for path in pictures), sep="\n  ", soft_wrap=True)
    console.print(f"dashboard: tensorboard --logdir {folder} --samples_per_plugin images=1000", soft_wrap=True)
    _write_page(console, folder)
    _write_epochs(console, demo, folder)
    for name in {*VARIANTS.values()} - {*runs}:
        more = "" if modality == "image" else f" --modality {modality}"
        console.print(f"for comparison: lightning-explain demo{more} --{name} --output {output}", soft_wrap=True)


def _write_page(console: Console, folder: Path) -> None:
    """Writes the page of the latest run of each variant, and prints its path, or what to install for it."""
    found = [path for name in VARIANTS.values() if (path := _latest(folder / name)) is not None]
    try:
        console.print(f"page: {write_page(found, folder / 'page.html')}", soft_wrap=True, highlight=False)
    except ImportError as error:
        console.print(str(error), soft_wrap=True, highlight=False, markup=False)


def _write_epochs(console: Console, demo: Demo, folder: Path) -> None:
    """Writes the moving picture of the latest run of each variant, if there are both, and prints its path."""
    found = {name: run for name in VARIANTS.values() if (run := _latest(folder / name)) is not None}
    if len(found) < len(VARIANTS):
        return
    probe = demo.data().probe_samples(SAMPLES)
    reports = {name: load_reports(run) for name, run in found.items()}
    trainings = {
        name: Training(each, [share_on(report, METHOD, probe) for report in each]) for name, each in reports.items()
    }
    path = write_epochs(trainings, demo.unit, folder / "epochs.gif")
    console.print(f"epoch by epoch: {path}", soft_wrap=True, highlight=False)


def _latest(folder: Path) -> Path | None:
    """The reports of the latest run in the folder."""
    runs = sorted(folder.glob("version_*/explain"), key=lambda path: int(path.parts[-2].split("_")[1]))
    return runs[-1] if runs else None


def _last_run(folder: Path) -> tuple[Report, dict[str, float]] | None:
    """The report of the last epoch, and the accuracies, of the latest run in the folder."""
    run = _latest(folder)
    if run is None:
        return None
    accuracy = run.parent / "accuracy.json"
    return load_reports(run)[-1], json.loads(accuracy.read_text()) if accuracy.exists() else {}


def _table(demo: Demo, runs: dict[str, tuple[Report, dict[str, float]]]) -> Table:
    data: ShortcutData = demo.data()
    probe = data.probe_samples(SAMPLES)
    assert probe.targets is not None
    assert probe.masks is not None
    share = f"{probe.masks.float().mean():.1%}"
    table = Table("trained on", title=demo.title, caption=f"The {demo.unit} is {share} of the input.")
    for name in runs:
        table.add_column(f"{name} data", justify="right")
    for key, what in {"with": f"right {demo.unit}", "without": f"no help from the {demo.unit}"}.items():
        table.add_row(f"accuracy, {what}", *(f"{found.get(key, float('nan')):.0%}" for _, found in runs.values()))
    reports = [report for report, _ in runs.values()]
    for what, classes in {demo.truth: probe.targets, demo.shortcut: data.wrong_class(probe.targets)}.items():
        hits = [int((report.predictions == classes).sum()) for report in reports]
        table.add_row(f"predicts {what}", *(f"{count} of {len(classes)}" for count in hits))
    for method in reports[0].attributions:
        shares = (share_on(report, method, probe) for report in reports)
        table.add_row(f"share on the {demo.unit}: {method}", *map("{:.0%}".format, shares))
    for score in ("infidelity_relative", "sensitivity_max"):
        for method in reports[0].scores.get(score, {}):
            means = (float(report.scores[score][method].nanmean()) for report in reports)
            table.add_row(f"{score}: {method}", *map("{:.3f}".format, means))
    return table


def share_on(report: Report, method: str, probe: Probe) -> float:
    """The mean share, in 0..1, of the absolute attribution by unit that lies in the probe's masks; NaN without a place on the input."""
    known = report.probe or probe
    inputs, kinds = as_tuple(known.inputs), of_probe(known)
    found = report.maps.get(method, as_tuple(report.attributions[method]))
    arranged = arrange(found, inputs, kinds) if found else None
    if arranged is None or probe.masks is None:
        return float("nan")
    sizes = onto(arranged, inputs, kinds)[0]
    units = kinds[0].by_unit(sizes).expand(kinds[0].units(inputs[0])).abs()
    masks = flat(probe.masks)
    return float(torch.nanmean((flat(units) * masks).sum(1) / flat(units).sum(1)))
