"""What the inputs are is guessed in one place, and everything else asks: a modality of one's own is one class."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_explain
from lightning_explain import Modality, Probe, explain, modalities
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Arrangement
from lightning_explain.core.panels import Panel
from lightning_explain.render.bars import KINDS
from lightning_explain.render.composite import composite
from lightning_explain.render.figure import draw

OWN = (7, 200, 90)
PACKAGE = Path(lightning_explain.__file__).parent


class Series(Modality):
    """A series ``(N, C, T)``: its units are the times."""

    def units(self, x: Tensor) -> torch.Size:
        return x[:, :1].shape

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        return value if value.ndim == 3 else None

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        return F.interpolate(self.by_unit(placed), x.shape[-1], mode="linear")

    def region(self, x: Tensor, size: int | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
        length = size or x.shape[-1] // 4
        first = (draw(x.new_empty(len(x), 1)) * (x.shape[-1] - length + 1)).long()
        times = torch.arange(x.shape[-1])
        return ((times >= first) & (times < first + length))[:, None].to(x.dtype)

    def blurred(self, x: Tensor) -> Tensor:
        return x.mean(2, keepdim=True).expand_as(x)

    def panels(self, found: Any, inputs: Any, asked: Any) -> tuple[Panel, ...]:
        colors = torch.tensor(OWN, dtype=torch.uint8).expand(len(found[0]), 20, 64, 3)
        return Panel("by time", "profile", self.by_unit(found[0]).flatten(1)), Panel("of my own", "pixels", colors)


@pytest.fixture
def series() -> tuple[nn.Module, Probe]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30, 3))
    return net.eval(), Probe(torch.randn(3, 2, 64), torch.tensor([0, 1, 2]), modalities=Series())


METHODS = {
    "saliency": m.Saliency(abs=False),
    "cam": m.LayerGradCam("1"),
    "blur": m.IntegratedGradients(baselines="blur"),
}


def test_metrics_methods_and_baselines_ask_a_modality_of_ones_own(series: tuple[nn.Module, Probe]) -> None:
    model, probe = series
    metrics = {
        "windows": q.Infidelity("square", baselines="mean"),
        "deletion": q.Deletion(n_steps=200),
        "gini": q.Concentration(),
        "drift": q.Drift(),
    }
    earlier = explain(model, probe, METHODS, [])
    report = explain(model, probe, METHODS, metrics, history=[earlier])
    assert report.attributions["cam"].shape == (3, 1, 30)  # type: ignore[union-attr]
    assert all(set(report.scores[name]) == set(METHODS) for name in (*metrics, "drift_cosine_first") if name != "drift")
    assert report.scores["gini"]["saliency"].tolist() == pytest.approx(
        q.concentration.gini(report.attributions["saliency"].sum(1)).tolist()  # type: ignore[union-attr]
    )
    alone = explain(model, probe, {"cam": METHODS["cam"]}, {"deletion": metrics["deletion"]})
    assert alone.passes.forward == 3 * (1 + 1 + 63), "a step for each time"


def test_the_size_of_a_region_is_in_its_own_units(series: tuple[nn.Module, Probe]) -> None:
    model, probe = series
    whole = explain(model, probe, {"it": m.IntegratedGradients(n_steps=50)}, [q.Infidelity("square", size=64)])
    assert whole.scores["infidelity"]["it"].max() < 1e-6, "the whole series is removed, as the map predicts"


def test_panels_of_ones_own_are_drawn(series: tuple[nn.Module, Probe]) -> None:
    model, probe = series
    report = explain(model, probe, METHODS, [])
    pictures = composite(report, probe)
    of_times = KINDS["profile"](Panel("", "profile", report.attributions["saliency"].sum(1)))  # type: ignore[union-attr]
    for name in METHODS:
        assert (pictures[name] == OWN).all(-1).sum() == 3 * 20 * 64, name
    canvas, part = pictures["saliency"], of_times[0]
    starts = np.argwhere((canvas[: len(canvas) - len(part), : canvas.shape[1] - part.shape[1]] == part[0, 0]).all(-1))
    assert any(np.array_equal(canvas[y : y + len(part), x : x + part.shape[1]], part) for y, x in starts)


def test_a_panel_that_needs_pixels_is_refused_where_there_are_none(
    series: tuple[nn.Module, Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, probe = series
    monkeypatch.setattr(Series, "panels", lambda self, found, inputs, asked: (Panel("", "heat_map", found[0]),))
    report = explain(model, probe, {"it": m.Saliency()}, [])
    for drawing in (draw, composite):
        with pytest.raises(
            ValueError, match=r"'heat_map' needs an input with pixels; give 'bars', 'profile' or 'pixels'"
        ):
            drawing(report, probe)


def test_images_and_everything_else_are_guessed_by_their_rank() -> None:
    shapes = [(2, 5), (2, 3, 8), (2, 3, 8, 8), (2, 1, 4, 8, 8)]
    found = modalities.guess(tuple(torch.zeros(shape) for shape in shapes))
    assert [type(modality).__name__ for modality in found] == ["Tabular", "TimeSeries", "Image", "Volume"]


def test_nothing_but_the_guess_tells_an_image_by_its_rank() -> None:
    # A layer's map may be arranged for a convolution whatever the input is, and a detector's boxes are rectangles of images only; the
    # others are methods' own arguments.
    known = {
        "modalities/__init__.py": 1,
        "core/contracts.py": 1,
        "modalities/spectrogram.py": 1,
        "checks/default_layer.py": 2,
        "core/probe.py": 1,
        "methods/layer.py": 1,
        "report/figures.py": 1,
        "report/page.py": 1,
        "render/drawn.py": 1,
    }
    texts = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    found = {name: len(re.findall(r"\.ndim [!=]= 4", text)) for name, text in texts.items()}
    del found["modalities/image.py"], found["render/image.py"]
    assert {name: count for name, count in found.items() if count} == known
