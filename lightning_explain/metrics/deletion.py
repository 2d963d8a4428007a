"""Deletion and insertion: how fast does the output fall, or rise, along the ranking of the map?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import Case, Prospect, Score
from lightning_explain.core.probe import Baseline, Rows
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_count, check_flag
from lightning_explain.engine.baselines import check_baseline
from lightning_explain.metrics._common import draws_of
from lightning_explain.metrics._ranking import relevance, scores, spread, unit_count


def places(units: Tensor) -> Tensor:
    """The place of each unit in the ranking, 0 for the most relevant; ties in the order of the units.

    Args:
        units: ``(N, U)``.
    """
    order = units.argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1)


def counts(units: int, n_steps: int) -> Tensor:
    """How many units are changed after each step, ``(S + 1,)`` from 0 to all of them; at most ``n_steps`` steps."""
    steps: Tensor = torch.linspace(0, units, n_steps + 1, dtype=torch.float64).round().long().unique()
    return steps


def area(curve: Tensor, at: Tensor) -> Tensor:
    """Area under each curve ``(N, S + 1)`` over the share of changed units, by the trapezoidal rule, ``(N,)``."""
    return torch.trapezoid(curve, (at / at[-1]).to(curve), dim=1)


class _Curve:
    """What both have in common; ``removes`` says whether the units are taken away or added."""

    n_steps: int
    baselines: Baseline
    normalize: bool
    removes: ClassVar[bool]

    def _check(self) -> None:
        owner = type(self).__name__
        check_count(owner, "n_steps", self.n_steps)
        check_baseline(self.baselines)
        check_flag(owner, "normalize", self.normalize)

    def passes(self, prospect: Prospect) -> PassCount:
        """The baseline, and for each map every step but the two ends."""
        inner = len(counts(unit_count(prospect.rows.inputs), self.n_steps)) - 2
        return PassCount(len(prospect.rows) * (1 + len(prospect.maps) * inner))

    def _areas(self, case: Case) -> Mapping[str, Mapping[str, Score]]:
        end = case.subject.evaluate(case.rows.at(case.subject.baseline(self.baselines, case.rows)))
        found = {}
        for name, maps in case.maps.items():
            units = relevance(maps, case.rows.inputs)
            at = counts(units.shape[1], self.n_steps)
            curve = self._curve(case, places(units), at, end)
            # A map that is not a number ranks nothing.
            found[name] = torch.where(units.isnan().any(1), torch.nan, area(curve, at))
        return {"": scores(found, case.outputs)}

    def _curve(self, case: Case, ranks: Tensor, at: Tensor, end: Tensor) -> Tensor:
        """f along the ranking, ``(N, S + 1)``. Both ends are known beforehand."""
        inner = at[1:-1]
        curve = case.outputs.new_empty(len(ranks), len(at))
        curve[:, 0], curve[:, -1] = (case.outputs, end) if self.removes else (end, case.outputs)
        for where, part, steps in draws_of(case.rows, len(inner), case.subject.limit):
            rows = torch.arange(where.start, where.stop).repeat_interleave(len(part) // (where.stop - where.start))
            changed = ranks[rows] < inner[steps].to(ranks.device)[:, None]
            curve[rows, steps + 1] = case.subject.evaluate(self._mixed(case, part, changed))
        return (curve - end[:, None]) / (case.outputs - end).abs()[:, None] if self.normalize else curve

    def _mixed(self, case: Case, rows: Rows, changed: Tensor) -> Rows:
        kept = ~changed if self.removes else changed
        baselines = case.subject.baseline(self.baselines, rows)
        parts = zip(spread(kept, rows.inputs), rows.inputs, baselines, strict=True)
        return rows.at(tuple(torch.where(k, x, b) for k, x, b in parts))


@dataclass(frozen=True)
class Deletion(_Curve):
    """Area under the output as pixels are replaced by the baseline, the most relevant first (Petsiuk et al. 2018, RISE).

    With z(s) the row after the share s of its pixels is replaced: the integral over s of ``f(z(s))``, with ``normalize`` of
    ``(f(z(s)) - f(baseline)) / |f(x) - f(baseline)|``. A map whose first pixels carry the output makes it fall at once.
    RISE's own number is that of a probability: ``normalize=False`` and a ``target`` that returns one.

    Cost: 1 + M * (n_steps - 1) forward, 0 backward; M methods.
    Not for: maps without a sign, where what speaks against the output ranks high; baselines that look like no data:
        it then measures how the network takes strange inputs; rows with f(x) near f(baseline).

    Args:
        n_steps: Steps from the row to its baseline; at most as many as there are pixels.
        baselines: What pixels are replaced by: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        normalize: In units of f(x) - f(baseline). Without it the score moves with the scale of the output.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` is of a kind that is not allowed.
    """

    n_steps: int = 20
    baselines: Baseline = None
    normalize: bool = True

    higher_is_better: ClassVar[bool | None] = False
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    removes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check()

    def score(self, case: Case) -> Mapping[str, Mapping[str, Score]]:
        """Without unit, or in units of output without ``normalize``; not finite where f(x) = f(baseline). Lower is better."""
        return self._areas(case)


@dataclass(frozen=True)
class Insertion(_Curve):
    """Area under the output as pixels of the row replace those of the baseline, the most relevant first (Petsiuk et al. 2018, RISE).

    The formula, arguments, units and errors of :class:`Deletion`, with z(s) the baseline after the share s of the row's
    pixels is put in. ``baselines="blur"`` is RISE's own choice.

    Cost: 1 + M * (n_steps - 1) forward, 0 backward; M methods.
    Not for: maps without a sign, where what speaks against the output ranks high; baselines that look like no data:
        it then measures how the network takes strange inputs; rows with f(x) near f(baseline).

    Args:
        n_steps: Steps from the baseline to the row; at most as many as there are pixels.
        baselines: What the pixels replace: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        normalize: In units of f(x) - f(baseline). Without it the score moves with the scale of the output.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``baselines`` is of a kind that is not allowed.
    """

    n_steps: int = 20
    baselines: Baseline = None
    normalize: bool = True

    higher_is_better: ClassVar[bool | None] = True
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    removes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._check()

    def score(self, case: Case) -> Mapping[str, Mapping[str, Score]]:
        """Without unit, or in units of output without ``normalize``; not finite where f(x) = f(baseline). Higher is better."""
        return self._areas(case)
