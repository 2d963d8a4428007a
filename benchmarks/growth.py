"""Measures how an explanation's time and memory grow with samples, methods, steps, draws and classes.

Time should grow in proportion, or more slowly where methods share passes. The ratio of times is that of pairs measured in turn, with the
95% interval of its median by the bootstrap. Memory is the peak of tensors that are alive at once, without what is held: the report's own
maps and scores, and two copies of the inputs. Pictures are of the samples that a dashboard shows, so their time must not grow with samples.
``ranks.py speed`` measures ranks.

Run with: python benchmarks/growth.py [--repeat 5] [--threads 2] [samples] [methods] [steps] [draws] [classes]

The benchmark fails if that memory grows by more than a quarter with steps or draws, or by more than half, and half of what is held, with
samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from _measure import console, explainer, in_turn, parser, peak_mib, ratios, seconds, start, table, with_interval
from _workload import methods, probe, samples_sent, trained
from lightning_explain import Probe, Report
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.render.figure import figure_of
from lightning_explain.render.options import Options

SAMPLES, METHODS, STEPS, DRAWS = (16, 64, 256, 1024), (1, 2, 5, 8), (10, 20, 40, 80), (5, 10, 20, 40)
CLASSES = (10, 1_000, 100_000)
FLAT, MOST = ("steps", "draws"), 1.25
WHAT = ("samples", "methods", "steps", "draws", "classes")


@dataclass(frozen=True)
class Case:
    """One explanation.

    Args:
        explain: Explains.
        model: The network.
        probe: The samples.
    """

    explain: Callable[[], Report]
    model: nn.Module
    probe: Probe

    @classmethod
    def of(cls, model: nn.Module, probe: Probe, chosen: dict[str, m.Method], metrics: dict[str, q.Metric]) -> Case:
        return cls(explainer(model, probe, chosen, metrics), model, probe)


def small(classes: int) -> nn.Module:
    """A CNN on images of 32 x 32 pixels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, classes)).eval()


def cases(what: str) -> Iterator[tuple[int, Case]]:
    """The sizes of what grows, and the explanation."""
    chosen = {name: method for name, method in methods().items() if name != "occlusion"}
    base = {"saliency": m.Saliency(abs=False), "integrated_gradients": m.IntegratedGradients(n_steps=20)}
    both = {"infidelity": q.Infidelity("gaussian", 10), "sensitivity": q.SensitivityMax(n_perturb_samples=2)}
    few = probe(8)
    if what == "samples":
        yield from ((n, Case.of(small(10), probe(n), base, both)) for n in SAMPLES)
    elif what == "classes":
        yield from ((n, Case.of(small(n), probe(16), base, both)) for n in CLASSES)
    elif what == "methods":
        model = trained()
        yield from ((n, Case.of(model, few, dict(islice(chosen.items(), n)), both)) for n in METHODS)
    elif what == "steps":
        model = trained()
        yield from ((n, Case.of(model, few, {"ig": m.IntegratedGradients(n_steps=n)}, {})) for n in STEPS)
    else:
        model = trained()
        for n in DRAWS:
            scores = {"infidelity": q.Infidelity("gaussian", n), "sensitivity": q.SensitivityMax(n_perturb_samples=n)}
            yield n, Case.of(model, few, {"saliency": base["saliency"]}, scores)


def held(report: Report, probe: Probe) -> float:
    """MiB of a report's own tensors, and of two copies of the inputs."""
    own = tree_leaves((dict(report.attributions), dict(report.scores), dict(report.standard_errors), report.outputs))
    own += [probe.inputs] * 2
    return sum(value.numel() * value.element_size() for value in own if isinstance(value, Tensor)) / 2**20


def draw(report: Report, probe: Probe) -> None:
    """Draws what a dashboard shows: the first page of each picture."""
    figure_of(report, probe, Options()).pictures(further=False)


def grown(what: str, repeat: int) -> bool:
    """Prints a table; returns whether memory is flat, where it must be."""
    found, holds = dict(cases(what)), dict[int, float]()
    for case in found.values():
        case.explain()
    times = in_turn({n: case.explain for n, case in found.items()}, repeat)
    columns = (
        "seconds",
        "samples sent",
        "ms a sample",
        "n, ratio",
        "time, ratio (95%)",
        "MiB",
        "held",
        "pictures, s",
    )
    shown, memory, first = table(what, "n", *columns), dict[int, float](), min(found)
    for n, case in found.items():
        best, report = min(times[n]), case.explain()
        sent, own = samples_sent(case.model, case.explain), held(report, case.probe)
        memory[n], holds[n] = peak_mib(case.explain) - own, own
        pictures = seconds(partial(draw, report, case.probe))
        growth = with_interval(ratios(times[n], times[first]), 1)
        cells = (f"{best:.3f}", f"{sent:,}", f"{best / sent * 1e3:.3f}", f"{n / first:.1f}", growth)
        shown.add_row(f"{n:,}", *cells, f"{memory[n]:.1f}", f"{own:.1f}", f"{pictures:.2f}")
    console.print(shown)
    if what == "samples":
        return all(memory[n] - memory[first] <= max(holds[n], memory[first]) / 2 for n in found)
    return what not in FLAT or max(memory.values()) <= MOST * memory[first]


def main() -> int:
    arguments = parser(__doc__, repeat=5)
    arguments.add_argument("what", nargs="*", choices=[*WHAT, []], default=[])
    chosen = start(arguments)
    results = [grown(what, chosen.repeat) for what in chosen.what or WHAT]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
