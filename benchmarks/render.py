"""Times the drawing of pictures: pages and composites of many samples against one Captum figure per sample.

144 three-panel pictures (9 methods x 16 samples of 3 x 32 x 32) with titles and color bars, drawn by
``lightning_explain.render.figure.draw`` (40 pages of 710 x 430 pixels: an overview and nine methods, four samples each), by
``lightning_explain.render.composite.composite`` (9 tall pictures, about 600 x 136 pixels per sample), and by Captum's
``visualize_image_attr_multiple`` (144 figures of its default size, 800 x 600 pixels).

    python benchmarks/render.py
    python benchmarks/render.py --ours
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable

import matplotlib as mpl

mpl.use("Agg")

import torch
from captum.attr import visualization
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from lightning_explain.core.png import to_png
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.report import Picture, Report
from lightning_explain.render.composite import composite
from lightning_explain.render.figure import draw
from lightning_explain.render.options import Options

METHODS, SAMPLES, RUNS = 9, 16, 5
Draw = Callable[[Report, Probe, Options], dict[str, Picture]]
KINDS = ["original_image", "heat_map", "blended_heat_map"]


def example() -> tuple[Report, Probe]:
    """Random maps of random images."""
    torch.manual_seed(0)
    outputs, labels = torch.randn(SAMPLES, 10), torch.arange(SAMPLES) % 10
    inputs = torch.rand(SAMPLES, 3, 32, 32)
    report = Report(
        attributions={f"method {i}": torch.randn_like(inputs) for i in range(METHODS)},
        scores={},
        standard_errors={},
        outputs=outputs,
        predictions=outputs.argmax(1),
        targets=labels,
        ids=torch.arange(SAMPLES),
    )
    return report, Probe(inputs, targets=labels, class_names=[f"class {i}" for i in range(10)])


def ours(report: Report, probe: Probe, encode: bool, drawing: Draw = draw) -> int:
    pictures = drawing(report, probe, Options())
    for picture in pictures.values() if encode else ():
        to_png(picture, {})
    return len(pictures)


def captum(report: Report, probe: Probe, finish: Callable[[Figure], None]) -> None:
    for name, found in report.attributions.items():
        for sample, (attribution, image) in enumerate(zip(as_tuple(found)[0], as_tuple(probe.inputs)[0], strict=True)):
            figure, _ = visualization.visualize_image_attr_multiple(
                _channels_last(attribution),
                _channels_last(image),
                methods=KINDS,
                signs=["all"] * len(KINDS),
                titles=[f"{name}: label {int(report.targets[sample])}"] * len(KINDS),
                show_colorbar=True,
                use_pyplot=False,
            )
            finish(figure)


def _channels_last(image: Tensor) -> object:
    return image.permute(1, 2, 0).numpy()


def _pixels(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()


def _png(figure: Figure) -> None:
    figure.savefig(io.BytesIO(), format="png")


def median_seconds(action: Callable[[], object], runs: int) -> float:
    """Median wall time."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    # Captum's figures use one thread, and a second one gains nothing on panels this small.
    torch.set_num_threads(1)
    report, probe = example()
    # An untimed run first, so that fonts and color tables are loaded on both sides.
    first = Report(**{**vars(report), "attributions": {"method 0": report.attributions["method 0"]}})
    ours(first, probe, encode=True)
    captum(first, probe, _png)

    took = [median_seconds(lambda encode=encode: ours(report, probe, encode), RUNS) for encode in (False, True)]
    tall = [
        median_seconds(lambda encode=encode: ours(report, probe, encode, composite), RUNS) for encode in (False, True)
    ]
    for title, (drawn, encoded), count in (
        ("A page of 4 samples", took, ours(report, probe, encode=False)),
        (f"A method's pages of {SAMPLES} samples", took, METHODS + 1),
        (f"A composite picture of {SAMPLES} samples", tall, METHODS),
    ):
        print(f"{title}: {1000 * drawn / count:.1f} ms drawn, {1000 * encoded / count:.1f} ms with PNG.")
    if "--ours" in sys.argv:
        return
    built = median_seconds(lambda: captum(report, probe, lambda figure: None), 1)
    rasterized = median_seconds(lambda: captum(report, probe, _pixels), 1)
    saved = median_seconds(lambda: captum(report, probe, _png), 1)

    print(
        f"{METHODS * SAMPLES} three-panel pictures; ours: pages, median of {RUNS} runs; Captum: one run over all of them."
    )
    print(f"{'':44}{'ours':>9}{'Captum':>9}{'ratio':>8}")
    for title, mine, theirs in (
        ("pixels; Captum only builds the figures", took[0], built),
        ("pixels; Captum draws the figures", took[0], rasterized),
        ("PNG (ours: a file for each page)", took[1], saved),
    ):
        print(f"{title:44}{mine:8.3f}s{theirs:8.2f}s{theirs / mine:7.0f}x")


if __name__ == "__main__":
    main()
