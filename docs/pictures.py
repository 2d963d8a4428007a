"""Draws the picture of each method and metric for the reference: ``python docs/pictures.py [NAME ...]`` (all: about five minutes).

Methods explain why a pretrained network sees a cat (LRP, which has no rule for its layers, a digit). Metrics are curves over the
epochs of two trainings: on digits that carry a mark of their class, and on clean ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import tutorial_cat
from lightning_explain import ExplanationMonitor, Probe, Report, explain, load_reports, methods, metrics
from lightning_explain import methods as m
from lightning_explain.core.naming import snake_case
from lightning_explain.demo import digits, tabular
from lightning_explain.render.composite import composite
from lightning_explain.render.options import Options

IMAGES = Path(__file__).parent / "images"
PANELS = [("original_image", "all"), ("heat_map", "all"), ("blended_heat_map", "all")]
EPOCHS = 4
# Where the defaults of a class would take minutes, or need something.
SETTINGS: dict[str, Any] = {
    "n_steps": 32,
    "n_samples": 100,
    "nt_samples": 10,
    "sliding_window_shapes": (3, 24, 24),
    "strides": (3, 12, 12),
    "feature_mask": {"superpixels": 60},
    "perturbations_per_eval": 8,
    "stdevs": 0.2,
    "neuron_selector": None,
    "layer": "_conv_head",
    "baselines": "blur",
}
OF_A_CLASS: dict[str, dict[str, Any]] = {
    "ShapleyValues": {"feature_mask": {"grid": 96}},
    "ShapleyValueSampling": {"n_samples": 10},
    "FeatureAblation": {"feature_mask": {"superpixels": 100}},
    "NeuronFeatureAblation": {"feature_mask": {"superpixels": 100}},
    "LayerFeatureAblation": {"layer_mask": torch.arange(54).reshape(1, 1, 6, 9)},
    "FeaturePermutation": {"feature_mask": {"grid": 24}},
    "Saliency": {"abs": False},
    "NoiseTunnel": {"attribution_method": m.IntegratedGradients(n_steps=16, baselines="blur")},
}


def method(name: str) -> Any:
    """The method with settings that make a good picture of the cat."""
    cls: Any = getattr(methods, name)
    known = {field.name for field in fields(cls)}
    given = {key: value for key, value in SETTINGS.items() if key in known and key != "n_samples"}
    if "Kernel" in name or name == "Lime":
        given["n_samples"] = 300
    return cls(**{**given, **OF_A_CLASS.get(name, {})})


def draw_method(name: str) -> None:
    """Writes the picture of one method."""
    if name == "AttentionRollout":
        report, probe, options = _transformer(name)
    elif any(
        part in name for part in ("LRP", "Guided", "Deconvolution")
    ):  # for which that network has no rule, or no ReLU
        report, probe, options = _digit(name)
    else:
        report, probe, options = _cat(name)
    picture = Image.fromarray(composite(report, probe, options)[snake_case(name)])
    picture.thumbnail((840, 840))
    picture.save(IMAGES / "methods" / f"{name}.jpg", quality=75, optimize=True)


def _cat(name: str) -> tuple[Report, Probe, Options]:
    network = tutorial_cat.efficientnet_lite0()
    probe = tutorial_cat.cat(network)
    if name == "FeaturePermutation":  # which takes features of another sample
        image = torch.as_tensor(probe.inputs)
        probe = Probe(torch.cat([image, image.flip(-1)]), class_names=tutorial_cat.CLASS_NAMES)
    size = tutorial_cat.SIZE[0]
    options = Options(panels=PANELS, normalization=network.normalization, min_pixels=size, max_rows=1, outlier_perc=5)
    given = {snake_case(name): method(name)}
    report = explain(network.module, probe, given, metrics=[], target="predicted", normalization=network.normalization)
    return report, probe, options


def _digit(name: str) -> tuple[Report, Probe, Options]:
    data, model = digits.MarkedDigits(marked=False), digits.DigitsModel()
    L.seed_everything(0)
    L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(model, data)
    probe = data.probe_samples(1)
    options = Options(panels=PANELS, normalization=((digits.MEAN,), (digits.STD,)), min_pixels=192)
    given = {snake_case(name): getattr(methods, name)()}
    return explain(model, probe, given, metrics=[]), probe, options


class _DigitsTransformer(digits.DigitsModel):
    """A ViT on digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = VisionTransformer(28, 4, 2, 4, 32, 64, num_classes=10)
        self.net.conv_proj = nn.Conv2d(1, 32, 4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the ViT says."""
        found: torch.Tensor = self.net(images)
        return found


def _transformer(name: str) -> tuple[Report, Probe, Options]:
    L.seed_everything(0)
    data, model = digits.MarkedDigits(marked=False), _DigitsTransformer()
    L.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False).fit(model, data)
    probe = data.probe_samples(1)
    shown = [("original_image", "all"), *((kind, "positive") for kind in ("heat_map", "blended_heat_map", "channels"))]
    options = Options(panels=shown, normalization=((digits.MEAN,), (digits.STD,)), min_pixels=192)
    given = {snake_case(name): m.AttentionRollout(attr_head_summation=False)}
    return explain(model, probe, given, metrics=[]), probe, options


def draw_metrics(names: Iterable[str]) -> None:
    """Writes the pictures of metrics: their curves over both trainings."""
    chosen = {snake_case(name): getattr(metrics, name)() for name in names if name not in ("Importance", "Share")}
    with TemporaryDirectory() as folder:
        runs = {which: _trained(which == "marked", chosen, Path(folder) / which) for which in ("marked", "clean")}
    for name, metric in chosen.items():
        _curves(type(metric).__name__, name, metric.suffixes, runs)


def draw_importance() -> None:
    """Writes the picture of Importance: the strongest columns of the demo's table over a training on a leak."""
    demo = tabular.demo()
    with TemporaryDirectory() as folder:
        data = demo.data(marked=True)
        given = {
            **demo.monitor,
            "methods": {"ig": m.IntegratedGradients(n_steps=16)},
            "metrics": [metrics.Importance()],
        }
        monitor = ExplanationMonitor(probe=data.probe_samples(16), at_start=True, **given)
        quiet = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder}
        L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[monitor], **quiet).fit(demo.model(), data)
        reports = load_reports(Path(folder) / "explain")
    _shares("Importance", reports)


class _ImageAndTable(L.LightningModule):
    """Learns from an image and two numbers, of which the second one gives the class away."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(64 + 2, 2)

    def forward(self, image: torch.Tensor, meta: torch.Tensor) -> torch.Tensor:
        """The logits."""
        found: torch.Tensor = self.net(torch.cat([image.flatten(1), meta], 1))
        return found

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss of one batch."""
        return torch.nn.functional.cross_entropy(self(batch["image"], batch["meta"]), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def draw_share() -> None:
    """Writes the picture of Share: an image and a table of which a network learns that the table is enough."""
    L.seed_everything(0)
    labels, images = torch.randint(2, (512,)), torch.randn(512, 1, 8, 8)
    meta = torch.stack([torch.randn(512), 4.0 * labels - 2], 1)
    data = [{"image": i, "meta": t, "label": y} for i, t, y in zip(images, meta, labels, strict=True)]
    with TemporaryDirectory() as folder:
        given = {"methods": {"ig": m.IntegratedGradients(n_steps=16)}, "metrics": [metrics.Share()], "at_start": True}
        quiet = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder}
        trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[ExplanationMonitor(**given)], **quiet)
        trainer.fit(_ImageAndTable(), torch.utils.data.DataLoader(data, 32))
        _shares("Share", load_reports(Path(folder) / "explain"))


def _shares(cls: str, reports: list[Report]) -> None:
    """Writes the curves of the largest scores of a metric that has one for each feature or input."""
    last = {name: float(by["ig"].nanmean()) for name, by in reports[-1].scores.items()}
    figure = Figure(figsize=(6.5, 2.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name in sorted(last, key=lambda score: -last[score])[:6]:
        points = [float(report.scores[name]["ig"].nanmean()) for report in reports]
        axes.plot(points, marker=".", label=name.removeprefix(f"{cls.lower()}_"))
    axes.set(title=cls.lower(), xlabel="epoch", xticks=range(len(reports)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, bbox_to_anchor=(1, 1))
    figure.savefig(IMAGES / "metrics" / f"{cls}.png")


def _trained(marked: bool, chosen: dict[str, Any], folder: Path) -> list[Report]:
    L.seed_everything(0)
    data = digits.MarkedDigits(marked=marked)
    monitor = ExplanationMonitor(
        methods={
            "saliency": m.Saliency(abs=False),
            "ig": m.IntegratedGradients(n_steps=16, baselines="black"),
            "cam": m.LayerGradCam(layer="features"),
        },
        metrics=chosen,
        probe=data.probe_samples(16),
        target="predicted",
        at_start=True,
        normalization=((digits.MEAN,), (digits.STD,)),
    )
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[monitor]
    )
    trainer.fit(digits.DigitsModel(), data)
    return load_reports(folder / "explain")


def _curves(cls: str, name: str, suffixes: Iterable[str], runs: dict[str, list[Report]]) -> None:
    keys = [f"{name}_{suffix}" if suffix else name for suffix in suffixes][:2]
    figure = Figure(figsize=(4.2 * len(keys), 2.9), dpi=110, layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for which, style in (("marked", "-"), ("clean", ":")):
            for number, of in enumerate(runs[which][-1].attributions):
                points = [
                    (
                        0 if report.epoch is None or report.step == 0 else report.epoch + 1,
                        report.scalars()[f"{key}/{of}"],
                    )
                    for report in runs[which]
                    if f"{key}/{of}" in report.scalars()
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=f"C{number}", marker=".", label=f"{of}, {which}")
        axes.set(title=key, xlabel="epoch", xticks=range(EPOCHS + 1))
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    figure.savefig(IMAGES / "metrics" / f"{cls}.png")


def main(names: list[str]) -> None:
    """Draws those that are named, or all."""
    for folder in ("methods", "metrics"):
        (IMAGES / folder).mkdir(exist_ok=True)
    for name in names or methods.__all__:
        if name in methods.__all__:
            draw_method(name)
            print(name)
    chosen = [name for name in names or metrics.__all__ if name in metrics.__all__]
    own = {"Importance": draw_importance, "Share": draw_share}
    if set(chosen) - set(own):
        draw_metrics(chosen)
    for name in own:
        if name in chosen:
            own[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
