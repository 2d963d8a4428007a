"""Compares the time of an explanation with its lower limit: each distinct sample once, at the network's bare speed.

The bare speed is that of a forward pass, and of a forward and backward pass to the input, with parameters that need no
gradient, at the best of several chunk sizes and in the memory layout of the explanation; the table also shows the other
layout. Each sample needs 341 forward samples with a gradient, 11 more backward samples (guided backpropagation runs a
second backward pass through the same forward pass), and 59 forward samples without a gradient. Explanation and bare
passes alternate in one process; the interval (95%) of the ratio's median comes from the bootstrap.

    python benchmarks/limit.py [--repeat 3] [--threads 2] [--clock process] [--channels-last]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from _measure import (
    console,
    explainer,
    in_turn,
    parser,
    ratios,
    start,
    table,
    with_interval,
    without_parameter_gradients,
)
from _workload import (
    BACKWARD,
    DISTINCT,
    SAMPLES,
    WITH_GRADIENT,
    WITHOUT_GRADIENT,
    images,
    methods,
    metrics,
    probe,
    samples_sent,
    trained,
)

CHUNKS = (16, 32, 64, 128)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SENT = 256


@dataclass(frozen=True)
class Bare:
    """One way to send ``SENT`` samples through the network."""

    direction: str
    chunk: int
    layout: str


def ways(model: nn.Module) -> dict[Bare, Callable[[], None]]:
    x, y = images(SENT, seed=2)
    send = {"forward": _forward, "forward and backward": _backward}
    return {
        Bare(direction, chunk, layout): partial(pass_, model, x.to(memory_format=memory_format), y, chunk)
        for direction, pass_ in send.items()
        for chunk in CHUNKS
        for layout, memory_format in FORMATS.items()
    }


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> None:
    with without_parameter_gradients(model):
        for part in x.split(chunk):
            model(part)


def _backward(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> None:
    with without_parameter_gradients(model):
        for part, labels in zip(x.split(chunk), y.split(chunk), strict=True):
            point = part.detach().requires_grad_()
            torch.autograd.grad(model(point).gather(1, labels[:, None]).sum(), point)


def least(forward: float, both: float) -> float:
    """Seconds of the distinct passes of all samples, given seconds per sample."""
    return SAMPLES * (WITH_GRADIENT * both + (BACKWARD - WITH_GRADIENT) * (both - forward) + WITHOUT_GRADIENT * forward)


def main() -> None:
    arguments = parser(__doc__, repeat=3)
    arguments.add_argument(
        "--channels-last", action="store_true", help="measure explanation and bare passes in that memory layout"
    )
    chosen = start(arguments)
    layout = list(FORMATS)[chosen.channels_last]
    model, samples = trained(), probe()
    explain = explainer(model, samples, methods(), metrics(), tuned=True, channels_last=chosen.channels_last)
    bare = ways(model)

    backward = 0

    def ours() -> None:
        nonlocal backward
        backward = explain().passes.backward

    sent = samples_sent(model, ours)
    times = in_turn({**bare, "ours": ours}, chosen.repeat)
    best = {
        d: min((b for b in bare if b.direction == d and b.layout == layout), key=lambda b: min(times[b]))
        for d in ("forward", "forward and backward")
    }

    found = table(
        "Bare passes, ms a sample (best of the repeats)", "chunk", *(f"{d}, {f}" for d in best for f in FORMATS)
    )
    for chunk in CHUNKS:
        found.add_row(str(chunk), *(f"{min(times[Bare(d, chunk, f)]) / SENT * 1e3:.2f}" for d in best for f in FORMATS))
    console.print(found)

    per_sample = {d: [t / SENT for t in times[b]] for d, b in best.items()}
    limits = [least(f, b) for f, b in zip(*per_sample.values(), strict=True)]
    summary = table(f"Median of {chosen.repeat}, {torch.get_num_threads()} threads", "", "ours", "least", "ratio (95%)")
    summary.add_row("forward samples", f"{sent:,}", f"{SAMPLES * DISTINCT:,}", f"{sent / (SAMPLES * DISTINCT):.2f}")
    summary.add_row(
        "backward samples", f"{backward:,}", f"{SAMPLES * BACKWARD:,}", f"{backward / (SAMPLES * BACKWARD):.2f}"
    )
    summary.add_row(
        "seconds without pictures",
        f"{statistics.median(times['ours']):.2f}",
        f"{statistics.median(limits):.2f}",
        with_interval(ratios(times["ours"], limits)),
    )
    console.print(summary)


if __name__ == "__main__":
    main()
