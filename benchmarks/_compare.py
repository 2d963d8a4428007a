"""Our numbers beside Captum's, and what the doctor says of the method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from _cases import Bench, MetricInputs, cases
from _limits import found as found_at_limit
from _limits import limits
from lightning_explain import Probe, explain
from lightning_explain import metrics as q
from lightning_explain.checks.doctor import doctor
from lightning_explain.core.contracts import Method
from lightning_explain.core.report import PassCount
from lightning_explain.core.verdict import Verdict
from repairing import all_rules

EQUAL, COMPLETE = 1e-5, 1e-3


@dataclass
class Line:
    """What the table says of one method."""

    name: str
    verdict: Verdict
    difference: float | None = None
    exact: float | None = None
    completeness: float | None = None
    limit: tuple[float, str] | None = None
    passes: PassCount | None = None

    @property
    def differs(self) -> bool:
        """Whether it is not Captum's; the number in float64 decides where there is one."""
        return _above(self.difference if self.exact is None else self.exact, EQUAL)

    @property
    def failed(self) -> bool:
        """Whether any of its numbers is too large."""
        return self.differs or _above(self.limit and self.limit[0], EQUAL) or _above(self.completeness, COMPLETE)


def _above(value: float | None, most: float) -> bool:
    # Written so that NaN is above, too.
    return value is not None and not value <= most


def distance(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| / max|b| of a sample, the largest over samples; of samples that are zero, max|a|."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    scale = theirs.flatten(1).abs().amax(1)
    return ((ours - theirs).flatten(1).abs().amax(1) / scale.where(scale > 0, torch.ones_like(scale))).max().item()


def compare(bench: Bench, case: MetricInputs) -> tuple[float, PassCount]:
    report = explain(bench.model, Probe(bench.x, bench.y), {"it": case.method}, [])
    found = report.attributions["it"]
    assert isinstance(found, Tensor)
    with all_rules():
        return distance(found, case.captum().detach()), report.passes


def completeness(bench: Bench, method: Method) -> float | None:
    """The largest of a sample; a layer method is asked at a layer that everything passes through, if one is known."""
    if hasattr(method, "layer") and not hasattr(method, "neuron_selector"):
        if bench.neck is None:
            return None
        method = replace(method, layer=bench.neck)
    report = explain(bench.model, Probe(bench.x, bench.y), {"it": method}, [q.Completeness()])
    scores = report.scores["completeness"].get("it")
    return None if scores is None else scores.max().item()


def lines(bench: Bench, wanted: Iterable[str]) -> list[Line]:
    """One for each of the methods, in the order of their names; misses are computed again in float64."""
    chosen = {case.name: case for case in cases(bench) if case.name in wanted}
    verdicts = doctor(bench.model, {n: case.method for n, case in chosen.items()}, Probe(bench.x, bench.y))
    found = {v.method: _line(bench, chosen[v.method], v) for v in verdicts}
    missed = {name for name, line in found.items() if line.differs}
    if missed:
        exact = bench.double()
        for case in cases(exact):
            if case.name in missed:
                found[case.name].exact = compare(exact, case)[0]
    return [found[name] for name in sorted(found)]


def add_limits(bench: Bench, found: Iterable[Line]) -> None:
    """Adds to random methods how far they are from their limits; misses are computed again in float64."""
    known = {line.name: line for line in found if line.difference is not None}
    for b, suffix in ((bench, ""), (bench.double(), ", in float64")):
        for limit in limits(b):
            line = known.get(type(limit.method).__name__)
            if line is not None and (line.limit is None or _above(line.limit[0], EQUAL)):
                line.limit = distance(found_at_limit(b, limit), limit.expected().detach()), f"{limit.what}{suffix}"


def _line(bench: Bench, case: MetricInputs, verdict: Verdict) -> Line:
    line = Line(case.name, verdict)
    if verdict.state != "refused":
        line.difference, line.passes = compare(bench, case)
    if verdict.state == "canonized":
        line.completeness = completeness(bench, case.method)
    return line
