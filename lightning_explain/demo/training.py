"""Takes an output folder, trains on the demo's digits with the monitor, and prints what the network relies on."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from rich.console import Console
from rich.table import Table

from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.demo.digits import CLASS_NAMES, MEAN, STD, DigitsModel, MarkedDigits, wrong_class
from lightning_explain.monitor.callback import ExplanationMonitor
from lightning_explain.render.composite import composite
from lightning_explain.render.options import Options
from lightning_explain.store.files import replacing
from lightning_explain.store.report_files import load_reports

VARIANTS = {False: "marked", True: "clean"}


def run(output: Path, epochs: int = 4, clean: bool = False) -> None:
    """Trains one variant, writes TensorBoard logs and pictures, and prints a table of all variants found in ``output``.

    Args:
        output: Folder of all runs.
        epochs: Passes over the 4000 training digits.
        clean: Whether to train without the mark.
    """
    L.seed_everything(0, workers=True)
    data = MarkedDigits(marked=not clean)
    probe = data.probe_samples(16)
    monitor = ExplanationMonitor(
        methods={
            "saliency": m.Saliency(abs=False),
            "ig": m.IntegratedGradients(n_steps=16, baselines="black"),
            "occlusion": m.Occlusion((1, 4, 4), strides=(1, 4, 4), baselines="black"),
        },
        metrics=[q.RelevanceMass(), q.Infidelity(), q.SensitivityMax()],
        probe=probe,
        target="predicted",
        at_start=True,
        normalization=((MEAN,), (STD,)),
        class_names=CLASS_NAMES,
    )
    logger = TensorBoardLogger(output, name=VARIANTS[clean])
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=logger, callbacks=[monitor], enable_model_summary=False
    )
    trainer.fit(DigitsModel(), data)
    assert monitor.last_report is not None
    pictures = _save_pictures(monitor.last_report, probe, Path(logger.log_dir) / "pictures")
    _print_summary(output, probe, pictures)


def _save_pictures(report: Report, probe: Probe, folder: Path) -> list[Path]:
    options = Options(normalization=((MEAN,), (STD,)), class_names=CLASS_NAMES, max_rows=6)
    paths = []
    for method, picture in composite(report, probe, options).items():
        paths.append(folder / f"{method}.png")
        with replacing(paths[-1]) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    return paths


def _print_summary(output: Path, probe: Probe, pictures: list[Path]) -> None:
    console = Console()
    reports = {name: found for name in VARIANTS.values() if (found := _last_report(output / name)) is not None}
    console.print(_table(reports, probe))
    console.print("pictures: ", *(str(path) for path in pictures), sep="\n  ", soft_wrap=True)
    console.print(f"dashboard: tensorboard --logdir {output} --samples_per_plugin images=1000", soft_wrap=True)
    for clean, name in VARIANTS.items():
        if name not in reports:
            flag = " --clean" if clean else ""
            console.print(f"for comparison: lightning-explain demo{flag} --output {output}", soft_wrap=True)


def _last_report(folder: Path) -> Report | None:
    """The report of the last epoch of the latest run in the folder."""
    runs = sorted(folder.glob("version_*/explain"), key=lambda path: int(path.parts[-2].split("_")[1]))
    return load_reports(runs[-1])[-1] if runs else None


def _table(reports: dict[str, Report], probe: Probe) -> Table:
    assert probe.targets is not None
    assert probe.masks is not None
    title = "What the network looks at, on digits that carry the mark of a wrong class"
    table = Table("trained on", title=title, caption=f"The mark is {probe.masks.float().mean():.0%} of the image.")
    for name in reports:
        table.add_column(f"{name} digits", justify="right")
    found = list(reports.values())
    for what, classes in {"the digit": probe.targets, "the mark's class": wrong_class(probe.targets)}.items():
        hits = [int((report.predictions == classes).sum()) for report in found]
        table.add_row(f"predicts {what}", *(f"{count} of {len(classes)}" for count in hits))
    for score, form in {"relevance_mass": ".0%", "infidelity_relative": ".3f", "sensitivity_max": ".3f"}.items():
        what = "relevance on the mark" if score == "relevance_mass" else score
        for method in found[0].attributions:
            means = (float(report.scores[score][method].nanmean()) for report in found)
            table.add_row(f"{what}: {method}", *(format(mean, form) for mean in means))
    return table
