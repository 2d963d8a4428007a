"""Measures how an explanation's time grows with samples, methods, steps and draws.

It should grow in proportion, or more slowly where methods share passes.

    python benchmarks/growth.py [--repeat 2] [--threads 2]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from torch import nn

from _measure import console, explainer, first_samples, in_turn, parser, start, table
from _workload import methods, probe, samples_sent, trained
from lightning_explain import Report
from lightning_explain import methods as m
from lightning_explain import metrics as q

SAMPLES, METHODS, STEPS, DRAWS = (4, 8, 16, 32), (1, 2, 5, 8), (10, 20, 40, 80), (5, 10, 20, 40)


def cases(model: nn.Module) -> Iterator[tuple[str, int, Callable[[], Report]]]:
    """What grows, its size, and the explanation."""
    samples = probe(max(SAMPLES))
    few = first_samples(samples, 8)
    chosen = methods()
    del chosen["occlusion"]
    base = {"saliency": chosen["saliency"], "integrated_gradients": chosen["integrated_gradients"]}
    both = {"infidelity": q.Infidelity("gaussian", 10), "sensitivity": q.SensitivityMax(n_perturb_samples=2)}
    for n in SAMPLES:
        yield "samples", n, explainer(model, first_samples(samples, n), base, both)
    for n in METHODS:
        yield "methods", n, explainer(model, few, dict(islice(chosen.items(), n)), both)
    for n in STEPS:
        yield "steps", n, explainer(model, few, {"ig": m.IntegratedGradients(n_steps=n)})
    for n in DRAWS:
        metrics = {
            "infidelity": q.Infidelity("gaussian", n),
            "sensitivity": q.SensitivityMax(n_perturb_samples=n),
        }
        yield "draws", n, explainer(model, few, {"saliency": chosen["saliency"]}, metrics)


def main() -> None:
    chosen = start(parser(__doc__, repeat=2))
    model = trained()
    found = {(name, n): action for name, n, action in cases(model)}
    times = in_turn(found, chosen.repeat)
    shown = table(
        "Best time of an explanation",
        "what grows",
        "n",
        "seconds",
        "samples sent",
        "ms a sample",
        "n, ratio",
        "time, ratio",
    )
    for (name, n), action in found.items():
        first = next(key for key in found if key[0] == name)
        best, sent = min(times[name, n]), samples_sent(model, action)
        shown.add_row(
            name,
            str(n),
            f"{best:.2f}",
            f"{sent:,}",
            f"{best / sent * 1e3:.2f}",
            f"{n / first[1]:.1f}x",
            f"{best / min(times[first]):.1f}x",
            end_section=(name, n) == max(key for key in found if key[0] == name),
        )
    console.print(shown)


if __name__ == "__main__":
    main()
