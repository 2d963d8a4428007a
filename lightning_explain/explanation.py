"""One explanation while it runs inside the guard."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lightning_explain.forward import Choice, predictions_of
from lightning_explain.guard import KEEPERS, Run
from lightning_explain.maps import arrange, onto
from lightning_explain.plan import Plan, plan
from lightning_explain.sweep import Block, blocks, joined, sweep
from lightning_explain.types import (
    Attribution,
    Case,
    Method,
    Metric,
    Probe,
    Report,
    Rows,
    Score,
    Subject,
    as_tuple,
    bare,
)
from lightning_explain.visits import widened

if TYPE_CHECKING:
    from lightning_explain.pipeline import Explainer

T = TypeVar("T")
Progress = Callable[[str], None]


@dataclass(eq=False)
class Explanation:
    """Rows explained by all methods, and scored by all metrics.

    Args:
        explainer: What was decided before.
        model_run: Calls the model, with mends if need be.
        subject: The explained function; the last further argument of its probe is the labels.
        probe: The rows as the user gave them.
        progress: Called with the name of each method and metric.
    """

    explainer: Explainer
    model_run: Run
    subject: Subject
    probe: Probe
    progress: Progress
    failures: dict[str, str] = field(default_factory=dict)
    _chosen: bool = False

    def run(self) -> Report:
        """The report, without what the whole explanation cost."""
        outputs, indices, found = self._first_sweep()
        self._attempt(found, plan(self.explainer.methods).apart, lambda name: self._apart(name, self.rows))
        found = {name: found[name] for name in self.explainer.methods if name in found}
        arranged = {name: self._arranged(name, value, self.rows) for name, value in found.items()}
        placed = {name: onto(value, self.rows.inputs) for name, value in arranged.items() if value is not None}
        scored: dict[str, dict[str, Mapping[str, Score]]] = {}
        self._attempt(scored, self.explainer.metrics, lambda name: self._score(name, found, placed))
        scores = {key: score for by_key in scored.values() for key, score in by_key.items()}
        return Report(
            attributions={name: _on_cpu(value) for name, value in found.items()},
            scores={key: {m: value.cpu() for m, (value, _) in score.items()} for key, score in scores.items()},
            standard_errors=_errors(scores),
            outputs=outputs.cpu(),
            predictions=predictions_of(outputs.cpu()),
            targets=indices.cpu(),
            ids=self.rows.ids,
            failures=self.failures,
            maps=_untold(found, arranged, self.rows.inputs),
        )

    @property
    def rows(self) -> Rows:
        """All rows of the probe."""
        return self.subject.probe

    def _first_sweep(self) -> tuple[Tensor, Tensor, dict[str, Attribution]]:
        """All outputs, the explained ones, and the attributions by all methods that share passes."""
        methods = self.explainer.methods
        try:
            begun = self._with_targets(plan(methods))
            for name in begun[2]:
                self.progress(name)
            return begun
        except Exception:
            if self.explainer.raising or not self._chosen:
                raise
            reason = traceback.format_exc()
        # One of them failed: each for itself, so that the others are explained.
        outputs, indices, found = self._with_targets(plan({}))
        streamed = [name for name in methods if name not in plan(methods).apart]
        self._attempt(found, streamed, lambda name: sweep(self.subject, {name: methods[name]}, self.rows)[name])
        if not self.failures:
            warnings.warn(
                f"ExplanationMonitor: a pass failed, and all was well when it was tried again:\n{reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return outputs, indices, found

    def _with_targets(self, planned: Plan) -> tuple[Tensor, Tensor, dict[str, Attribution]]:
        parts = self._within(lambda: [self._begun(planned, block) for block in blocks(self.rows, self.subject.limit)])
        outputs, indices, self.values = (torch.cat(column) for column in zip(*(p[:3] for p in parts), strict=True))
        self.subject = replace(self.subject, probe=replace(self.rows, extra=(*self.rows.extra[:-1], indices)))
        return outputs, indices, joined([part[3] for part in parts])

    def _begun(self, planned: Plan, rows: Rows) -> tuple[Tensor, Tensor, Tensor, dict[str, tuple[Tensor, ...]]]:
        choice, block = Choice(self.explainer.target, rows.extra[-1]), Block(self.subject, planned, rows)
        try:
            found = block.run(choice)
        finally:
            self._chosen = choice.made
        return choice.outputs, choice.indices, block.outputs[()], found

    def _attempt(self, found: dict[str, Any], names: Iterable[str], work: Callable[[str], Any]) -> None:
        """What the work finds for each name; a failure is raised, or noted and left out."""
        for name in names:
            self.progress(name)
            try:
                found[name] = self._within(partial(work, name))
            except Exception:
                if self.explainer.raising:
                    raise
                self.failures[name] = traceback.format_exc()

    def _within(self, work: Callable[[], T]) -> T:
        """Does the work in passes that fit into memory, and removes the hooks that it leaves behind if it fails."""

        def within(limit: int) -> T:
            self.subject = replace(self.subject, limit=limit)
            with KEEPERS["hooks"](self.subject.forward):
                return work()

        return within_memory(within, self.subject.limit)[0]

    def _attributions(self, names: Iterable[str], rows: Rows) -> dict[str, Attribution]:
        """The attributions of rows by these methods."""
        methods = {name: self.explainer.methods[name] for name in names}
        apart = plan(methods).apart
        found = sweep(self.subject, {name: m for name, m in methods.items() if name not in apart}, rows)
        return {name: self._apart(name, rows) if name in apart else found[name] for name in methods}

    def _apart(self, name: str, rows: Rows) -> Attribution:
        """The attribution by a method that shares nothing."""
        method = self.explainer.methods[name]
        # A method may write into its rows; the next one needs them as well.
        copies = (part.at(tuple(x.clone() for x in part.inputs)) for part in blocks(rows, self.subject.limit))
        with self.model_run.mended(self.explainer.mends.get(name, ())):
            parts = [as_tuple(method.attribute(self.subject, part)) for part in copies]
        return bare(tuple(widened(torch.cat(column)) for column in zip(*parts, strict=True)))

    def _arranged(self, name: str, found: Attribution, rows: Rows) -> tuple[Tensor, ...] | None:
        """How an attribution lies on the image (see ``maps.arrange``)."""
        own = getattr(innermost(self.explainer.methods[name]), "arranged", None)
        return own(self.subject, found, rows.inputs) if own else arrange(as_tuple(found), rows.inputs)

    def _score(
        self, name: str, found: Mapping[str, Attribution], maps: Mapping[str, tuple[Tensor, ...]]
    ) -> dict[str, Mapping[str, Score]]:
        metric: Metric = self.explainer.metrics[name]
        scored: dict[str, dict[str, Score]] = {}
        wanted = getattr(metric, "methods", None)
        for subject, names in self._functions(name for name in found if wanted is None or name in wanted):
            case = self._case(subject, {k: found[k] for k in names}, {k: maps[k] for k in names if k in maps})
            for suffix, score in metric.score(case).items():
                scored.setdefault(f"{name}_{suffix}" if suffix else name, {}).update(score)
        return dict(scored)

    def _functions(self, names: Iterable[str]) -> list[tuple[Subject, list[str]]]:
        """Methods that explain the same function, which is the output but for neuron methods; they are scored together."""
        subjects = {
            name: getattr(self.explainer.methods[name], "focused", lambda subject: subject)(self.subject)
            for name in names
        }
        alone = [(subject, [name]) for name, subject in subjects.items() if subject is not self.subject]
        together = [name for name, subject in subjects.items() if subject is self.subject]
        return [(self.subject, together), *alone] if together or not alone else alone

    def _case(self, subject: Subject, found: Mapping[str, Attribution], maps: Mapping[str, tuple[Tensor, ...]]) -> Case:
        def again(rows: Rows) -> dict[str, tuple[Tensor, ...]]:
            moved = self._attributions(maps, rows)
            arranged = {key: self._arranged(key, value, rows) for key, value in moved.items()}
            return {key: onto(value, rows.inputs) for key, value in arranged.items() if value is not None}

        references = {key: getattr(self.explainer.methods[key], "reference", None) for key in found}
        return Case(
            subject=subject,
            rows=self.rows,
            outputs=self.values if subject is self.subject else subject.evaluate(self.rows),
            maps=maps,
            explain=again,
            masks=self.probe.masks,
            attributions=found,
            attribute=lambda rows: self._attributions(found, rows),
            references={key: reference for key, reference in references.items() if reference is not None},
        )


def innermost(method: Method) -> Any:
    """The method inside all that is around it."""
    inner = getattr(method, "attribution_method", None)
    return method if inner is None else innermost(inner)


def within_memory(work: Callable[[int], T], limit: int) -> tuple[T, int]:
    """What the work gives, in passes of half the size each time the device runs out of memory, and the size that fits."""
    while True:
        try:
            return work(limit), limit
        except torch.OutOfMemoryError:
            if limit == 1:
                raise
        # Outside of the handler: the exception keeps the frames, and so the tensors, of the failed pass.
        limit //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _errors(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Tensor]]:
    found = {
        key: {m: error.cpu() for m, (_, error) in score.items() if error is not None} for key, score in scores.items()
    }
    return {key: by_method for key, by_method in found.items() if by_method}


def _untold(
    found: Mapping[str, Attribution], arranged: Mapping[str, tuple[Tensor, ...] | None], inputs: tuple[Tensor, ...]
) -> dict[str, tuple[Tensor, ...]]:
    """The maps that pictures could not make from an attribution's shape; an empty tuple where they would make one."""
    by_shape = {name: arrange(as_tuple(value), inputs) for name, value in found.items()}

    def told(name: str) -> bool:
        as_found = as_tuple(found[name])[0]
        return all(way is not None and way[0] is as_found for way in (arranged[name], by_shape[name]))

    untold = [name for name in found if not told(name) and not (arranged[name] is by_shape[name] is None)]
    return {name: tuple(v.cpu() for v in arranged[name] or ()) for name in untold}


def _on_cpu(value: Attribution) -> Attribution:
    return bare(tuple(v.cpu() for v in as_tuple(value)))
