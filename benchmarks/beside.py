"""Measures what explanations beside a training cost that training, against explanations that it waits for.

Run with: python benchmarks/beside.py [--pairs 20] [--steps 160] [--every 40]

A small ResNet trains on one core (one thread of torch) with the default methods and scores of 16 samples, pictures, TensorBoard and
stored reports: without a monitor, with one beside it, which skips what is due before the last is done, and with one that it waits for.
The three trainings run one after the other, in alternating order, and are printed when they are done. The clock runs from the first batch
to the last; starting the worker before, and awaiting its last explanation after, are told apart. The ratio is that of pairs, with the 95%
interval of its median by the bootstrap. A second core must be free: the load is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from _measure import console, ratios, table, with_interval
from _trainings import Gratings, Run, check_equal, quiet, run
from _workload import probe
from lightning_explain import ExplanationMonitor

PLAIN, BESIDE, INLINE = "plain", "beside", "inline"


def training(kind: str, steps: int, every: int) -> Run:
    """One training of a kind."""
    watch = ExplanationMonitor(
        probe=probe(), every_n_train_steps=every, beside=kind == BESIDE, max_examples_per_pass=16
    )
    return run(None if kind == PLAIN else watch, steps)


def copying(module: torch.nn.Module) -> float:
    """Seconds that copying weights and buffers takes, into memory that is there."""
    source = torch.cat([value.detach().flatten().view(torch.uint8) for value in module.state_dict().values()])
    target, times = source.clone(), []
    for _ in range(20):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def line(number: int, runs: Mapping[str, Run]) -> str:
    """One pair in words."""
    parts = [f"{kind} {one.wall:.2f} s" for kind, one in runs.items()]
    factors = [f"{kind} {runs[kind].wall / runs[PLAIN].wall:.3f}" for kind in (BESIDE, INLINE)]
    beside = runs[BESIDE]
    explaining, looking = 1000 * beside.explaining / max(1, beside.explanations), 1e6 * beside.looking / beside.steps
    return (
        f"{number + 1}: {', '.join(parts)}; over plain: {', '.join(factors)}; blocked {explaining:.1f} ms for each "
        f"explanation, and {looking:.0f} us for each batch; load {os.getloadavg()[0]:.1f}"
    )


def show(title: str, found: Mapping[str, Sequence[Run]]) -> None:
    """Prints all pairs as a table."""
    made = table(title, "", *found)
    for part, words in {
        "wall": "seconds, first to last batch",
        "cpu": "CPU seconds of the training process",
        "before": "seconds before the first batch",
        "after": "seconds after the last batch",
    }.items():
        made.add_row(
            words, *(f"{statistics.median(getattr(one, part) for one in runs):.2f}" for runs in found.values())
        )
    walls = {kind: [one.wall for one in runs] for kind, runs in found.items()}
    shown = (with_interval(ratios(of_kind, walls[PLAIN]), 3) for of_kind in walls.values())
    made.add_row("wall over that of no monitor, with its 95% interval", *shown)
    explaining = [[1000 * one.explaining / max(1, one.explanations) for one in runs] for runs in found.values()]
    looking = [[1e6 * one.looking / one.steps for one in runs] for runs in found.values()]
    for words, taken in {
        "ms in the monitor's hooks for each explanation (at most)": explaining,
        "us besides, for each batch (at most)": looking,
    }.items():
        made.add_row(words, *(f"{statistics.median(times):.1f} ({max(times):.1f})" for times in taken))
    made.add_row("explanations", *(str(sum(one.explanations for one in runs)) for runs in found.values()))
    console.print(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--every", type=int, default=40)
    given = parser.parse_args()
    quiet()
    training(INLINE, 2 * given.every, given.every)  # What is read and compiled once.
    found: dict[str, list[Run]] = {PLAIN: [], BESIDE: [], INLINE: []}
    for number in range(given.pairs):
        for kind in reversed(found) if number % 2 else found:
            found[kind].append(training(kind, given.steps, given.every))
        last = {kind: runs[-1] for kind, runs in found.items()}
        check_equal(*last.values())
        print(line(number, last), flush=True)
    show(f"{given.pairs} trainings of {given.steps} steps each", found)
    copied = 1000 * copying(Gratings())
    print(
        f"Copying the weights takes {copied:.2f} ms. Load of the machine in the last minute: {os.getloadavg()[0]:.1f}."
    )


if __name__ == "__main__":
    main()
