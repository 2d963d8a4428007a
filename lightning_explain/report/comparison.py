"""Two reports, or two runs of them, in; how alike the maps of each sample are and how scores moved, out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import torch
from torch import Tensor

from lightning_explain.core.naming import nearest
from lightning_explain.core.probe import as_tuple, flat
from lightning_explain.core.report import Report
from lightning_explain.core.schema import brief
from lightning_explain.metrics._ranking import spearman
from lightning_explain.metrics.drift import cosine
from lightning_explain.report.differing import Differing, differing
from lightning_explain.report.runs import Reports, reports_of

TOP = 0.1
"""The share of the numbers of a map that ``top_overlap`` compares."""


@dataclass(frozen=True)
class Difference:
    """How a score of one method differs between two reports, over the samples that have it in both.

    Args:
        score: The score.
        method: The method.
        a: Its mean in the first report.
        b: Its mean in the second one.
        change: The mean of the paired differences, which is ``b - a``.
        error: Standard error of the change, from how the paired differences vary over samples: how far it may be from that of all
            samples of this kind. ``None`` with fewer than two samples.
        drawing_error: Standard error of the change given these samples, from the scores' own standard errors (of random draws, taken as
            independent in both reports). ``None`` for scores that have none.
        samples: How many samples have the score in both; for the others it is undefined or not finite.
    """

    score: str
    method: str
    a: float
    b: float
    change: float
    error: float | None
    drawing_error: float | None
    samples: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """How two reports of the same samples differ. In shapes, N is the number of samples, or of the labels that are explained by themselves.

    Args:
        ids: ``(N,)`` sample ids, the same one for each label of a sample.
        similarity: ``similarity[measure][method]`` is ``(N,)``: ``cosine`` and ``spearman`` (-1..1), ``top_overlap`` (0..1, the share
            of the strongest tenth of one map that is in that of the other); 1 for equal maps, NaN where one is constant or not finite.
        changes: ``changes[score][method]`` is ``(N,)``: the second report's score minus the first one's.
        differences: What became of the mean of each score and method, with standard errors.
        other_prediction: ``(N,)``, whether the predicted class differs.
        left_out: Methods that are not compared, and why.
        moments: Epoch and step of both.
        differing: In what the two explain something else, or in another way (the target, explained outputs, arguments of methods and
            metrics with their layers, settings on which numbers depend): both values, by name. Changes come of these, too.
        targets: ``(N,)`` the explained outputs of the first report, which tell the labels of a sample apart.
    """

    ids: Tensor
    similarity: Mapping[str, Mapping[str, Tensor]]
    changes: Mapping[str, Mapping[str, Tensor]]
    differences: Sequence[Difference]
    other_prediction: Tensor
    left_out: Mapping[str, str]
    moments: tuple[tuple[int | None, int | None], tuple[int | None, int | None]]
    differing: Differing = field(default_factory=dict)
    targets: Tensor | None = None

    def most_changed(self, method: str, count: int = 5, by: str = "cosine") -> list[int]:
        """The ids of the samples that changed most, the most different first; those of which it is not known come last.

        Args:
            method: The method.
            count: How many.
            by: A measure of similarity, or a score, of which the absolute change counts.

        Raises:
            ValueError: If there is no such method or measure.
        """
        return list(dict.fromkeys(self.ids[self.order(method, by)].tolist()))[:count]

    def order(self, method: str, by: str = "cosine") -> Tensor:
        """Where in ``ids`` those are that changed most, the most different first, ``(N,)``; arguments as in :meth:`most_changed`."""
        found = {**self.similarity, **self.changes}
        if by not in found:
            raise ValueError(f"by={by!r} is neither a measure of similarity nor a score: {nearest(by, found)}")
        if method not in found[by]:
            raise ValueError(f"method={method!r} has not been compared by {by!r}: {nearest(method, found[by])}")
        values = found[by][method] if by in self.similarity else -found[by][method].abs()
        return values.nan_to_num(torch.inf).argsort(stable=True)

    def score_table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names, and one line per score and method: the fields of :class:`Difference`."""
        names = [field.name for field in fields(Difference)]
        return names, [[getattr(one, name) for name in names] for one in self.differences]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names, and one line per sample and method: similarities, changes of scores (``<score>_change``).

        Where samples have several lines, as one for each label, a column ``target`` tells these apart.
        """
        several = len(self.ids.unique()) < len(self.ids)
        targets = self.targets.tolist() if several and self.targets is not None else None
        measures, scores = list(self.similarity), list(self.changes)
        methods = list(self.similarity["cosine"])
        lines = [
            [
                sample,
                *([] if targets is None else [targets[i]]),
                bool(self.other_prediction[i]),
                method,
                *(self.similarity[measure][method][i].item() for measure in measures),
                *(self.changes[score][method][i].item() if method in self.changes[score] else None for score in scores),
            ]
            for i, sample in enumerate(self.ids.tolist())
            for method in methods
        ]
        about = ["sample", *([] if targets is None else ["target"]), "other_prediction", "method"]
        return [*about, *measures, *(f"{score}_change" for score in scores)], lines


@overload
def compare(a: Report, b: Report) -> Comparison: ...
@overload
def compare(a: Reports, b: Reports) -> list[Comparison]: ...
def compare(a: Report | Reports, b: Report | Reports) -> Comparison | list[Comparison]:
    """Takes two reports of the same samples, and returns how alike their maps are, how scores moved and which samples changed most.

    Args:
        a: A report; or the reports of a run, as a list or as the folder ``<run>/<name>`` or ``<run>``.
        b: The same for what it is compared with.

    Returns:
        A :class:`Comparison`; of two runs one for each step (and stage) that both have, in order.

    Raises:
        ValueError: If the samples differ, or two runs have no step in common.
        TypeError: If one is a report and the other is a run.

    Example:
        >>> from lightning_explain import compare
        >>> before = explain(model, probe, methods=[m.Saliency()], metrics=[])
        >>> found = compare(before, explain(model, probe, methods=[m.Saliency()], metrics=[]))
        >>> found.similarity["spearman"]["saliency"].shape
        torch.Size([2])
        >>> found.left_out, found.other_prediction.any().item()
        ({}, False)
        >>> found = compare(*(explain(model, probe, [m.Saliency(abs=a)], [q.Concentration()]) for a in (True, False)))
        >>> [(one.score, one.method, one.samples) for one in found.differences][0]
        ('concentration', 'saliency', 2)
    """
    if isinstance(a, Report) and isinstance(b, Report):
        return _compared(a, b)
    if isinstance(a, Report) or isinstance(b, Report):
        raise TypeError(
            f"compare(a, b) got {type(a).__name__} and {type(b).__name__}; give two reports, or two folders or lists of them."
        )
    first, second = ({(r.step, r.stage, r.epoch): r for r in reports_of(run)} for run in (a, b))
    common = [moment for moment in first if moment in second]
    if not common:
        steps = [brief(sorted({step for step, *_ in run if step is not None})) for run in (first, second)]
        raise ValueError(
            f"compare(a, b): the runs have no step, stage and epoch in common (steps {steps[0]} and {steps[1]}); give one report of each."
        )
    return [_compared(first[moment], second[moment]) for moment in common]


def cosines(a: Report, b: Report) -> dict[str, Tensor]:
    """The cosine similarity ``(N,)`` that :func:`compare` finds, by method, without anything else, in a tenth of the time.

    Raises:
        ValueError: If the samples differ.
    """
    return _similarity(a, b, _order(a, b), ("cosine",))[0]["cosine"]


def _order(a: Report, b: Report) -> Tensor:
    """Where the samples of the first report are in the second one, ``(N,)``.

    Raises:
        ValueError: If the samples differ.
    """
    places = {sample: i for i, sample in enumerate(b.ids.tolist())}
    if a.fingerprint != b.fingerprint or sorted(a.ids.tolist()) != sorted(places):
        names = [f"samples {brief(r.ids.tolist())} of fingerprint {r.fingerprint[:12] or 'unknown'}" for r in (a, b)]
        same = (
            " (their ids are equal, but inputs, labels or masks are not)"
            if sorted(a.ids.tolist()) == sorted(places)
            else ""
        )
        raise ValueError(
            f"compare(a, b): a has {names[0]}, b has {names[1]}; only explanations of the same samples can be compared{same}. "
            "Give both runs the same probe."
        )
    return torch.tensor([places[sample] for sample in a.ids.tolist()])


def _similarity(
    a: Report, b: Report, order: Tensor, measures: Iterable[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """How alike the maps are, by measure and method; and the methods that are not compared, and why."""
    similarity: dict[str, dict[str, Tensor]] = {measure: {} for measure in measures}
    left_out = {}
    for method in dict.fromkeys([*a.attributions, *b.attributions]):
        maps = [as_tuple(report.attributions[method]) for report in (a, b) if method in report.attributions]
        if len(maps) < 2:
            left_out[method] = f"only {'a' if method in a.attributions else 'b'} has it"
        elif (shapes := [[tuple(part.shape[1:]) for part in parts] for parts in maps])[0] != shapes[1]:
            left_out[method] = f"its maps have the shapes {brief(shapes[0])} and {brief(shapes[1])}"
        else:
            first, second = (torch.cat([flat(part.double()) for part in parts], 1) for parts in maps)
            for measure in similarity:
                similarity[measure][method] = _MEASURES[measure](first, second[order])
    return similarity, left_out


def _compared(a: Report, b: Report) -> Comparison:
    order = _order(a, b)
    similarity, left_out = _similarity(a, b, order, _MEASURES)
    changes: dict[str, dict[str, Tensor]] = {}
    for score, method in _scores_in_both(a, b):
        changes.setdefault(score, {})[method] = b.scores[score][method][order] - a.scores[score][method]
    differences = [found for pair in _scores_in_both(a, b) if (found := _difference(a, b, order, *pair)) is not None]
    moments = (a.epoch, a.step), (b.epoch, b.step)
    others = a.predictions != b.predictions[order]
    apart = differing(a, b, order)
    return Comparison(a.samples, similarity, changes, differences, others, left_out, moments, apart, a.targets)


def _scores_in_both(a: Report, b: Report) -> Iterator[tuple[str, str]]:
    for score, found in a.scores.items():
        yield from ((score, method) for method in found if method in b.scores.get(score, {}))


def _difference(a: Report, b: Report, order: Tensor, score: str, method: str) -> Difference | None:
    """``None`` if no sample has the score in both."""
    first, second = (values.double() for values in (a.scores[score][method], b.scores[score][method][order]))
    paired = torch.isfinite(first) & torch.isfinite(second)
    first, second, count = first[paired], second[paired], int(paired.sum())
    if not count:
        return None
    change = second - first
    errors = [r.standard_errors.get(score, {}).get(method) for r in (a, b)]
    drawn = None
    if errors[0] is not None and errors[1] is not None:
        squares = (errors[0].square() + errors[1][order].square())[paired].double()
        known = squares[torch.isfinite(squares)]
        drawn = known.sum().sqrt().item() / len(known) if len(known) else None
    error = None if count < 2 else change.std().item() / count**0.5
    return Difference(
        score, method, first.mean().item(), second.mean().item(), change.mean().item(), error, drawn, count
    )


def _top_overlap(first: Tensor, second: Tensor) -> Tensor:
    """The share of the largest tenth of ``|first|`` that is among that of ``|second|``, ``(N,)``."""
    count = max(1, round(TOP * first.shape[1]))
    top = [torch.zeros_like(each).scatter_(1, each.abs().topk(count, 1).indices, 1.0) for each in (first, second)]
    known = torch.isfinite(first + second).all(1) & (first.abs().amax(1) > 0) & (second.abs().amax(1) > 0)
    return torch.where(known, (top[0] * top[1]).sum(1) / count, torch.nan)


_MEASURES = {"cosine": cosine, "spearman": spearman, "top_overlap": _top_overlap}
