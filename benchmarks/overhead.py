"""Measures by the wall clock whether ``max_overhead=0.05`` keeps its promise, with explanations that training waits for and beside it.

Run with: python benchmarks/overhead.py [--seconds 180]

A small ResNet trains on one core (one thread of torch) for so many seconds, with a monitor that is due every 20 steps and may take 5% of
the time of training, with pictures, TensorBoard and stored reports. The same number of steps is then trained without a monitor, and with
one beside. Printed are the seconds that training spent in the monitor's hooks, from the first batch to the last, over the others; what
the monitor itself says of that share; and the seconds of all over those without a monitor. The benchmark fails if the hooks took more
than the limit and a tenth of it, or if the weights at the end differ.
"""

from __future__ import annotations

import argparse
import os

from _measure import console, table
from _trainings import Run, check_equal, quiet, run
from _workload import probe
from lightning_explain import ExplanationMonitor

LIMIT, EVERY = 0.05, 20
TOLERANCE = 0.1
"""Of the limit: what each batch takes in the hooks counts here, and not in the monitor's own account."""


def monitor(beside: bool) -> ExplanationMonitor:
    return ExplanationMonitor(
        probe=probe(), every_n_train_steps=EVERY, max_overhead=LIMIT, beside=beside, max_examples_per_pass=16
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0)
    given = parser.parse_args()
    quiet()
    run(monitor(False), 2 * EVERY)  # What is read and compiled once.
    watches = {"inline": monitor(False), "plain": None, "beside": monitor(True)}
    found: dict[str, Run] = {}
    for kind, watch in watches.items():
        steps = found["inline"].steps if found else -1
        found[kind] = run(watch, steps, None if found else given.seconds)
        print(
            f"{kind}: {found[kind].steps} steps in {found[kind].wall:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True
        )
    made = table(f"max_overhead={LIMIT}, {found['inline'].steps} steps", "", *found)
    shares = {kind: one.blocked / (one.wall - one.blocked) for kind, one in found.items()}
    made.add_row("seconds, first to last batch", *(f"{one.wall:.1f}" for one in found.values()))
    made.add_row("explanations", *(str(one.explanations) for one in found.values()))
    made.add_row("seconds in the monitor's hooks", *(f"{one.blocked:.2f}" for one in found.values()))
    made.add_row("over the others", *(f"{share:.4f}" for share in shares.values()))
    said = (None if watch is None else watch._memory.schedule.overhead(0.0, 0.0) for watch in watches.values())
    made.add_row("what the monitor says of that", *("-" if share is None else f"{share:.4f}" for share in said))
    made.add_row(
        "seconds over those of no monitor", *(f"{one.wall / found['plain'].wall:.3f}" for one in found.values())
    )
    console.print(made)
    check_equal(*found.values())
    for kind in ("inline", "beside"):
        assert found[kind].explanations > 1, f"{kind}: train longer"
        assert shares[kind] <= LIMIT * (1 + TOLERANCE), f"{kind}: {shares[kind]:.4f}"


if __name__ == "__main__":
    main()
