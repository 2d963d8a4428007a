"""The whole flow without a Trainer: probe, guard, methods, metrics, report."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_explain import methods as method_classes
from lightning_explain import metrics as metric_classes
from lightning_explain.baselines import Baselines, Normalization
from lightning_explain.doctor import acted_upon, doctor
from lightning_explain.draws import KeyedDraws
from lightning_explain.forward import (
    Explained,
    ForwardFn,
    OutputFn,
    Target,
    check_target,
    choose,
    find_layer,
    last_feature_map,
    predictions_of,
    target_indices,
)
from lightning_explain.guard import KEEPERS, Run, explaining
from lightning_explain.maps import to_input_space
from lightning_explain.naming import build
from lightning_explain.probe import fingerprint
from lightning_explain.types import (
    Attribution,
    Case,
    Mend,
    Method,
    Metric,
    Probe,
    Report,
    Rows,
    Score,
    Subject,
    Verdict,
    as_tuple,
    bare,
)

T = TypeVar("T")
R = TypeVar("R")
Requests = Mapping[str, Any] | Sequence[Any] | None
Progress = Callable[[str], None]

METHODS: dict[str, type] = {name: getattr(method_classes, name) for name in method_classes.__all__}
METRICS: dict[str, type] = {name: getattr(metric_classes, name) for name in metric_classes.__all__}
AUTO_LIMIT = 32


def build_methods(requests: Requests) -> dict[str, Method]:
    """Methods as the user writes them, by name; ``None``: saliency, integrated gradients, Grad-CAM."""
    if requests is None:
        requests = {
            "saliency": method_classes.Saliency(abs=False),
            "ig": method_classes.IntegratedGradients(n_steps=32),
            "cam": method_classes.LayerGradCam(),
        }
    return build(requests, METHODS, "method", Method)


def build_metrics(requests: Requests) -> dict[str, Metric]:
    """Metrics as the user writes them, by name; ``None``: infidelity and sensitivity."""
    if requests is None:
        requests = [metric_classes.Infidelity(), metric_classes.SensitivityMax()]
    return build(requests, METRICS, "metric", Metric)


@dataclass(frozen=True, eq=False)
class Explainer:
    """Everything that is decided before the first explanation, and the explanation itself.

    Args:
        methods: By name.
        metrics: By name.
        target: Which output is explained.
        seed: Key of all random draws.
        limit: Rows the model may see in one call.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: The tensor ``(N, ...)`` in what the model returns.
        normalization: ``(mean, std)`` of image inputs, for the black baseline.
        forward_context: Entered around each forward, such as autocast.
        optional_layers: Leave out layer methods that find no layer by themselves, with a warning, instead of refusing.
        raising: Whether a failure ends the explanation; otherwise it is noted in ``Report.failures``.
        mends: What the doctor found necessary, for each method; :meth:`check` fills it in.
    """

    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    target: Target = "label"
    seed: int = 0
    limit: int = AUTO_LIMIT
    forward_fn: ForwardFn = None
    output_fn: OutputFn = None
    normalization: Normalization | None = None
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext
    optional_layers: bool = False
    raising: bool = True
    mends: Mapping[str, tuple[Mend, ...]] = field(default_factory=dict)

    def check(self, model: nn.Module, probe: Probe) -> Explainer:
        """Runs the model once on the probe, and refuses what cannot be explained; returns itself with the layers named.

        Raises:
            ValueError: If the target, a layer or a metric does not fit the model or the probe.
        """
        for name, metric in self.metrics.items():
            if getattr(metric, "needs_masks", False) and probe.masks is None:
                raise ValueError(
                    f"The metric {name!r} needs masks: give Probe(masks=...), a boolean region (N, H, W), or leave it out."
                )
        for name, method in self.methods.items():
            if len(probe) < _rows_needed(method):
                raise ValueError(
                    f"The method {name!r} ({type(method).__name__}) looks at several rows at a time, at least "
                    f"{_rows_needed(method)}, but the probe has {len(probe)}; choose more rows or leave it out."
                )
        methods, layer = self.methods, self.default_layer(model, probe)
        if layer is None and self.optional_layers:
            methods = {name: method for name, method in methods.items() if getattr(method, "layer", 0) is not None}
            for name in set(self.methods) - set(methods):
                warnings.warn(
                    f"{name!r} is left out: no module of this model returns a map (N, C, h, w).", stacklevel=2
                )
        named = {name: with_layer(m, name, layer) for name, m in methods.items()}
        return replace(self, methods=named, mends=acted_upon(self.verdicts(model, probe, named)))

    def default_layer(self, model: nn.Module, probe: Probe) -> str | None:
        """The layer of layer methods that name none: the last with a feature map; found by running the model on the probe."""
        with explaining(model, self.forward_context) as run:
            explained, rows = self._start(model, probe, run)
            return last_feature_map(model, lambda: self._target_rows(explained, rows, probe))

    def verdicts(self, model: nn.Module, probe: Probe, methods: Mapping[str, Method]) -> list[Verdict]:
        """What the doctor says of the methods on this model."""
        try:
            return doctor(
                model,
                methods,
                probe,
                target=self.target,
                forward_fn=self.forward_fn,
                output_fn=self.output_fn,
                forward_context=self.forward_context,
                limit=self.limit,
            )
        except torch.OutOfMemoryError:
            warnings.warn("The methods are not checked on this model: a few rows at once do not fit.", stacklevel=2)
            return []

    def explain(self, model: nn.Module, probe: Probe, progress: Progress = lambda step: None) -> Report:
        """Explains the probe's rows; the model is as before afterwards."""
        started = time.perf_counter()
        with explaining(model, self.forward_context) as run:
            explained, rows = self._start(model, probe, run)
            (rows, outputs, values), limit = self._target_rows(explained, rows, probe)
            subject = self._subject(model, explained, rows, limit)
            report = _Explanation(self, run, subject, rows, values, probe, progress).run()
        return replace(
            report,
            outputs=outputs,
            predictions=predictions_of(outputs),
            targets=target_indices(outputs, self.target, probe.targets),
            ids=probe.row_ids.cpu(),
            passes=explained.passes,
            seconds=time.perf_counter() - started,
            fingerprint=fingerprint(probe),
        )

    def _start(self, model: nn.Module, probe: Probe, run: Callable[..., Any]) -> tuple[Explained, Rows]:
        like = next((p for p in model.parameters()), torch.empty(0))
        inputs = tuple(_moved(x, like) for x in as_tuple(probe.inputs))
        extra = tuple(x.to(like.device) if isinstance(x, Tensor) else x for x in probe.forward_args)
        ids = probe.row_ids.cpu()
        rows = Rows(inputs, inputs, extra, ids, torch.zeros_like(ids))
        return Explained(model, run, self.target, self.forward_fn, self.output_fn), rows

    def _target_rows(self, explained: Explained, rows: Rows, probe: Probe) -> tuple[tuple[Rows, Tensor, Tensor], int]:
        """The rows with their target, all outputs on the CPU, the explained number of each row; and the limit that fits."""
        outputs, limit = _within_memory(partial(_outputs, explained, rows), self.limit)
        indices = target_indices(outputs.cpu(), self.target, probe.targets).to(outputs.device)
        values = choose(outputs, indices, self.target)
        return (replace(rows, extra=(*rows.extra, indices)), outputs.cpu(), values), limit

    def _subject(self, model: nn.Module, explained: Explained, rows: Rows, limit: int) -> Subject:
        # Ordered by id, so that a random choice from the probe does not depend on the order of its rows.
        order = rows.ids.argsort(stable=True)
        baselines = Baselines(tuple(x[order.to(x.device)] for x in rows.inputs), self.normalization)
        return Subject(
            forward=explained,
            layer=lambda name: find_layer(model, str(name)),
            baseline=baselines.points,
            distribution=baselines.distribution,
            draws=KeyedDraws(self.seed),
            limit=limit,
            probe=rows,
        )


def _outputs(explained: Explained, rows: Rows, limit: int) -> Tensor:
    """All outputs of all rows, at most ``limit`` rows at a time."""
    with torch.no_grad():
        parts = [explained.outputs(*part.inputs, *part.extra) for part in rows.split(limit)]
    if any(len(o) != len(p) for o, p in zip(parts, rows.split(limit), strict=True)):
        raise ValueError(
            f"The model returned {[len(o) for o in parts]} rows for {[len(p) for p in rows.split(limit)]}; "
            "its output must be (N, ...), one entry for each row (see output_fn)."
        )
    return torch.cat(parts)


def _within_memory(work: Callable[[int], T], limit: int) -> tuple[T, int]:
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


def _moved(x: Tensor, like: Tensor) -> Tensor:
    """The rows where the weights are, and as precise as they are."""
    dtype = like.dtype if x.is_floating_point() and like.is_floating_point() else x.dtype
    return x.detach().to(like.device, dtype, copy=True)


def _rows_needed(method: Method) -> int:
    inner = getattr(method, "attribution_method", method)
    return int(getattr(inner, "rows_needed", 1))


def with_layer(method: Method, name: str, layer: str | None) -> Method:
    """The method at this layer, unless it names one or needs none.

    Raises:
        ValueError: If it needs a layer, and there is none.
    """
    inner = getattr(method, "attribution_method", None)
    if inner is not None:
        return replace(method, attribution_method=with_layer(inner, name, layer))  # type: ignore[type-var]
    if not hasattr(method, "layer") or method.layer is not None:
        return method
    if layer is None:
        raise ValueError(
            f"The method {name!r} ({type(method).__name__}) has no layer, and no module of this model returns a map "
            "(N, C, h, w); give layer=... or leave it out."
        )
    return replace(method, layer=layer)  # type: ignore[type-var]


@dataclass(eq=False)
class _Explanation:
    """One explanation while it runs inside the guard."""

    explainer: Explainer
    model_run: Run
    subject: Subject
    rows: Rows
    values: Tensor
    probe: Probe
    progress: Progress

    def __post_init__(self) -> None:
        self.failures: dict[str, str] = {}

    def run(self) -> Report:
        found = self._attempt(self.explainer.methods, lambda method, name: self._attribute(name, self.rows))
        maps = {name: to_input_space(as_tuple(value), self.rows.inputs) for name, value in found.items()}
        placed = {name: value for name, value in maps.items() if value is not None}
        scored = self._attempt(self.explainer.metrics, lambda metric, name: self._score(metric, name, found, placed))
        scores = {key: score for by_key in scored.values() for key, score in by_key.items()}
        empty = torch.empty(0)
        return Report(
            attributions={name: _on_cpu(value) for name, value in found.items()},
            scores={key: {m: value.cpu() for m, (value, _) in score.items()} for key, score in scores.items()},
            standard_errors=_errors(scores),
            outputs=empty,
            predictions=empty,
            targets=empty,
            ids=empty,
            failures=self.failures,
        )

    def _attempt(self, requests: Mapping[str, R], work: Callable[[R, str], T]) -> dict[str, T]:
        """What the work gives for each request; a failure is raised, or noted and left out."""
        results = {}
        for name, request in requests.items():
            self.progress(name)
            try:
                results[name] = self._alone(partial(work, request, name))
            except Exception:
                if self.explainer.raising:
                    raise
                self.failures[name] = traceback.format_exc()
        return results

    def _alone(self, work: Callable[[], T]) -> T:
        """Does the work in passes that fit into memory, and removes the hooks that it leaves behind if it fails."""

        def within(limit: int) -> T:
            self.subject = replace(self.subject, limit=limit)
            with KEEPERS["hooks"](self.subject.forward):
                return work()

        return _within_memory(within, self.subject.limit)[0]

    def _attribute(self, name: str, rows: Rows) -> Attribution:
        method = self.explainer.methods[name]
        # A method may write into its rows; the next one needs them as well.
        copies = (part.at(tuple(x.clone() for x in part.inputs)) for part in rows.split(self.subject.limit))
        with self.model_run.mended(self.explainer.mends.get(name, ())):
            parts = [as_tuple(method.attribute(self.subject, part)) for part in copies]
        return bare(tuple(_precise(torch.cat(column)) for column in zip(*parts, strict=True)))

    def _score(
        self, metric: Metric, name: str, found: Mapping[str, Attribution], maps: Mapping[str, tuple[Tensor, ...]]
    ) -> dict[str, Mapping[str, Score]]:
        scored: dict[str, dict[str, Score]] = {}
        for subject, names in self._functions(found):
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
        return [(self.subject, [name for name, subject in subjects.items() if subject is self.subject]), *alone]

    def _case(self, subject: Subject, found: Mapping[str, Attribution], maps: Mapping[str, tuple[Tensor, ...]]) -> Case:
        def again(rows: Rows) -> dict[str, tuple[Tensor, ...]]:
            moved = {key: to_input_space(as_tuple(self._attribute(key, rows)), rows.inputs) for key in maps}
            return {key: value for key, value in moved.items() if value is not None}

        references = {key: getattr(self.explainer.methods[key], "reference", None) for key in found}
        return Case(
            subject=subject,
            rows=self.rows,
            outputs=self.values if subject is self.subject else subject.evaluate(self.rows),
            maps=maps,
            explain=again,
            masks=self.probe.masks,
            attributions=found,
            attribute=lambda rows: {key: self._attribute(key, rows) for key in found},
            references={key: reference for key, reference in references.items() if reference is not None},
        )


def _errors(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, Tensor]]:
    found = {
        key: {m: error.cpu() for m, (_, error) in score.items() if error is not None} for key, score in scores.items()
    }
    return {key: by_method for key, by_method in found.items() if by_method}


def _precise(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _on_cpu(value: Attribution) -> Attribution:
    return bare(tuple(v.cpu() for v in as_tuple(value)))


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
) -> Report:
    """Explains fixed rows without a Trainer, and leaves the model as it was.

    Args:
        model: Any module; it is explained where its weights are.
        probe: The rows.
        methods: A mapping of names to methods, or a list of methods or class names. Default: saliency, ig, cam.
        metrics: The same for metrics. Default: Infidelity and SensitivityMax.
        target: ``"label"`` (predicted where there are no labels), ``"predicted"``, an int, a tuple such as (class, row, column), or a
            callable ``(N, ...) -> (N,)``.
        seed: Key of all random draws; they belong to the row, so equal seeds give equal numbers in any order or chunk.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: The tensor ``(N, ...)`` in what the model returns.
        normalization: ``(mean, std)`` for each channel, undone for the black baseline.
        max_examples_per_pass: Rows the model may see in one call; ``"auto"`` is 32.

    Returns:
        The report.

    Raises:
        ValueError: If an argument does not fit the model or the probe.
        TypeError: If an argument is of a kind that is not allowed.
    """
    check_target(target)
    explainer = Explainer(
        methods=build_methods(methods),
        metrics=build_metrics(metrics),
        target=target,
        seed=seed,
        limit=check_limit(max_examples_per_pass) or AUTO_LIMIT,
        forward_fn=forward_fn,
        output_fn=output_fn,
        normalization=normalization,
        optional_layers=methods is None,
    )
    return explainer.check(model, probe).explain(model, probe)


def check_limit(value: int | str) -> int | None:
    """``max_examples_per_pass`` as a number, ``None`` for ``"auto"``.

    Raises:
        ValueError: If it is neither.
    """
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'max_examples_per_pass={value!r}; allowed: "auto" or a whole number of at least 1.')
    return value
