"""Measures the peak of live tensors, which must not grow with steps and draws.

The bytes of tensors that are alive at once, counted as they are created and freed (``_measure.LiveBytes``), for this
package, for Captum's call with its default batches, and for one training step on as many samples as a pass may hold.
``--rss`` adds the growth of resident memory, each measured in a new process.

    python benchmarks/memory.py [--samples 16] [--largest 1000] [--rss]
    python benchmarks/memory.py --stored

``--stored`` measures instead how many bytes the file of one default explanation of 16 segmentations of 21 classes and 128 x 128 pixels has
beside its maps, and fails if these are more than 2 MB; the outputs of the model alone would be 22 MB.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from captum import attr as ca
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn
from torch.nn import functional as F

from _handwritten import explainers, perturb
from _measure import console, explainer, parser, peak_mib, start, table
from _setups.dense import UNet
from _workload import NOISE, images, probe, trained
from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.probe import as_tuple
from lightning_explain.explainer.registry import auto_limit
from lightning_explain.store.report_files import save_report

STEPS, DRAWS = (20, 100, 400), (5, 50)
PASS = 64
SEGMENTED, MOST_BESIDE_MAPS = (16, 21, 128, 128), 2e6

Action = Callable[[], object]


def training_step(model: nn.Module) -> Action:
    x, y = images(PASS, seed=3)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        model.zero_grad()

    return step


def sizes() -> Iterator[tuple[str, int]]:
    yield from (("integrated gradients, steps", n) for n in STEPS)
    yield from ((name, n) for name in ("NoiseTunnel, copies", "infidelity, draws", "sensitivity, draws") for n in DRAWS)
    yield "DeepLift", 1


def ours(name: str, n: int, model: nn.Module, samples: Probe) -> Action:
    methods: dict[str, Any] = {"saliency": m.Saliency(abs=False)}
    metrics: dict[str, Any] = {}
    if name.startswith("integrated"):
        methods = {"ig": m.IntegratedGradients(n_steps=n)}
    elif name.startswith("Noise"):
        methods = {"tunnel": m.NoiseTunnel(m.Saliency(abs=False), nt_samples=n, stdevs=NOISE)}
    elif name == "DeepLift":
        methods = {"deep_lift": m.DeepLift()}
    elif name.startswith("infidelity"):
        metrics = {"infidelity": q.Infidelity("gaussian", n)}
    else:
        metrics = {"sensitivity": q.SensitivityMax(n_perturb_samples=n)}
    return explainer(model, samples, methods, metrics, auto_limit(PASS))


def captum(name: str, n: int, model: nn.Module, samples: Probe) -> Action:
    x, y = samples.inputs, samples.targets
    assert isinstance(x, Tensor)
    saliency, explain = ca.Saliency(model), explainers(model)["saliency"]

    calls: dict[str, Action] = {
        "integrated gradients, steps": lambda: ca.IntegratedGradients(model).attribute(x, target=y, n_steps=n),
        "NoiseTunnel, copies": lambda: ca.NoiseTunnel(saliency).attribute(
            x, target=y, nt_samples=n, stdevs=NOISE, abs=False
        ),
        "DeepLift": lambda: ca.DeepLift(model).attribute(x, target=y),
        "infidelity, draws": lambda: infidelity(
            model, perturb, x, explain(x, target=y), target=y, n_perturb_samples=n, normalize=True
        ),
        "sensitivity, draws": lambda: sensitivity_max(explain, x, n_perturb_samples=n, target=y),
    }
    return calls[name]


def _resident(kind: str, name: str, n: int, count: int, threads: int, queue: Any) -> None:
    """Puts the growth of the process in MiB on the queue.

    The peak covers the whole life of a process, so each measurement has a process of its own."""
    torch.set_num_threads(threads)
    model, samples = trained().eval(), probe(count)
    action = {"ours": ours, "captum": captum}[kind](name, n, model, samples)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def resident(*arguments: Any) -> float:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_resident, args=(*arguments, queue))
    process.start()
    value: float = queue.get(timeout=600)
    process.join()
    return value


def segmentations() -> Report:
    """The default explanation of a small U-Net."""
    samples, classes, *size = SEGMENTED
    torch.manual_seed(0)
    labels = torch.randint(classes, (samples, *(side // 32 for side in size)))
    labels = labels.repeat_interleave(32, 1).repeat_interleave(32, 2)
    x = torch.randn(samples, 3, *size) + labels[:, None] / classes
    return explain(UNet(3, classes).eval(), Probe(x, labels))


def stored(report: Report) -> tuple[int, int]:
    """Bytes of the file of a report, and of the maps in it."""
    with tempfile.TemporaryDirectory() as folder:
        size = save_report(report, folder).stat().st_size
    found = [*report.attributions.values(), *report.maps.values()]
    return size, sum(part.nbytes for maps in found for part in as_tuple(maps))


def stored_beside_maps() -> int:
    """Prints the size of a stored explanation; returns whether it is too large."""
    report = segmentations()
    (size, maps), logits = stored(report), 4 * torch.Size(SEGMENTED).numel()
    console.print(
        f"{', '.join(report.attributions)} of {SEGMENTED}: {size / 1e6:.2f} MB, of which maps {maps / 1e6:.2f} MB"
    )
    console.print(f"beside the maps: {(size - maps) / 1e6:.2f} MB; the outputs alone would be {logits / 1e6:.2f} MB")
    return int(size - maps > MOST_BESIDE_MAPS)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--stored", action="store_true", help="measure only the file of an explanation")
    arguments.add_argument("--samples", type=int, default=16, help="samples of the probe (default: 16)")
    arguments.add_argument(
        "--largest",
        type=int,
        default=2000,
        help="leave out Captum if it would hold more samples at once than this (about 1.5 MiB each)",
    )
    arguments.add_argument(
        "--rss", action="store_true", help="also measure the growth of resident memory, in separate processes"
    )
    chosen = start(arguments)
    if chosen.stored:
        return stored_beside_maps()
    model, samples = trained(), probe(chosen.samples)
    step = peak_mib(training_step(model))
    model.eval()
    names = ["", "n", "ours", "Captum", "ours / Captum", "ours / training step"]
    found = table(
        f"Peak of live tensors, MiB; a training step on {PASS} samples: {step:.0f}",
        *names,
        *(["RSS ours", "RSS Captum"] if chosen.rss else []),
    )
    peaks: dict[str, list[float]] = {}
    for name, n in sizes():
        fits = n * chosen.samples <= chosen.largest
        mine = peak_mib(ours(name, n, model, samples))
        theirs = peak_mib(captum(name, n, model, samples)) if fits else float("nan")
        peaks.setdefault(name, []).append(mine)
        cells = [f"{mine:.0f}", f"{theirs:.0f}", f"{mine / theirs:.2f}", f"{mine / step:.2f}"]
        for kind in ("ours", "captum") if chosen.rss else ():
            cells.append(
                f"{resident(kind, name, n, chosen.samples, chosen.threads):.0f}" if fits or kind == "ours" else "-"
            )
        found.add_row(name, str(n), *("-" if cell == "nan" else cell for cell in cells))
    console.print(found)
    for name, values in peaks.items():
        if len(values) > 1:
            console.print(
                f"{name}: the largest number takes {values[-1] / values[0]:.2f} times the memory of the smallest."
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
