"""This package's numbers beside Captum's, with the doctor's verdict on each method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from _cases import Bench, Comparison, comparisons
from _limits import found as found_at_limit
from _limits import limits
from _measure import distance
from lightning_explain import Probe, explain
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Method
from lightning_explain.core.report import PassCount
from lightning_explain.core.verdict import Verdict
from lightning_explain.explainer.explainer import Explainer
from repairing import all_rules

EQUAL, COMPLETE = 1e-5, 1e-3


@dataclass
class Line:
    """The table's line for one method."""

    name: str
    verdict: Verdict
    difference: float | None = None
    exact: float | None = None
    completeness: float | None = None
    limit: tuple[float, str] | None = None
    passes: PassCount | None = None

    @property
    def differs(self) -> bool:
        """Whether the map is not Captum's; the float64 number decides if there is one."""
        return _above(self.difference if self.exact is None else self.exact, EQUAL)

    @property
    def failed(self) -> bool:
        """Whether any number is too large."""
        return self.differs or _above(self.limit and self.limit[0], EQUAL) or _above(self.completeness, COMPLETE)


def _above(value: float | None, most: float) -> bool:
    # Written so that NaN counts as above.
    return value is not None and not value <= most


def compare(bench: Bench, pair: Comparison) -> tuple[float, PassCount]:
    """Difference of a method to Captum's, and the passes of ours."""
    report = explain(bench.model, Probe(bench.x, bench.y), {"it": pair.method}, [])
    found = report.attributions["it"]
    assert isinstance(found, Tensor)
    with all_rules():
        return distance(found, pair.captum().detach()), report.passes


def completeness(bench: Bench, method: Method) -> float | None:
    """The largest completeness error of a sample.

    A layer method uses a layer that all information passes through; ``None`` if none is known."""
    if method.place == "layer":
        if bench.neck is None:
            return None
        method = replace(method, layer=bench.neck)
    report = explain(bench.model, Probe(bench.x, bench.y), {"it": method}, [q.Completeness()])
    scores = report.scores["completeness"].get("it")
    return None if scores is None else scores.max().item()


def lines(bench: Bench, wanted: Iterable[str]) -> list[Line]:
    """One line per method, sorted by name; methods that miss the limit are computed again in float64."""
    chosen = {pair.name: pair for pair in comparisons(bench) if pair.name in wanted}
    methods = {name: pair.method for name, pair in chosen.items()}
    verdicts = Explainer(methods, {}).verdicts(bench.model, Probe(bench.x, bench.y))
    found = {v.method: _line(bench, chosen[v.method], v) for v in verdicts}
    missed = {name for name, line in found.items() if line.differs}
    if missed:
        exact = bench.double()
        for pair in comparisons(exact):
            if pair.name in missed:
                found[pair.name].exact = compare(exact, pair)[0]
    return [found[name] for name in sorted(found)]


def add_limits(bench: Bench, found: Iterable[Line]) -> None:
    """Adds to random methods their distance to the exact result; misses are computed again in float64."""
    known = {line.name: line for line in found if line.difference is not None}
    for b, suffix in ((bench, ""), (bench.double(), ", in float64")):
        for limit in limits(b):
            line = known.get(type(limit.method).__name__)
            if line is not None and (line.limit is None or _above(line.limit[0], EQUAL)):
                line.limit = distance(found_at_limit(b, limit), limit.expected().detach()), f"{limit.what}{suffix}"


def _line(bench: Bench, pair: Comparison, verdict: Verdict) -> Line:
    line = Line(pair.name, verdict)
    if verdict.state != "refused":
        line.difference, line.passes = compare(bench, pair)
    if verdict.state != "refused" and pair.method.backward_rule == "deeplift":
        line.completeness = completeness(bench, pair.method)
    return line
