"""One explanation, from the first pass to the report, inside the isolation and on one or several ranks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Score
from lightning_explain.core.naming import score_name
from lightning_explain.core.points import CENTER, widened
from lightning_explain.core.probe import Attribution, Probe, Samples, as_tuple, bare
from lightning_explain.core.regions import label_masks
from lightning_explain.core.report import Report, SumCheck
from lightning_explain.core.warn import warn_or_log
from lightning_explain.distributed.collectives import LostRanksError
from lightning_explain.distributed.ranks import ALONE, ELSEWHERE, Ranks
from lightning_explain.distributed.trees import check_entries
from lightning_explain.engine.executor import Found, PlanExecution, execute, joined
from lightning_explain.engine.pass_size import Held, memory_errors, within_memory
from lightning_explain.engine.plan import Plan, batches, plan
from lightning_explain.engine.rules import INSTEAD
from lightning_explain.engine.shifts import shifted
from lightning_explain.methods import steps_taken
from lightning_explain.modalities.placement import arrange, explicit_maps, onto
from lightning_explain.model.targets import Choice, predictions_of

T = TypeVar("T")
# The most numbers for each sample that a report keeps of outputs with more than two dimensions.
_MOST_OUTPUTS = 1000
Progress = Callable[[str], None]
Work = Callable[[str], Any]
Placed = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Decisions:
    """Settings that are fixed before an explanation starts.

    Args:
        methods: Methods by name.
        metrics: Metrics by name.
        target: Which output is explained; a mapping of names to that, for several.
        raising: Whether a failure ends the explanation; otherwise it is recorded in ``Report.failures``.
        ranks: The processes that explain together, each its share of the samples; by default this process alone.
        task: What the model was trained for; see ``ExplanationMonitor``.
        warned: Methods whose incomplete maps were warned of before.
        held: How many samples in a pass fit into memory, which explanations find out.
    """

    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    target: Any = "label"
    raising: bool = True
    ranks: Ranks = ALONE
    task: str = "auto"
    warned: set[str] = field(default_factory=set)
    held: Held = field(default_factory=Held)


@dataclass(eq=False)
class Explanation:
    """Explains samples by all methods, and scores the maps by all metrics.

    Args:
        decided: The settings.
        explained: The explained function; the last further argument of its probe is the labels.
        probe: The samples as the user gave them.
        progress: Called with the name of each method and metric.
        past: Returns the maps of samples in earlier explanations, as ``MetricInputs.history`` holds them.
        failures: For each method or metric that failed on this rank, the traceback.
    """

    decided: Decisions
    explained: ExplainedFunction
    probe: Probe
    progress: Progress
    past: Callable[[Samples], Mapping[str, Mapping[str, tuple[Tensor, ...]]]] = lambda samples: {}
    failures: dict[str, str] = field(default_factory=dict)
    _refused: bool = False
    _checks: dict[str, SumCheck] = field(default_factory=dict)
    _draws: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._places: slice | Tensor = slice(None)
        self._own = len(self.explained.probe)
        if self.decided.ranks.world > 1:
            self._places, self._own = self.decided.ranks.samples(self._own)
        self.samples = self.explained.probe[self._places]
        self.values = torch.empty(0)
        self.facts: Mapping[str, Tensor] = {}

    @cached_property
    def _plan(self) -> Plan:
        return plan(self.decided.methods)

    def run(self) -> Report:
        """Returns the report, without the total cost; it is the same on all ranks, except for its failures."""
        return self.completed(*self._first_execution())

    def restrict(self, count: int) -> None:
        """Explains only the first ``count`` samples from now on, whose targets are chosen, on this process alone."""
        self._places = slice(count)
        self.samples, self.values = self.explained.probe[:count], self.values[:count]
        self.facts = {name: fact[:count] for name, fact in self.facts.items()}

    def completed(self, outputs: Tensor, found: dict[str, Attribution]) -> Report:
        """Runs what shares no passes, and returns the report.

        Args:
            outputs: All outputs of these samples, ``(N, ...)``.
            found: The attributions by the methods that share passes; those by the others are added.
        """
        ranks = self.decided.ranks
        self._attempt(found, self._plan.apart, self._alone)
        self._leave_out_unlike(found)
        places: dict[str, tuple[Placed | None, Placed]] = {}
        self._attempt(places, found, lambda name: self._placed(name, found[name]), shown=False)
        found = {name: found[name] for name in self.decided.methods if name in places}
        arranged = {name: places[name][0] for name in found}
        placed = {name: maps for name in found if (maps := places[name][1])}
        scored: dict[str, dict[str, Mapping[str, Score]]] = {}
        self._attempt(scored, self.decided.metrics, lambda name: self._score(name, found, placed))
        self._leave_out_unlike(scored)
        scores = {key: score for by_key in scored.values() for key, score in by_key.items()}
        with ranks.agree("the report"):
            mine = self._parts(outputs, found, arranged, scores, scored)
        whole, probe = ranks.together(mine, self._own), self.explained.probe
        if self.probe.entries is not None:
            whole["explained"] = {**whole["explained"], "sample": self.probe.entries[:, 0].cpu()}
        checks = {name: SumCheck(*columns.unbind(1)) for name, columns in whole.pop("checks").items()}
        self._warn_of_misses(checks)
        return Report(
            **whole,
            targets=_indices(probe.extra[-1].cpu(), whole["outputs"]),
            ids=probe.ids,
            task="" if self.decided.task == "auto" else self.decided.task,
            failures=self.failures,
            completeness_errors={name: check.error for name, check in checks.items()},
            undefined_reasons={
                score_name(name, suffix): reason
                for name, metric in self.decided.metrics.items()
                for suffix, reason in metric.undefined.items()
                if suffix in metric.suffixes
            },
        )

    def _warn_of_misses(self, checks: Mapping[str, SumCheck]) -> None:
        """Warns, once for each method, of maps whose sum misses f(x) - f(baseline)."""
        for name, check in checks.items():
            count = int(check.missed.sum())
            if not count or name in self.decided.warned:
                continue
            self.decided.warned.add(name)
            worst = (check.error.abs() * check.missed).argmax()
            warn_or_log(
                f"{name!r}: the map misses f(x) - f(baseline) on {count} of {len(check.error)} samples, at most by "
                f"{check.error[worst].abs():.3g} where that is {check.change[worst]:.3g}. DeepLIFT has no rule for something in the "
                "model, such as a product, a division, or an activation that is not a function of torch; or eps is large. For maps that "
                f"add up, {INSTEAD}."
            )

    def _placed(self, name: str, found: Attribution) -> tuple[Placed | None, Placed]:
        """Returns an attribution arranged as it lies on the image, and upsampled to its size; ``None, ()`` without a place there."""
        arranged = self._arranged(name, found, self.samples)
        return arranged, () if arranged is None else onto(arranged, self.samples.inputs, self.explained.modalities)

    def _parts(
        self,
        outputs: Tensor,
        found: Mapping[str, Attribution],
        arranged: Mapping[str, Placed | None],
        scores: Mapping[str, Mapping[str, Score]],
        scored: Iterable[str],
    ) -> dict[str, Any]:
        """Returns the fields of the report for the samples of this rank."""
        steps = {name: steps_taken(self.decided.methods[name], self.explained, self.samples) for name in found}
        errors = {key: {m: e for m, (_, e) in score.items() if e is not None} for key, score in scores.items()}
        parts: dict[str, Any] = {
            "attributions": dict(found),
            "scores": {key: {m: value for m, (value, _) in score.items()} for key, score in scores.items()},
            "standard_errors": {key: by_method for key, by_method in errors.items() if by_method},
            "outputs": _kept(outputs),
            "predictions": self._predictions(outputs),
            "values": self.values,
            "explained": self.facts,
            "maps": explicit_maps(found, arranged, self.samples.inputs, self.explained.modalities),
            "n_steps": {name: taken for name, taken in steps.items() if taken is not None},
            "n_draws": {name: taken for name, taken in self._draws.items() if name in scored},
            "checks": {name: torch.stack(check, 1) for name, check in self._checks.items() if name in found},
        }
        on_cpu: dict[str, Any] = _on_cpu(parts)
        return on_cpu

    def _predictions(self, outputs: Tensor) -> Tensor:
        """The predicted class of each sample ``(N,)``; of a detector that of its highest score, 0 where nothing is detected."""
        detections = self.decided.task == "detection" and outputs.ndim == 3
        return outputs[:, 0, 5].clamp(min=0).round().long() if detections else predictions_of(outputs)

    def _first_execution(self) -> tuple[Tensor, dict[str, Attribution]]:
        """Returns all outputs of these samples, and their attributions by all methods that share passes."""
        methods, ranks = self.decided.methods, self.decided.ranks
        try:
            return self.with_targets(self._plan)
        except Exception as error:
            if self.decided.raising or isinstance(error, LostRanksError) or any(ranks.gather(self._refused)):
                raise
            # Reported on the rank that failed only; the other ranks stopped because of it.
            reason = "" if isinstance(error, ELSEWHERE) else traceback.format_exc()
        # One method failed: run each by itself, so that the others succeed. If the model failed, it fails again.
        outputs, found = self.with_targets(plan({}))
        on_path = [name for name in methods if name not in self._plan.apart]
        self._attempt(found, on_path, self._alone)
        with ranks.agree("reporting a failed pass"):
            if reason and not self.failures:
                warn_or_log(
                    f"ExplanationMonitor: a pass failed, but every method succeeded when it ran by itself:\n{reason}",
                    RuntimeWarning,
                )
        return outputs, found

    def with_targets(self, planned: Plan) -> tuple[Tensor, dict[str, Attribution]]:
        """Runs the plan on this rank's samples, and chooses their targets; ranks then exchange those of the probe."""
        ranks = self.decided.ranks
        with ranks.agree("the methods"):
            outputs, indices, self.values, found = self._executed(planned)
        chosen = ranks.together(indices, self._own).to(indices.device)
        probe = self.explained.probe
        self.explained = replace(self.explained, probe=replace(probe, extra=(*probe.extra[:-1], chosen)))
        self.samples = self.explained.probe[self._places]
        return outputs, found

    def _executed(self, planned: Plan) -> tuple[Tensor, Tensor, Tensor, dict[str, Attribution]]:
        if not len(self.samples):
            none = self.samples.ids
            return none, none, none, {}
        parts, self._checks = self._within(
            lambda: self._checked(
                lambda explained: [self._begun(explained, planned, b) for b in batches(self.samples, explained.limit)]
            )
        )
        outputs, indices, values = (torch.cat(column) for column in zip(*(p[:3] for p in parts), strict=True))
        found, facts = joined([part[3] for part in parts]), [part[4] for part in parts]
        self.facts = {name: torch.cat([each[name] for each in facts]) for name in facts[0]}
        for name in found:
            self.progress(name)
        return outputs, indices, values, found

    def _begun(
        self, explained: ExplainedFunction, planned: Plan, samples: Samples
    ) -> tuple[Tensor, Tensor, Tensor, Found, Mapping[str, Tensor]]:
        choice, batch = (
            Choice(self.decided.target, samples.extra[-1], samples.ids),
            PlanExecution(explained, planned, samples),
        )
        try:
            found = batch.run(choice)
        finally:
            self._refused = choice.refused
        return choice.outputs, choice.indices, batch.outputs[CENTER], found, choice.facts

    def _attempt(self, found: dict[str, Any], names: Iterable[str], work: Work, shown: bool = True) -> None:
        """Puts the result of ``work(name)`` into ``found`` for each name; ``shown``: as a step of the progress.

        A failure is raised, or recorded on the rank where it happened and left out on all ranks.
        """
        ranks = self.decided.ranks
        with ranks.agree("a method or metric"):
            failed = list(self._each(found, names, work, shown)) if len(self.samples) else []
        for name in ranks.failing(failed):
            found.pop(name, None)

    def _each(self, found: dict[str, Any], names: Iterable[str], work: Work, shown: bool) -> Iterator[str]:
        """Runs ``work`` for each name, and yields the names that failed."""
        for name in names:
            if shown:
                self.progress(name)
            try:
                found[name] = self._within(partial(work, name))
                if self.decided.ranks.world > 1:
                    check_entries(found[name], len(self.samples))
            except Exception as error:
                if self.decided.raising or isinstance(error, LostRanksError):
                    raise
                if not isinstance(error, ELSEWHERE):
                    self.failures[name] = traceback.format_exc()
                yield name

    def _leave_out_unlike(self, found: dict[str, Any]) -> None:
        """Leaves out, on all ranks, results whose form differs between ranks, and records them as failures."""
        ranks = self.decided.ranks
        odd = ranks.unlike(found, self._own)
        with ranks.agree("a method or metric"):
            for name, text in odd.items() if self.decided.raising else ():
                raise ValueError(f"{name!r} differs over ranks: {text}")
        self.failures.update(odd)
        for name in ranks.failing(odd):
            found.pop(name, None)

    def _within(self, work: Callable[[], T]) -> T:
        """Runs the work in passes that fit into memory, and removes hooks that it leaves behind."""
        function: Any = self.explained.forward
        before, held = self.explained, self.decided.held

        def within(limit: int) -> T:
            self.explained = replace(self.explained, limit=limit)
            try:
                with self.decided.ranks.in_step(), memory_errors():
                    return work()
            finally:
                function.remove_hooks()

        try:
            found, limit = within_memory(within, before.limit)
        except Exception:
            # What fails in passes of one sample says nothing about what others need.
            self.explained = replace(self.explained, limit=before.limit)
            raise
        if limit < before.limit:
            held.limit = held.most(limit)
        return found

    def _attributions(
        self, names: Iterable[str], explained: ExplainedFunction, samples: Samples
    ) -> dict[str, Attribution]:
        """Returns the attributions of samples by the named methods."""
        methods = {name: self.decided.methods[name] for name in names}
        apart = plan(methods).apart
        found = execute(explained, {name: m for name, m in methods.items() if name not in apart}, samples)
        return {name: self._apart(explained, name, samples) if name in apart else found[name] for name in methods}

    def _checked(self, work: Callable[[ExplainedFunction], T]) -> tuple[T, dict[str, SumCheck]]:
        """Returns the result of the work, and the checks of the DeepLIFT sums of these samples, by method."""
        noted: dict[str, list[SumCheck]] = {}
        found = work(replace(self.explained, sum_checks=noted))
        joined = {name: SumCheck(*map(torch.cat, zip(*checks, strict=True))) for name, checks in noted.items()}
        return found, {name: check for name, check in joined.items() if len(check.error) == len(self.samples)}

    def _alone(self, name: str) -> Attribution:
        """Returns the attribution of these samples by one method, and keeps its checks."""
        found, checks = self._checked(lambda explained: self._apart(explained, name, self.samples))
        # A method that runs by itself has no name there.
        for check in checks.values():
            self._checks[name] = check
        return found

    def _apart(self, explained: ExplainedFunction, name: str, samples: Samples) -> Attribution:
        """Returns the attribution by one method, which runs by itself."""
        method = self.decided.methods[name]
        # Copied, because a method may write into its samples, which the next one needs as well.
        copies = (part.at(tuple(x.clone() for x in part.inputs)) for part in batches(samples, explained.limit))
        parts = [as_tuple(method.attribute(explained, part)) for part in copies]
        found = tuple(widened(torch.cat(column)) for column in zip(*parts, strict=True))
        _check_map(found, len(samples))
        return bare(found)

    def _arranged(self, name: str, found: Attribution, samples: Samples) -> tuple[Tensor, ...] | None:
        """Returns an attribution arranged as it lies on the image (see ``modalities.placement.arrange``)."""
        how = self.decided.methods[name].innermost.arrangement(self.explained, found)
        return arrange(as_tuple(found), samples.inputs, self.explained.modalities, how)

    def _score(self, name: str, found: Mapping[str, Attribution], maps: Found) -> dict[str, Mapping[str, Score]]:
        metric: Metric = self.decided.metrics[name]
        scored: dict[str, dict[str, Score]] = {}
        wanted = [n for n in found if metric.methods is None or n in metric.methods]
        wanted = [n for n in wanted if metric.can_score(self.decided.methods[n], self.explained)]
        for explained, names in self.functions(wanted):
            explanations, placed = {k: found[k] for k in names}, {k: maps[k] for k in names if k in maps}
            metric_inputs = self._metric_inputs(explained, explanations, placed)
            for suffix, score in metric.score(metric_inputs).items():
                _check_score(score)
                scored.setdefault(score_name(name, suffix), {}).update(score)
            if metric_inputs.n_draws:
                self._draws.setdefault(name, {}).update(metric_inputs.n_draws)
        return dict(scored)

    def functions(self, names: Iterable[str]) -> list[tuple[ExplainedFunction, list[str]]]:
        """Groups methods by the function they explain, the output or a neuron, because a group is scored together."""
        explained = {name: self.decided.methods[name].focused(self.explained) for name in names}
        alone = [(explained, [name]) for name, explained in explained.items() if explained is not self.explained]
        together = [name for name, explained in explained.items() if explained is self.explained]
        return [(self.explained, together), *alone] if together or not alone else alone

    def _metric_inputs(
        self, explained: ExplainedFunction, found: Mapping[str, Attribution], maps: Found
    ) -> MetricInputs:
        def again(samples: Samples, shifts: Mapping[str, Tensor] = MappingProxyType({})) -> Found:
            moved = self._attributions(maps, *shifted(self.explained, samples, shifts))
            arranged = {key: self._arranged(key, value, samples) for key, value in moved.items()}
            modalities = self.explained.modalities
            return {k: onto(v, samples.inputs, modalities) for k, v in arranged.items() if v is not None}

        references = {key: self.decided.methods[key].completeness for key in found}
        return MetricInputs(
            explained=explained,
            samples=self.samples,
            outputs=self.values if explained is self.explained else explained.evaluate(self.samples),
            maps=maps,
            explain=again,
            masks=label_masks(self.facts, self.samples.inputs)
            if self.probe.masks is None
            else self.probe.masks[self._places],
            attributions=found,
            attribute=lambda samples: self._attributions(found, self.explained, samples),
            references={key: reference for key, reference in references.items() if reference is not None},
            methods={key: self.decided.methods[key] for key in found},
            history=self.past(self.samples),
        )


def _on_cpu(tree: Any) -> Any:
    """Tensors in dictionaries and tuples on the CPU."""
    if isinstance(tree, dict):
        return {key: _on_cpu(part) for key, part in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(_on_cpu, tree))
    return tree.cpu() if isinstance(tree, Tensor) else tree


def _kept(outputs: Tensor) -> Tensor:
    """The outputs, or ``(N, 0)`` if they are dense: those would be by far the largest part of a report."""
    return outputs if outputs.ndim <= 2 or outputs[0].numel() <= _MOST_OUTPUTS else outputs.new_empty(len(outputs), 0)


def _indices(chosen: Tensor, outputs: Tensor) -> Tensor:
    """The indices of the explained outputs, ``(N,)``; -1 where places of a dense output or several outputs were chosen."""
    if chosen.ndim == 1:
        return chosen
    single = ((chosen >= 0).sum(1) == 1) & (chosen.shape[1:] == outputs.shape[1:])
    return chosen.amax(1).where(single, -1)


def _check_map(found: Placed, count: int) -> None:
    """Refuses what no report can hold, so that it is this method's failure and not the report's."""
    for part in found:
        if part.layout != torch.strided or len(part) != count:
            layout = str(part.layout).removeprefix("torch.")
            raise ValueError(
                f"It gives {tuple(part.shape)} ({layout}) for {count} samples; return dense tensors (N, ...)."
            )


def _check_score(score: Mapping[str, Score]) -> None:
    for method, (value, error) in score.items():
        if not isinstance(value, Tensor) or not (error is None or isinstance(error, Tensor)):
            raise TypeError(
                f"The score of {method!r} is ({type(value).__name__}, {type(error).__name__}); return two tensors (N,), the "
                "values and their standard errors, or a tensor and None."
            )
