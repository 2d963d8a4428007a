"""Measures the page of many runs: seconds to build it, its megabytes, and seconds until its slider answers in Chromium.

    python benchmarks/page.py [--runs 20] [--epochs 10] [--samples 16] [--size 64] [--maps mixed|noise]

Maps are those of three methods: gradients (noise), gradients times images, and squares of 8 x 8 pixels; with ``--maps noise`` all of
them are noise, which compresses worst.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from _measure import console, parser, start, table
from lightning_explain import Probe, Report
from lightning_explain import modalities as d
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.serialization import fingerprint
from lightning_explain.report.page import write_page
from lightning_explain.store.report_files import save_report
from lightning_explain.store.run_files import save_probe, save_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Tab, browser, chromium, tab

MOST_MEGABYTES = 40
METHODS = ("saliency", "ig", "occlusion")
DRAWN = "document.querySelectorAll('.run canvas[aria-label*=strongest]').length"


def maps(probe: Probe, kind: str, draws: torch.Generator) -> dict[str, Tensor]:
    """Maps like those of three methods, ``(N, 3, H, W)`` each."""
    images = probe.inputs
    assert isinstance(images, Tensor)
    noise = [torch.randn(images.shape, generator=draws) for _ in METHODS]
    if kind == "mixed":
        noise[1] = noise[1] * images
        squares = torch.randn(len(images), 1, images.shape[2] // 8, images.shape[3] // 8, generator=draws)
        noise[2] = squares.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(images.shape).contiguous()
    return dict(zip(METHODS, noise, strict=True))


def stored(root: Path, chosen: argparse.Namespace) -> list[Path]:
    """The folders of runs of the same samples, as monitors leave them behind."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(chosen.samples, 3, chosen.size // 8, chosen.size // 8, generator=draws)
    images = torch.nn.functional.interpolate(images, (chosen.size, chosen.size), mode="bicubic").clamp(0, 1)
    probe = Probe(images, torch.arange(chosen.samples) % 10, modalities=d.Image())
    own, found = fingerprint(probe), []
    for run in range(chosen.runs):
        folder = root / f"run {run:02d}" / "explain"
        info = RunInfo("explain", fingerprint=own, hyperparameters={"lr": 0.1 / (1 + run)})
        for epoch in range(chosen.epochs):
            scores = {name: torch.rand(chosen.samples, generator=draws) for name in METHODS}
            outputs = torch.randn(chosen.samples, 10, generator=draws)
            report = Report(
                maps(probe, chosen.maps, draws),
                {"infidelity_relative": scores, "sensitivity_max": scores},
                {"infidelity_relative": {name: 0.1 * values for name, values in scores.items()}},
                outputs,
                outputs.argmax(1),
                torch.arange(chosen.samples) % 10,
                probe.sample_ids,
                epoch=epoch,
                step=100 * (epoch + 1),
                fingerprint=own,
                logged={"val_loss": float(torch.rand((), generator=draws))},
                run=info,
            )
            save_report(report, folder)
        save_run(info, folder)
        save_probe(probe, folder)
        found.append(folder)
    return found


@contextmanager
def opened(page: Path, folder: Path) -> Iterator[Tab]:
    with browser(folder) as window, tab(window, "about:blank") as found:
        found.call("Page.navigate", url=page.as_uri())
        yield found


def answering(page: Path, folder: Path) -> tuple[float, float]:
    """Seconds from opening the page until its slider has moved the maps, and those that one step of it takes."""
    started = time.perf_counter()
    with opened(page, folder) as found:
        found.wait(f"document.readyState === 'complete' && {DRAWN} > 0", 300)
        moved = time.perf_counter()
        found.value(
            "(() => { const e = document.getElementById('moment'); e.value = 0; e.dispatchEvent(new Event('input')) })()"
        )
        found.wait(f"{DRAWN} > 0", 60)
        return time.perf_counter() - started, time.perf_counter() - moved


def main() -> None:
    arguments = parser(__doc__)
    for name, count in {"runs": 20, "epochs": 10, "samples": 16, "size": 64}.items():
        arguments.add_argument(f"--{name}", type=int, default=count, help=f"default: {count}")
    arguments.add_argument("--maps", choices=("mixed", "noise"), default="mixed")
    chosen = start(arguments)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Chromium may still write there.
        root = Path(folder)
        runs = stored(root, chosen)
        started = time.perf_counter()
        page = write_page(runs, root / "page.html")
        seconds, megabytes = time.perf_counter() - started, page.stat().st_size / 1e6
        first, step = answering(page, root / "chromium") if chromium() else (float("nan"),) * 2
    shown = table(
        "The page of many runs", "runs", "maps", "seconds to build", "MB", "slider answers after", "a step takes"
    )
    count = chosen.runs * chosen.epochs * chosen.samples * len(METHODS)
    shown.add_row(
        str(chosen.runs),
        f"{count:,} of {chosen.size}²",
        f"{seconds:.1f}",
        f"{megabytes:.1f}",
        f"{first:.1f} s",
        f"{step:.2f} s",
    )
    console.print(shown)
    if megabytes > MOST_MEGABYTES:
        raise SystemExit(f"The page has more than {MOST_MEGABYTES} MB.")


if __name__ == "__main__":
    main()
