"""One explanation while it runs inside the guard."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import Case, Method, Metric, Score, Subject, innermost
from lightning_explain.core.points import CENTER, widened
from lightning_explain.core.probe import Attribution, Probe, Rows, as_tuple, bare
from lightning_explain.core.report import Report
from lightning_explain.core.verdict import Mend
from lightning_explain.distributed.collectives import LostRanksError
from lightning_explain.distributed.ranks import ALONE, ELSEWHERE, Ranks, check_rows
from lightning_explain.engine.executor import Block, joined, sweep
from lightning_explain.engine.layer_maps import untold
from lightning_explain.engine.pass_size import within_memory
from lightning_explain.engine.plan import Plan, blocks, plan
from lightning_explain.methods import steps_taken
from lightning_explain.modalities.image import arrange, onto
from lightning_explain.model.inventory import Parts
from lightning_explain.model.isolation import KEEPERS, Run
from lightning_explain.model.targets import Choice, Target, predictions_of

T = TypeVar("T")
Progress = Callable[[str], None]
Placed = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Decisions:
    """What an explanation goes by.

    Args:
        methods: By name.
        metrics: By name.
        target: Which output is explained.
        raising: Whether a failure ends the explanation; otherwise it is noted in ``Report.failures``.
        mends: What the doctor found necessary, for each method.
        ranks: The processes that explain together, each a share of the rows; by default this one alone.
    """

    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    target: Target = "label"
    raising: bool = True
    mends: Mapping[str, tuple[Mend, ...]] = field(default_factory=dict)
    ranks: Ranks = ALONE


@dataclass(eq=False)
class Explanation:
    """Rows explained by all methods, and scored by all metrics.

    Args:
        decided: What was decided before.
        model_run: Calls the model, with mends if need be.
        subject: The explained function; the last further argument of its probe is the labels.
        probe: The rows as the user gave them.
        progress: Called with the name of each method and metric.
        past: The maps of rows in earlier explanations, as ``Case.history`` holds them.
    """

    decided: Decisions
    model_run: Run
    subject: Subject
    probe: Probe
    progress: Progress
    past: Callable[[Rows], Mapping[str, Mapping[str, tuple[Tensor, ...]]]] = lambda rows: {}
    failures: dict[str, str] = field(default_factory=dict)
    _refused: bool = False

    def __post_init__(self) -> None:
        self.rows, self._own = self.subject.probe, len(self.subject.probe)
        if self.decided.ranks.world > 1:
            self._places, self._own = self.decided.ranks.rows(len(self.rows))
            self.rows = self.rows[self._places]

    def run(self) -> Report:
        """The report, without what the whole explanation cost; the same on all ranks but for its failures."""
        ranks = self.decided.ranks
        self.subject = replace(self.subject, mended=self._mended)
        outputs, found = self._first_sweep()
        self._attempt(found, plan(self.decided.methods).apart, lambda name: self._apart(name, self.rows))
        self._leave_out_unlike(found, self.decided.methods)
        found = {name: found[name] for name in self.decided.methods if name in found}
        arranged, placed = ranks.agreed(partial(self._placed, found))
        scored: dict[str, dict[str, Mapping[str, Score]]] = {}
        self._attempt(scored, self.decided.metrics, lambda name: self._score(name, found, placed))
        self._leave_out_unlike(scored, self.decided.metrics)
        scores = {key: score for by_key in scored.values() for key, score in by_key.items()}
        mine = ranks.agreed(lambda: self._parts(outputs, found, arranged, scores))
        whole, probe = ranks.together(mine, self._own), self.subject.probe
        return Report(
            **whole,
            predictions=predictions_of(whole["outputs"]),
            targets=probe.extra[-1].cpu(),
            ids=probe.ids,
            failures=self.failures,
        )

    def _placed(self, found: Mapping[str, Attribution]) -> tuple[dict[str, Placed | None], dict[str, Placed]]:
        """How the attributions lie on the image, and the maps upsampled to it."""
        arranged = {name: self._arranged(name, value, self.rows) for name, value in found.items()}
        return arranged, {k: onto(value, self.rows.inputs) for k, value in arranged.items() if value is not None}

    def _parts(
        self,
        outputs: Tensor,
        found: Mapping[str, Attribution],
        arranged: Mapping[str, Placed | None],
        scores: Mapping[str, Mapping[str, Score]],
    ) -> dict[str, Any]:
        """What the report says of these rows."""
        return {
            "attributions": {name: _on_cpu(value) for name, value in found.items()},
            "scores": {key: {m: value.cpu() for m, (value, _) in score.items()} for key, score in scores.items()},
            "standard_errors": _errors(scores),
            "outputs": outputs.cpu(),
            "maps": untold(found, arranged, self.rows.inputs),
            "n_steps": {name: steps for name in found if (steps := self._steps(name)) is not None},
        }

    def _first_sweep(self) -> tuple[Tensor, dict[str, Attribution]]:
        """All outputs of these rows, and their attributions by all methods that share passes."""
        methods, ranks = self.decided.methods, self.decided.ranks
        try:
            return self.with_targets(plan(methods))
        except LostRanksError:
            raise
        except Exception as error:
            if self.decided.raising or not ranks.all(not self._refused):
                raise
            # On the other ranks it is told nowhere: they gave up because of this one.
            reason = "" if isinstance(error, ELSEWHERE) else traceback.format_exc()
        # One of them failed: each for itself, so that the others are explained. If it was the model, it fails again.
        outputs, found = self.with_targets(plan({}))
        streamed = [name for name in methods if name not in plan(methods).apart]
        self._attempt(found, streamed, lambda name: sweep(self.subject, {name: methods[name]}, self.rows)[name])
        if reason and not self.failures:
            warnings.warn(
                f"ExplanationMonitor: a pass failed, and all was well when it was tried again:\n{reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return outputs, found

    def with_targets(self, planned: Plan) -> tuple[Tensor, dict[str, Attribution]]:
        """Chooses the targets, of these rows and then of all: what looks at the whole probe needs them too."""
        ranks = self.decided.ranks
        outputs, indices, self.values, found = ranks.agreed(partial(self._swept, planned))
        chosen = ranks.together(indices, self._own).to(indices.device)
        probe = self.subject.probe
        self.subject = replace(self.subject, probe=replace(probe, extra=(*probe.extra[:-1], chosen)))
        self.rows = self.subject.probe if ranks.world == 1 else self.subject.probe[self._places]
        return outputs, found

    def _swept(self, planned: Plan) -> tuple[Tensor, Tensor, Tensor, dict[str, Attribution]]:
        if not len(self.rows):
            none = self.rows.ids
            return none, none, none, {}
        parts = self._within(lambda: [self._begun(planned, block) for block in blocks(self.rows, self.subject.limit)])
        outputs, indices, values = (torch.cat(column) for column in zip(*(p[:3] for p in parts), strict=True))
        found = joined([part[3] for part in parts])
        for name in found:
            self.progress(name)
        return outputs, indices, values, found

    def _begun(self, planned: Plan, rows: Rows) -> tuple[Tensor, Tensor, Tensor, dict[str, tuple[Tensor, ...]]]:
        choice, block = Choice(self.decided.target, rows.extra[-1]), Block(self.subject, planned, rows)
        try:
            found = block.run(choice)
        finally:
            self._refused = choice.refused
        return choice.outputs, choice.indices, block.outputs[CENTER], found

    def _attempt(self, found: dict[str, Any], names: Iterable[str], work: Callable[[str], Any]) -> None:
        """What the work finds for each name; a failure is raised, or noted where it happened and left out on all ranks."""
        names, ranks, failed = list(names), self.decided.ranks, set[str]()
        if len(self.rows):
            ranks.agreed(lambda: failed.update(self._each(found, names, work)))
        else:
            ranks.agreed(lambda: None)
        for name in ranks.failing(names, failed):
            found.pop(name, None)

    def _each(self, found: dict[str, Any], names: Iterable[str], work: Callable[[str], Any]) -> Iterator[str]:
        """Does the work for each name, and gives the names that failed."""
        for name in names:
            self.progress(name)
            try:
                found[name] = self._within(partial(work, name))
                if self.decided.ranks.world > 1:
                    check_rows(found[name], len(self.rows))
            except LostRanksError:
                raise
            except ELSEWHERE:
                if self.decided.raising:
                    raise
                yield name
            except Exception:
                if self.decided.raising:
                    raise
                self.failures[name] = traceback.format_exc()
                yield name

    def _leave_out_unlike(self, found: dict[str, Any], names: Iterable[str]) -> None:
        """Leaves out, on all ranks, what is of another form on some: it has failed there."""
        ranks = self.decided.ranks
        odd = ranks.unlike(found, self._own)
        if self.decided.raising:
            ranks.agreed(partial(_raise_first, odd))
        self.failures.update(odd)
        for name in ranks.failing(list(names), odd):
            found.pop(name, None)

    def _within(self, work: Callable[[], T]) -> T:
        """Does the work in passes that fit into memory, and removes the hooks that it leaves behind if it fails."""

        def within(limit: int) -> T:
            self.subject = replace(self.subject, limit=limit)
            with KEEPERS["hooks"](Parts(self.subject.forward)):
                return self.decided.ranks.in_step(work)

        return within_memory(within, self.subject.limit)[0]

    def _attributions(self, names: Iterable[str], rows: Rows) -> dict[str, Attribution]:
        """The attributions of rows by these methods."""
        methods = {name: self.decided.methods[name] for name in names}
        apart = plan(methods).apart
        found = sweep(self.subject, {name: m for name, m in methods.items() if name not in apart}, rows)
        return {name: self._apart(name, rows) if name in apart else found[name] for name in methods}

    def _apart(self, name: str, rows: Rows) -> Attribution:
        """The attribution by a method that shares nothing."""
        method = self.decided.methods[name]
        # A method may write into its rows; the next one needs them as well.
        copies = (part.at(tuple(x.clone() for x in part.inputs)) for part in blocks(rows, self.subject.limit))
        with self._mended([name]):
            parts = [as_tuple(method.attribute(self.subject, part)) for part in copies]
        return bare(tuple(widened(torch.cat(column)) for column in zip(*parts, strict=True)))

    def _mended(self, names: Sequence[str]) -> AbstractContextManager[Any]:
        """What is mended for these methods; what is mended already where they need nothing."""
        mends = dict.fromkeys(mend for name in names for mend in self.decided.mends.get(name, ()))
        return self.model_run.mended(mends) if mends else nullcontext()

    def _arranged(self, name: str, found: Attribution, rows: Rows) -> tuple[Tensor, ...] | None:
        """How an attribution lies on the image (see ``maps.arrange``)."""
        own = getattr(innermost(self.decided.methods[name]), "arranged", None)
        return own(self.subject, found, rows.inputs) if own else arrange(as_tuple(found), rows.inputs)

    def _steps(self, name: str) -> Tensor | None:
        return steps_taken(self.decided.methods[name], self.subject, self.rows)

    def _score(
        self, name: str, found: Mapping[str, Attribution], maps: Mapping[str, tuple[Tensor, ...]]
    ) -> dict[str, Mapping[str, Score]]:
        metric: Metric = self.decided.metrics[name]
        scored: dict[str, dict[str, Score]] = {}
        wanted = getattr(metric, "methods", None)
        for subject, names in self.functions(name for name in found if wanted is None or name in wanted):
            case = self._case(subject, {k: found[k] for k in names}, {k: maps[k] for k in names if k in maps})
            for suffix, score in metric.score(case).items():
                _check_score(score)
                scored.setdefault(f"{name}_{suffix}" if suffix else name, {}).update(score)
        return dict(scored)

    def functions(self, names: Iterable[str]) -> list[tuple[Subject, list[str]]]:
        """Methods that explain the same function, which is the output but for neuron methods; they are scored together."""
        subjects = {
            name: getattr(self.decided.methods[name], "focused", lambda subject: subject)(self.subject)
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

        references = {key: getattr(self.decided.methods[key], "reference", None) for key in found}
        return Case(
            subject=subject,
            rows=self.rows,
            outputs=self.values if subject is self.subject else subject.evaluate(self.rows),
            maps=maps,
            explain=again,
            masks=self._masks(),
            attributions=found,
            attribute=lambda rows: self._attributions(found, rows),
            references={key: reference for key, reference in references.items() if reference is not None},
            history=self.past(self.rows),
        )

    def _masks(self) -> Tensor | None:
        masks = self.probe.masks
        return masks if masks is None or self.decided.ranks.world == 1 else masks[self._places.to(masks.device)]


def _check_score(score: Mapping[str, Score]) -> None:
    for method, (value, error) in score.items():
        if not isinstance(value, Tensor) or not (error is None or isinstance(error, Tensor)):
            raise TypeError(
                f"Its score of {method!r} is ({type(value).__name__}, {type(error).__name__}); allowed: two tensors (N,), the "
                "values and their standard errors, or a tensor and None."
            )


def _raise_first(failures: Mapping[str, str]) -> None:
    for name, text in failures.items():
        raise ValueError(f"{name!r} differs over ranks: {text}")


def _errors(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Tensor]]:
    found = {
        key: {m: error.cpu() for m, (_, error) in score.items() if error is not None} for key, score in scores.items()
    }
    return {key: by_method for key, by_method in found.items() if by_method}


def _on_cpu(value: Attribution) -> Attribution:
    return bare(tuple(v.cpu() for v in as_tuple(value)))
