"""From model, probe, methods and metrics to a report, without a Trainer."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.checks.doctor import MOST_SAMPLES, doctor, unexamined
from lightning_explain.checks.preflight import (
    check_explained,
    check_finite,
    check_ids,
    check_normalization,
    check_requests,
    model_error,
    preflight,
    scored_by,
)
from lightning_explain.checks.verdicts import acted_upon
from lightning_explain.core.contracts import ExplainedFunction, Method, Metric
from lightning_explain.core.probe import Probe, Samples, as_tuple
from lightning_explain.core.report import PassCount, Report
from lightning_explain.core.validation import check_whole
from lightning_explain.core.verdict import Verdict
from lightning_explain.distributed.collectives import collectives_called, reporting_failures
from lightning_explain.distributed.ranks import ELSEWHERE
from lightning_explain.engine.baselines import Baselines, Normalization
from lightning_explain.engine.draws import KeyedDraws
from lightning_explain.engine.executor import execute
from lightning_explain.engine.layer_maps import check_place, has_map
from lightning_explain.engine.pass_size import fastest, within_memory
from lightning_explain.explainer.cost import Forecast, forecast
from lightning_explain.explainer.history import History, history_of
from lightning_explain.explainer.registry import (
    AUTO_LIMIT,
    Requests,
    UncheckedError,
    build_methods,
    build_metrics,
    check_limit,
    warn_of_unsigned,
)
from lightning_explain.explainer.run import Decisions, Explanation, Progress
from lightning_explain.modalities import guess
from lightning_explain.model.function import ForwardFn, OutputFn, TargetFunction, samples_for
from lightning_explain.model.isolation import Run, explaining
from lightning_explain.model.layers import find_layer, last_feature_map
from lightning_explain.model.targets import (
    Choice,
    OutputError,
    Target,
    check_samples,
    check_target,
    choose,
    target_indices,
)
from lightning_explain.probes.selection import fingerprint


@dataclass(frozen=True, eq=False)
class Explainer(Decisions):
    """All settings of an explanation, with the checks before it and the explanation itself.

    Further fields: :class:`~lightning_explain.explainer.run.Decisions`.

    Args:
        seed: Key of all random draws.
        limit: Most samples in one call of the model.
        channels_last: Whether images ``(N, C, H, W)`` go through the model in ``torch.channels_last`` memory format.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: Selects the tensor ``(N, ...)`` in what the model returns.
        normalization: ``(mean, std)`` of image inputs, for the black baseline.
        forward_context: Entered around each forward, such as autocast.
        optional_layers: Leave out layer methods without a layer if no default layer is found, with a warning, instead of raising.
        optional_metrics: Leave out metrics that cannot score such inputs, with a warning, instead of raising.
        scored: For each metric, the methods that it will score; filled in by :meth:`check`.
    """

    seed: int = 0
    limit: int = AUTO_LIMIT
    channels_last: bool = False
    forward_fn: ForwardFn = None
    output_fn: OutputFn = None
    normalization: Normalization | None = None
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    optional_layers: bool = False
    optional_metrics: bool = False
    scored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def check(self, model: nn.Module, probe: Probe) -> Explainer:
        """Checks everything on the model and the probe, and returns the explainer with all layers named.

        With several ranks, call it on all of them: it also detects models that call collectives of their own.

        Raises:
            ValueError: If the target, a layer or a metric does not fit the model or the probe.
            FailedElsewhereError: If another rank raised.
        """
        with self.ranks.agree("the check of the model"):
            ready, needs_others = self._checked(model, probe)
        return replace(ready, ranks=self.ranks.in_company(needs_others))

    def _checked(self, model: nn.Module, probe: Probe) -> tuple[Explainer, bool]:
        """Returns the explainer with the layers named, and whether the model called collectives."""
        called = collectives_called()
        check_ids(probe)
        check_finite(probe)
        check_normalization(self.normalization, probe)
        check_requests(self.methods, self.metrics, probe)
        methods, layer = self.methods, self.default_layer(model, probe)
        if layer is None and self.optional_layers:
            methods = {name: method for name, method in methods.items() if not method.innermost.needs_layer}
            for name in set(self.methods) - set(methods):
                warnings.warn(
                    f"{name!r} is left out: no module of this model returns a map (N, C, h, w). Give methods with a layer to keep it.",
                    stacklevel=2,
                )
        named = {name: _at(layer, name, method) for name, method in methods.items()}
        metrics = self._fitted(probe)
        self._preflight_method(model, probe, named)
        acted_upon(self.verdicts(model, probe, named))
        scored = scored_by(metrics, named, self._with_maps(model, probe, named))
        ready = replace(self, methods=named, metrics=metrics, scored=scored)
        return ready, collectives_called() > called

    def _fitted(self, probe: Probe) -> dict[str, Metric]:
        """Returns the metrics fitted to the inputs; leaves out default metrics that cannot score them."""
        inputs, found = as_tuple(probe.inputs), {}
        for name, metric in self.metrics.items():
            try:
                found[name] = metric.fitted(inputs, guess(inputs))
            except ValueError as error:
                if not self.optional_metrics:
                    raise
                warnings.warn(f"{name!r} is left out: {error}", stacklevel=2)
        return found

    def _with_maps(self, model: nn.Module, probe: Probe, methods: Mapping[str, Method]) -> list[str]:
        """Returns the names of the methods whose map has a place in input space."""
        with explaining(model, self.forward_context) as run:
            explained, sample = self._first_sample(model, probe, run)
            return [name for name, method in methods.items() if has_map(method, explained, sample)]

    def _preflight_method(self, model: nn.Module, probe: Probe, methods: Mapping[str, Method]) -> None:
        """Checks that every method fits the samples and its layer."""
        with explaining(model, self.forward_context) as run:
            explained, sample = self._first_sample(model, probe, run)
            for name, method in methods.items():
                inner = method.innermost
                preflight(name, inner, explained, sample)
                if inner.reshape not in (None, "none"):
                    check_place(name, inner, explained, sample)

    def _first_sample(self, model: nn.Module, probe: Probe, run: Run) -> tuple[ExplainedFunction, Samples]:
        """Returns the explained function, and a sample whose target is chosen from its output."""
        target_function, samples = self._start(model, probe, run)
        choice = Choice(self.target, None if probe.targets is None else probe.targets[:1].cpu())
        return self._explained(model, target_function, samples), replace(
            samples[:1], extra=(*samples[:1].extra, choice)
        )

    def default_layer(self, model: nn.Module, probe: Probe) -> str | None:
        """Returns the default layer of layer methods: the last with a feature map when the model runs on the probe."""
        with explaining(model, self.forward_context) as run:
            target_function, samples = self._start(model, probe, run)
            return last_feature_map(model, lambda: self._check_targets(target_function, samples, probe))

    def pass_size(self, model: nn.Module, probe: Probe) -> int:
        """Returns the fastest number of samples per pass, at most ``limit``."""
        if self.ranks.sharded:
            # Not timed: ranks of a sharded model would have to run the same number of passes.
            return self.limit
        with explaining(model, self.forward_context) as run:
            target_function, samples = self._start(model, probe, run)

            def some(count: int) -> Samples:
                chosen = torch.arange(count) % len(samples)
                labels = None if probe.targets is None else probe.targets.cpu()[chosen]
                return replace(samples[chosen], extra=(*samples[chosen].extra, Choice(self.target, labels)))

            return fastest(self._explained(model, target_function, samples), some, self.limit)

    def verdicts(self, model: nn.Module, probe: Probe, methods: Mapping[str, Method]) -> list[Verdict]:
        """Returns the doctor's verdicts on the methods on this model.

        Raises:
            UncheckedError: If the doctor fails, unless ``raising`` is set.
        """

        def within(limit: int) -> list[Verdict]:
            with self.ranks.in_step():
                return doctor(
                    model,
                    methods,
                    probe,
                    target=self.target,
                    forward_fn=self.forward_fn,
                    output_fn=self.output_fn,
                    forward_context=self.forward_context,
                    limit=limit,
                )

        try:
            return within_memory(within, min(self.limit, MOST_SAMPLES))[0]
        except torch.OutOfMemoryError:
            warnings.warn(
                "The methods are not checked on this model: two samples at once do not fit into memory; use smaller inputs.",
                stacklevel=2,
            )
            return unexamined(methods)
        except Exception as error:
            if self.raising or isinstance(error, ELSEWHERE):
                raise
            raise UncheckedError(f"The model doctor failed: {error}") from error

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
        started, own = time.perf_counter(), fingerprint(probe)
        with ExitStack() as stack:
            with self.ranks.agree("the preparation of the model"):
                explanation, target_function = self._begun(stack, model, probe, progress)
            if history is not None:
                explanation.past = partial(history.of, own)
            with reporting_failures(explanation.failures):
                self.ranks.share_buffers(model)
                report = explanation.run()
                sent = target_function.passes
                passes = PassCount(*self.ranks.total(sent.forward, sent.backward))
        return replace(
            report,
            passes=passes,
            seconds=time.perf_counter() - started,
            fingerprint=own,
        )

    def forecast(self, model: nn.Module, probe: Probe) -> Forecast:
        """Forecasts the cost of the explanation from that of one and of two samples; leaves the model as it was."""
        with ExitStack() as stack:
            explanation, target_function = self._begun(stack, model, probe, lambda step: None)
            return forecast(explanation, lambda: target_function.passes)

    def _begun(
        self, stack: ExitStack, model: nn.Module, probe: Probe, progress: Progress
    ) -> tuple[Explanation, TargetFunction]:
        """Enters the isolation on the stack, and returns the explanation and the function that it explains."""
        run = stack.enter_context(explaining(model, self.forward_context))
        target_function, samples = self._start(model, probe, run, self.ranks.synchronized)
        labels = None if probe.targets is None else probe.targets.cpu()
        explained = self._explained(model, target_function, replace(samples, extra=(*samples.extra, labels)))
        return Explanation(self, explained, probe, progress), target_function

    def _check_targets(self, target_function: TargetFunction, samples: Samples, probe: Probe) -> None:
        """Runs the model on the probe, and checks that its outputs have the targets."""
        try:
            outputs, _ = within_memory(partial(_outputs, target_function, samples), self.limit)
        except (torch.OutOfMemoryError, OutputError):
            raise
        except (RuntimeError, IndexError, TypeError) as error:
            raise model_error(error, probe) from error
        if target_function.choices > 1:
            warnings.warn(
                f"The model returns {target_function.choices} tensors, of which the first, {tuple(outputs.shape)}, is explained; to "
                "choose another, or to silence this warning, give output_fn=lambda output: output[0].",
                stacklevel=2,
            )
        indices = target_indices(outputs, self.target, probe.targets)
        check_explained(choose(outputs, indices, self.target), probe)

    def _start(
        self, model: nn.Module, probe: Probe, run: Run, synchronized: Callable[..., Any] = lambda run: run
    ) -> tuple[TargetFunction, Samples]:
        return TargetFunction(model, run, self.target, self.forward_fn, self.output_fn, synchronized), samples_for(
            model, probe
        )

    def _explained(self, model: nn.Module, target_function: TargetFunction, samples: Samples) -> ExplainedFunction:
        # Sorted by id, so that random choices from the probe do not depend on the order of its samples.
        order = samples.ids.argsort(stable=True)
        inputs, modalities = tuple(x[order.to(x.device)] for x in samples.inputs), guess(samples.inputs)
        baselines = Baselines(inputs, self.normalization, samples.ids, modalities)
        return ExplainedFunction(
            forward=target_function,
            layer=lambda name: find_layer(model, str(name)),
            baseline=baselines.points,
            distribution=baselines.distribution,
            draws=KeyedDraws(self.seed),
            limit=self.limit,
            probe=samples,
            execute=execute,
            channels_last=self.channels_last,
            modalities=modalities,
        )


def _at(layer: str | None, name: str, method: Method) -> Method:
    """The method at that layer; an error begins with the method's name."""
    try:
        return method.at(layer)
    except ValueError as error:
        raise ValueError(f"The method {name!r}: {error}") from None


def _outputs(target_function: TargetFunction, samples: Samples, limit: int) -> Tensor:
    """Returns all outputs of all samples, on the CPU, from passes of at most ``limit`` samples."""
    with torch.no_grad():
        parts = [(len(part), target_function.outputs(*part.inputs, *part.extra).cpu()) for part in samples.split(limit)]
    for count, found in parts:
        check_samples(found, count)
    return torch.cat([found for _, found in parts])


def explain(
    model: nn.Module,
    probe: Probe,
    methods: Requests = None,
    metrics: Requests = None,
    target: Target = "label",
    seed: int = 0,
    *,
    forward_fn: ForwardFn = None,
    output_fn: OutputFn = None,
    normalization: Normalization | None = None,
    max_examples_per_pass: int | str = "auto",
    channels_last: bool = False,
    history: Sequence[Report] = (),
) -> Report:
    """Explains a model on fixed samples, without a Trainer, and returns maps and scores; leaves the model as it was.

    Args:
        model: Any module; it is explained on the device of its weights.
        probe: N samples, with their labels if there are any.
        methods: A mapping of names to methods, or a list of methods or class names. Default: saliency, ig, cam.
        metrics: The same for metrics. Default: Infidelity and SensitivityMax.
        target: The explained output: ``"label"`` (the prediction where there are no labels), ``"predicted"``, an int, a
            tuple such as (class, row, column), or a callable ``(N, ...) -> (N,)``.
        seed: Key of all random draws. Draws belong to a sample: equal seeds give equal numbers in any order and chunk.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: Selects the tensor ``(N, ...)`` in what the model returns.
        normalization: ``(mean, std)`` for each channel, to compute the black baseline.
        max_examples_per_pass: Most samples in one call of the model; ``"auto"`` is 64.
        channels_last: Whether images ``(N, C, H, W)`` go through the model in that memory format; see
            ``ExplanationMonitor``.
        history: Reports of the same samples, the oldest first, for metrics such as ``Drift``.

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
    check_target(target)
    check_whole("", "seed", seed, least=0)
    explainer = Explainer(
        methods=build_methods(methods),
        metrics=build_metrics(metrics),
        target=target,
        seed=seed,
        limit=check_limit(max_examples_per_pass) or AUTO_LIMIT,
        channels_last=channels_last,
        forward_fn=forward_fn,
        output_fn=output_fn,
        normalization=normalization,
        optional_layers=methods is None,
        optional_metrics=metrics is None,
    )
    warn_of_unsigned(explainer.methods, explainer.metrics)
    past = history_of(history, probe)
    return explainer.check(model, probe).explain(model, probe, history=past)
