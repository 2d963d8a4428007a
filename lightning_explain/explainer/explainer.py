"""From model, probe, methods and metrics to a report, without a Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.checks.doctor import DoctorContext
from lightning_explain.checks.frames import frames_among_samples
from lightning_explain.checks.inputs import lookups, settled
from lightning_explain.checks.preflight import UncheckedError, granted, preflight
from lightning_explain.checks.requests import faults
from lightning_explain.core.containers import resolved
from lightning_explain.core.contracts import ExplainedFunction, Lookup, Method
from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Probe, Samples
from lightning_explain.core.record import Record
from lightning_explain.core.report import PassCount, Report
from lightning_explain.core.schema import LARGEST_SEED
from lightning_explain.core.serialization import fingerprint, frozen
from lightning_explain.core.validation import check_whole, elapsed
from lightning_explain.core.verdict import Verdict
from lightning_explain.core.warn import warn_or_log
from lightning_explain.distributed.collectives import collectives_called, reporting_failures
from lightning_explain.distributed.ranks import ELSEWHERE
from lightning_explain.engine.baselines import Baselines
from lightning_explain.engine.executor import execute
from lightning_explain.engine.memory import keep_freed_memory
from lightning_explain.engine.pass_size import fastest
from lightning_explain.explainer import several
from lightning_explain.explainer.cost import Estimate, Forecast, estimate, forecast
from lightning_explain.explainer.history import History, history_of
from lightning_explain.explainer.registry import (
    AUTO_LIMIT,
    Requests,
    alternatives,
    build_methods,
    build_metrics,
    build_modalities,
    build_target,
    check_limit,
    check_task,
    fitting,
    warn_of_unsigned,
)
from lightning_explain.explainer.run import Decisions, Explanation, Progress
from lightning_explain.modalities import of_probe
from lightning_explain.modalities.image import Normalization
from lightning_explain.model.function import ForwardFn, OutputFn, TargetFunction, samples_for
from lightning_explain.model.heads import SharedCalls
from lightning_explain.model.isolation import Run, explaining
from lightning_explain.model.layers import find_layer
from lightning_explain.model.targets import Choice, Target
from lightning_explain.probes.binding import bound
from lightning_explain.probes.signature import signature_of
from lightning_explain.targets.entries import by_label, labels_of, remark


@dataclass(frozen=True, eq=False)
class Explainer(Decisions):
    """All settings of an explanation, with the checks before it and the explanation itself.

    Further fields: :class:`~lightning_explain.explainer.run.Decisions`.

    Args:
        seed: Key of all random draws.
        limit: Most samples in one call of the model.
        auto_limit: Whether the user left that open; a run without a graph, which keeps nothing, then takes four times as many.
        channels_last: Whether images ``(N, C, H, W)`` go through the model in ``torch.channels_last`` memory format.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: Selects the tensor ``(N, ...)`` in what the model returns.
        normalization: ``(mean, std)`` of image inputs, for the black baseline.
        forward_context: Entered around each forward, such as autocast.
        default_methods: Whether the user named no methods: what cannot be used is left out, with a warning, instead of raising.
        default_metrics: The same for metrics.
        scored: For each metric, the methods that it will score; filled in by :meth:`check`.
        estimate: What an explanation will cost; filled in by :meth:`check` if it is asked for.
        modalities: What the inputs are, as the user says it; :meth:`check` settles it for the probe, as a tuple.
        feature_names: The names that the data set has for the columns of a table.
        task_line: What the task is, and what the target means for it, in words; filled in by :meth:`check`.
        lookups: Embedding layers with what they look up of the inputs; filled in by :meth:`check`.
        parts: Of several targets, the explainer of each, by its name; filled in by :meth:`check`.
        part: The name of the target, of one of several.
        labels_at: Finds the labels of the target, of one of several outputs.
    """

    seed: int = 0
    limit: int = AUTO_LIMIT
    auto_limit: bool = False
    channels_last: bool = False
    forward_fn: ForwardFn = None
    output_fn: OutputFn = None
    normalization: Normalization | None = None
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    default_methods: bool = False
    default_metrics: bool = False
    scored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    findings: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    estimate: Estimate | None = None
    modalities: Any = None
    feature_names: tuple[str, ...] = ()
    task_line: str = ""
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    parts: Mapping[str, Explainer] = field(default_factory=dict)
    part: str = ""
    labels_at: several.HeadLabels | None = None
    frames: int = 1

    def check(self, model: nn.Module, probe: Probe, timed: bool = False) -> Explainer:
        """Checks everything on the model and the probe, and returns the explainer with all layers named.

        Enters the isolation once, and runs the model at most three times. With several ranks, call it on all of them: it also
        detects models that call collectives of their own.

        Args:
            model: The module.
            probe: The samples.
            timed: Whether to estimate the cost of an explanation.

        Raises:
            ValueError: If the target, a layer or a metric does not fit the model or the probe.
            FailedElsewhereError: If another rank raised.
        """
        with ExitStack() as stack:
            with self.ranks.agree("the check of the model"):
                run, called = stack.enter_context(explaining(model, self.forward_context)), collectives_called()
                ready = several.checked(self, model, probe, run, timed)
                needs_others = collectives_called() > called
            return replace(ready, ranks=self.ranks.in_company(needs_others))

    def checked(
        self,
        model: nn.Module,
        probe: Probe,
        run: Run,
        timed: bool,
        calls: SharedCalls,
        earlier: Record | None = None,
    ) -> tuple[Explainer, Record]:
        """The same for one target, inside the isolation, with the record of the run.

        Args:
            model: The module.
            probe: The samples.
            run: What the isolation yields.
            timed: As for :meth:`check`.
            calls: The calls of the model, which the checks of several targets share.
            earlier: The record of the check of another target.
        """
        context = self._preflight(model, probe, run, calls, earlier)
        probe = self._settled(context, model, probe, run)
        methods = fitting(probe, context) if self.default_methods else self.methods
        methods = self.called(methods)
        metrics = several.metrics_of(self.metrics, self.part)
        try:
            found = granted(
                context,
                methods,
                metrics,
                probe,
                wrong=list(faults(methods, metrics, probe, self.normalization)),
                others=alternatives,
                default_methods=self.default_methods,
                default_metrics=self.default_metrics,
            )
        except Exception as error:
            if self.raising or isinstance(error, (ValueError, TypeError, torch.OutOfMemoryError, *ELSEWHERE)):
                raise
            raise UncheckedError(f"The methods cannot be checked on this model: {error}") from error
        task = {"task": context.task.name, "target": context.task.target, "task_line": context.task.line}
        if not self.part and (line := remark(probe, context.task.target, found.methods)):
            task["task_line"] = "; but ".join(filter(None, [context.task.line, line]))
        inputs = {"modalities": probe.modalities, "lookups": context.explained.lookups}
        ready = replace(self, **vars(found), **task, **inputs, frames=context.explained.frames)
        return (ready._estimated(context) if timed else ready), context.record

    @property
    def pass_size(self) -> int:
        """Most samples in one call of the model that fit into memory by what is known."""
        return self.held.most(self.limit)

    @property
    def at_once(self) -> int:
        """Most samples in a run without a graph."""
        return 4 * self.limit if self.auto_limit else self.limit

    def labelled(self, probe: Probe) -> Probe:
        """The probe with the labels of this target, of one of several outputs; else as it is."""
        return probe if self.labels_at is None else replace(probe, targets=self.labels_at(probe), labels={})

    def _settled(self, context: DoctorContext, model: nn.Module, probe: Probe, run: Run) -> Probe:
        """The probe with what its inputs are, which the context knows from now on."""
        given = self.modalities if probe.modalities is None else probe.modalities
        probe = replace(probe, modalities=settled(given, probe, model, context.record, self.feature_names))
        known = self._explained(model, probe, run)
        parts = {name: getattr(known, name) for name in ("modalities", "baseline", "distribution")}
        frames = frames_among_samples(model, context.record, known.modalities)
        context.explained = replace(context.explained, **parts, lookups=lookups(model, context.record), frames=frames)
        return probe

    def verdicts(self, model: nn.Module, probe: Probe) -> list[Verdict]:
        """Returns the doctor's verdicts on the methods on this model."""
        found = list[Verdict]()
        with explaining(model, self.forward_context) as run:
            for part in several.parts_of(self, model, probe, run, SharedCalls()):
                own = part.labelled(probe)
                context = part._preflight(model, own, run)
                part._settled(context, model, own, run)
                found += [context.verdict(name, method) for name, method in part.called(self.methods).items()]
        return found

    def called(self, methods: Mapping[str, Method]) -> dict[str, Method]:
        """The methods by the names of their maps: of one of several targets with its name, as ``ig@age``."""
        return {f"{name}@{self.part}" if self.part else name: method for name, method in methods.items()}

    def _preflight(
        self, model: nn.Module, probe: Probe, run: Run, calls: SharedCalls | None = None, earlier: Record | None = None
    ) -> DoctorContext:
        explained = self.function(model, probe, run, calls)
        try:
            return preflight(explained, model, probe, self.target, self.at_once, self.task, self.ranks.in_step, earlier)
        finally:
            if calls is not None:
                # What follows watches the model while it runs.
                calls.end()

    def _estimated(self, context: DoctorContext) -> Explainer:
        """Estimates the cost of an explanation, taking a backward pass to cost twice the forward pass."""
        expected = estimate(context.explained, context.few[:1], self.methods, self.metrics, self.scored)
        return replace(self, estimate=replace(expected, seconds=3 * context.seconds))

    def fastest(self, model: nn.Module, probe: Probe) -> Explainer:
        """Lowers ``limit`` to the fastest number of samples per pass, as rank zero times it on passes whose results it drops.

        Leaves the model as it was. With several ranks, call it on all of them.

        Args:
            model: The module.
            probe: The samples.
        """
        if self.ranks.sharded:
            # All ranks would have to run the same number of passes.
            return self
        if self.parts:
            first = several.part_of(self, next(iter(self.parts)))
            return replace(self, limit=first.fastest(model, first.labelled(probe)).limit)
        probe, limit = self.entries(probe), self.limit
        with self.ranks.agree("the choice of the pass size"), explaining(model, self.forward_context) as run:
            explained, labels = self._explained(model, probe, run), labels_of(probe, self.target)

            def some(count: int) -> Samples:
                chosen = torch.arange(count) % len(explained.probe)
                samples = explained.probe[chosen]
                own = None if labels is None else labels.cpu()[chosen]
                return replace(samples, extra=(*samples.extra, Choice(self.target, own, samples.ids)))

            limit = fastest(explained, some, limit)
        return replace(self, limit=int(self.ranks.first(limit)))

    def explain(
        self, model: nn.Module, probe: Probe, progress: Progress = lambda step: None, history: History | None = None
    ) -> Report:
        """Explains the probe's samples and returns the report; leaves the model as it was.

        With several ranks, call it on all of them.

        Args:
            model: The module.
            probe: The samples.
            progress: Called with the name of each method and metric.
            history: Maps of earlier explanations, for metrics that compare.

        Raises:
            FailedElsewhereError: If another rank failed.
            LostRanksError: If another rank is gone, or does not arrive before the deadline.
        """
        started, probe = time.perf_counter(), self.entries(probe)
        if self.parts:
            found = several.explained(self, model, probe, progress, history)
            return replace(found, seconds=elapsed(started, time.perf_counter()))
        own = fingerprint(probe)
        with ExitStack() as stack:
            with self.ranks.agree("the preparation of the model"):
                explanation = self._begun(stack, model, probe, progress)
            if history is not None:
                explanation.past = partial(history.of, own, modalities=explanation.explained.modalities)
            with reporting_failures(explanation.failures):
                self.ranks.share_buffers(model)
                report = explanation.run()
                function: Any = explanation.explained.forward
                passes = PassCount(*self.ranks.total(function.passes.forward, function.passes.backward))
        seconds = elapsed(started, time.perf_counter())
        return replace(report, meta=probe.meta, stds=probe.stds, passes=passes, seconds=seconds, fingerprint=own)

    def forecast(self, model: nn.Module, probe: Probe) -> Forecast:
        """Forecasts the cost of the explanation from that of one and of two samples; leaves the model as it was."""
        if self.parts:
            parts = {name: several.part_of(self, name) for name in self.parts}
            return several.forecasts({n: part.forecast(model, part.labelled(probe)) for n, part in parts.items()})
        with ExitStack() as stack:
            return forecast(self._begun(stack, model, self.entries(probe), lambda step: None))

    def entries(self, probe: Probe) -> Probe:
        """The probe with what its inputs are, and with each sample once for each label or step that is explained by itself.

        Of several targets, with the labels of each, and each sample once.
        """
        if self.parts:
            labels = {name: part.labelled(probe).targets for name, part in self.parts.items()}
            known = {name: own for name, own in labels.items() if own is not None}
            return replace(probe, modalities=self.modalities, targets=None, labels=known)
        probe = self.labelled(probe)
        probe = probe if probe.modalities is self.modalities else replace(probe, modalities=self.modalities)
        return probe if self.part else by_label(probe, self.target, self.methods)

    def _begun(self, stack: ExitStack, model: nn.Module, probe: Probe, progress: Progress) -> Explanation:
        """Enters the isolation on the stack, and returns the explanation."""
        run = stack.enter_context(explaining(model, self.forward_context))
        keep_freed_memory()
        explained = self._explained(model, probe, run, (labels_of(probe, self.target),), self.ranks.synchronized)
        return Explanation(self, explained, probe, progress)

    def function(self, model: nn.Module, probe: Probe, run: Run, calls: SharedCalls | None) -> ExplainedFunction:
        """The explained function before the first explanation, whose targets are not chosen yet; its calls may be shared."""
        return self._explained(model, probe, run, calls=calls)

    def _explained(
        self,
        model: nn.Module,
        probe: Probe,
        run: Run,
        labels: tuple[Tensor | None, ...] = (),
        synchronized: Callable[..., Any] = lambda run: run,
        calls: SharedCalls | None = None,
    ) -> ExplainedFunction:
        target_function = TargetFunction(
            model, run, self.target, self.forward_fn, self.output_fn, synchronized, probe.parameters
        )
        if calls is not None:
            target_function.share(calls)
        samples, modalities = samples_for(model, probe), of_probe(probe)
        inputs, ids = samples.inputs, samples.ids.tolist()
        if ids != sorted(ids):
            # Sorted by id, so that random choices from the probe do not depend on the order of its samples.
            order = samples.ids.argsort(stable=True)
            inputs = tuple(x[order.to(x.device)] for x in inputs)
        baselines = Baselines(inputs, self.normalization, samples.ids, modalities, self.seed)
        return ExplainedFunction(
            forward=target_function,
            layer=lambda name: find_layer(model, str(name)),
            baseline=baselines.points,
            distribution=baselines.distribution,
            draws=KeyedDraws(self.seed),
            limit=self.pass_size,
            probe=replace(samples, extra=(*samples.extra, *labels)),
            execute=execute,
            channels_last=self.channels_last,
            modalities=modalities,
            stds=probe.stds,
            lookups=self.lookups,
            frames=self.frames,
        )


def explain(
    model: nn.Module,
    probe: Probe,
    methods: Requests = None,
    metrics: Requests = None,
    target: Target | Mapping[str, Any] = "label",
    seed: int = 0,
    *,
    forward_fn: ForwardFn = None,
    output_fn: OutputFn = None,
    normalization: Normalization | None = None,
    max_examples_per_pass: int | str = "auto",
    channels_last: bool = False,
    history: Sequence[Report] = (),
    modalities: Any = None,
    task: str = "auto",
) -> Report:
    """Explains a model on fixed samples, without a Trainer, and returns maps and scores; leaves the model as it was.

    Args:
        model: Any module; it is explained on the device of its weights.
        probe: N samples, with their labels if there are any.
        methods: A mapping of names to methods, or a list of methods or class names. Default: saliency, ig, cam.
        metrics: The same for metrics. Default: Infidelity and SensitivityMax, as in ``ExplanationMonitor``.
        target: The explained output: ``"label"`` (the prediction where there are no labels), ``"predicted"``, an int, a
            tuple such as (class, row, column), a callable ``(outputs)`` or ``(outputs, sample)`` that returns ``(N,)``, or one of
            ``lightning_explain.targets``, or a mapping of names to them; see ``ExplanationMonitor``.
        seed: Key of all random draws. Draws belong to a sample: equal seeds give equal numbers in any order and chunk.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: Selects the tensor ``(N, ...)`` in what the model returns.
        normalization: ``(mean, std)`` for each channel, to compute the black baseline.
        max_examples_per_pass: Most samples in one call of the model; ``"auto"`` is 64.
        channels_last: Whether images ``(N, C, H, W)`` go through the model in that memory format; see
            ``ExplanationMonitor``.
        history: Reports of the same samples, the oldest first, for metrics such as ``Drift``.
        modalities: What the inputs are; see ``ExplanationMonitor``.
        task: What the model was trained for; see ``ExplanationMonitor``.

    Returns:
        The report: ``attributions[method]`` is shaped like the inputs, ``scores[metric][method]`` is ``(N,)``.

    Raises:
        ValueError: If an argument does not fit the model or the probe, or a method would be wrong on this model.
        TypeError: If an argument has a type that is not allowed.

    Example:
        >>> report = explain(
        ...     model,
        ...     probe,
        ...     methods={"saliency": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=8)},
        ...     metrics=[q.Infidelity()],
        ... )
        >>> report.attributions["ig"].shape
        torch.Size([2, 3, 8, 8])
        >>> sorted(report.scores["infidelity"])
        ['ig', 'saliency']
        >>> report.scores["infidelity"]["ig"].shape
        torch.Size([2])
    """
    if not isinstance(model, nn.Module) or not isinstance(probe, Probe):
        raise TypeError(
            f"explain(model, probe, ...) got {type(model).__name__} and {type(probe).__name__}; "
            "give a torch.nn.Module and a Probe(inputs, targets)."
        )
    methods, metrics, target, normalization = map(resolved, (methods, metrics, target, normalization))
    target = build_target(target)
    check_whole("", "seed", seed, least=0, most=LARGEST_SEED)
    probe = bound(frozen(probe), signature_of(model, forward_fn), warn_or_log)
    explainer = Explainer(
        methods=build_methods(methods),
        metrics=build_metrics(metrics, methods is None),
        target=target,
        seed=seed,
        limit=check_limit(max_examples_per_pass) or AUTO_LIMIT,
        auto_limit=max_examples_per_pass == "auto",
        channels_last=channels_last,
        forward_fn=forward_fn,
        output_fn=output_fn,
        normalization=normalization,
        default_methods=methods is None,
        default_metrics=metrics is None,
        modalities=build_modalities(modalities),
        task=check_task(task),
    )
    warn_of_unsigned(explainer.methods, explainer.metrics)
    ready = explainer.check(model, probe)
    if not ready.parts and (line := remark(probe, ready.target, ready.methods)):
        warn_or_log(f"explain: {line}.")
    probe = ready.entries(probe)
    past = history_of(history, probe)
    if not ready.methods:
        raise ValueError("None of the default methods can be used on this model, as the warnings say; give methods=...")
    return replace(ready.explain(model, probe, history=past), probe=probe)
