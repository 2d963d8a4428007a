"""Completeness: does the map add up to what it explains?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import Case, Prospect, Reference, Score, Subject
from lightning_explain.core.probe import Attribution, Rows, as_tuple
from lightning_explain.core.report import PassCount
from lightning_explain.metrics._ranking import scores, wide


def convergence_delta(attribution: Attribution, gaps: Tensor) -> Tensor:
    """``sum(map) - (f(x) - f(baseline))``, the convergence delta of Captum.

    Args:
        attribution: Each ``(N, ...)``, in the method's own shape.
        gaps: ``(N,)``: f(x) - f(baseline).

    Returns:
        ``(N,)``, in units of output.
    """
    totals = [wide(part).flatten(1).sum(1) for part in as_tuple(attribution)]
    return torch.stack(totals).sum(0) - wide(gaps)


@dataclass(frozen=True)
class Completeness:
    """How far the sum of the map is from f(x) - f(baseline) (Sundararajan et al. 2017; Captum's ``convergence_delta``).

    ``|sum(map) - (f(x) - f(baseline))| / |f(x) - f(baseline)|``, and without the denominator as ``_delta``. For methods
    that promise the sum: integrated gradients and DeepLIFT with ``multiply_by_inputs``, their layer forms (the sum of the
    layer's own map, where everything passes through that layer), Shapley values; in expectation only GradientShap. Others
    have no score. It shows too few ``n_steps``, and a DeepLIFT that met an operation it has no rule for.

    Cost: B forward, 0 backward; B different baselines of the methods (K in a set); equal ones go through once.
    Not for: telling which map is right: a map can add up and lie in the wrong place; rows with f(x) near f(baseline).
    """

    higher_is_better: ClassVar[bool | None] = False
    suffixes: ClassVar[tuple[str, ...]] = ("", "delta")
    needs: ClassVar[str] = "a method whose map promises a sum, such as IntegratedGradients"

    def score(self, case: Case) -> Mapping[str, Mapping[str, Score]]:
        """The relative error without unit, ``_delta`` in units of output. Lower is better.

        Where f(x) = f(baseline) the relative error is infinite, or NaN for a map that sums to zero.
        """
        known: dict[bytes, Tensor] = {}
        deltas, relative = {}, {}
        for name, reference in case.references.items():
            gaps = case.outputs - _at_reference(case.subject, case.rows, reference, known)
            deltas[name] = convergence_delta(case.attributions[name], gaps).abs()
            relative[name] = deltas[name] / wide(gaps).abs()
        return {"": scores(relative, case.outputs), "delta": scores(deltas, case.outputs)}

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: Mapping[str, Reference]) -> Sequence[str]:
        """Methods that promise a sum."""
        return list(references)

    def passes(self, prospect: Prospect) -> PassCount:
        """Each different row of a baseline once."""
        references = prospect.references.values()
        ends = (end for reference in references for end in _ends(prospect.subject, prospect.rows, reference))
        return PassCount(len({digest for end in ends for digest in _digests(end)}))


def _at_reference(subject: Subject, rows: Rows, reference: Reference, known: dict[bytes, Tensor]) -> Tensor:
    """F at the baseline of each row, ``(N,)``; over a distribution the mean."""
    return torch.stack([evaluate_once(subject, end, known) for end in _ends(subject, rows, reference)]).mean(0)


def _ends(subject: Subject, rows: Rows, reference: Reference) -> Iterator[Rows]:
    """The rows at their baseline, or at each row of the set of baselines."""
    if not reference.distribution:
        yield rows.at(subject.baseline(reference.baselines, rows))
        return
    references = subject.distribution(reference.baselines, rows)
    for i in range(len(references[0])):
        yield rows.at(tuple(r[i].expand_as(x) for r, x in zip(references, rows.inputs, strict=True)))


def evaluate_once(subject: Subject, rows: Rows, known: dict[bytes, Tensor]) -> Tensor:
    """F at the rows, ``(N,)``; rows that are alike, and rows already known, go through the model once.

    Args:
        subject: The function.
        rows: Where to evaluate it.
        known: What is known, by a digest of a row's inputs and further arguments; what is found is added.
    """
    keys = _digests(rows)
    new = {key: i for i, key in enumerate(keys) if key not in known}
    if new:
        found = subject.evaluate(rows[torch.tensor(list(new.values()))])
        known.update(zip(new, found, strict=True))
    return torch.stack([known[key] for key in keys])


def _digests(rows: Rows) -> list[bytes]:
    n = len(rows)
    columns = [x for x in (*rows.inputs, *rows.extra) if isinstance(x, Tensor)]
    digests = [blake2b(digest_size=16) for _ in range(n)]
    for column in columns:
        for digest, value in zip(digests, column.detach().cpu(), strict=True):
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return [digest.digest() for digest in digests]
