"""One look at the model before the first batch: at most three runs, whose record every check reads.

All samples are run forward, a few are run once more with a graph that is recorded, and one is run alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.checks.doctor import DoctorContext
from lightning_explain.checks.findings import Finding
from lightning_explain.checks.measurements import alike
from lightning_explain.checks.requests import check_explained, check_ordinal, fitted, scored_by
from lightning_explain.checks.trace import record
from lightning_explain.checks.verdicts import as_written, in_words, lines_of
from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, Selection
from lightning_explain.core.probe import Probe, Samples, as_tuple
from lightning_explain.core.record import Record
from lightning_explain.core.regions import label_masks
from lightning_explain.core.timing import Stopwatch
from lightning_explain.core.verdict import RefusedError, Verdict
from lightning_explain.core.warn import warn_or_log
from lightning_explain.distributed.ranks import ELSEWHERE
from lightning_explain.engine.pass_size import synchronize, within_memory
from lightning_explain.model.function import TargetFunction
from lightning_explain.model.targets import OutputError, Target, choose, each_labelled, target_indices
from lightning_explain.targets.tasks import settled

SAMPLES = 3
"""Most samples whose graph is recorded."""


class UncheckedError(RuntimeError):
    """The checks themselves failed on a model that runs, so the methods are unchecked."""


def preflight(
    explained: ExplainedFunction,
    model: nn.Module,
    probe: Probe,
    target: Target,
    at_once: int,
    task: str = "auto",
    in_step: Callable[[], AbstractContextManager[None]] = nullcontext,
    earlier: Record | None = None,
) -> DoctorContext:
    """Runs the model, and returns what is known of it; call it inside the isolation.

    Args:
        explained: The explained function; its ``forward`` is a ``TargetFunction``, its probe has no targets yet.
        model: The module.
        probe: The samples as the user gave them.
        target: Which output is explained.
        at_once: Most samples in the run without a graph.
        task: What the model was trained for; ``"auto"``: its outputs and the labels tell.
        in_step: Entered around the recorded runs, such that ranks of a sharded model fail together.
        earlier: The record of another output of the same run of the model, whose results the function has.

    Raises:
        ValueError: If the model does not run on the samples, or has no such target.
    """
    function: Any = explained.forward
    samples = explained.probe
    outputs = _run_forward(runs := _Runs(function, samples.inputs[0].device), samples, probe, at_once)
    labels = None if probe.targets is None else probe.targets.cpu()
    named = probe.class_names is not None and outputs.shape[1:] == (len(probe.class_names),)
    inputs = tuple(x.cpu() for x in samples.inputs)
    target = (chosen := settled(task, target, outputs, labels, named, inputs, function.detects, probe.views)).target
    indices = target_indices(outputs, target, labels, samples.ids)
    check_explained(values := choose(outputs, indices, target, inputs), probe)
    check_ordinal(outputs, target, probe)
    facts = target.facts(outputs, labels, indices) if isinstance(target, Selection) else {}

    def recorded(count: int) -> DoctorContext:
        place = torch.arange(count).clamp(max=len(samples) - 1)
        found = Record(_different(samples[place], len(samples)), indices=indices[place], squeezed=chosen.squeezed)
        with in_step():
            if earlier is not None and len(earlier.samples) == count:
                found = replace(earlier, indices=found.indices, squeezed=found.squeezed)
                with torch.enable_grad():
                    found.outputs = function.outputs(*found.points, *found.samples.extra)
            else:
                runs.recorded(model, found)
            _check_no_pairs(outputs, found.outputs)
            found.indices = found.indices.to(found.outputs.device)
            found.chosen = choose(found.outputs, found.indices, target, found.points)
            whole = runs.compared(found, outputs, target, values)
        return DoctorContext(model, explained, found, whole, len(probe), runs.seconds, chosen, count > 1, facts)

    try:
        # Three, two, one.
        context, _ = within_memory(lambda size: recorded(min(size, SAMPLES)), 4 if explained.limit >= SAMPLES else 2)
    except (ValueError, torch.OutOfMemoryError, *ELSEWHERE):
        raise
    except Exception as error:
        raise UncheckedError(f"The methods cannot be checked on this model: {error}") from error
    if not context.examined:
        warn_or_log(
            "The methods are not checked on this model: two samples at once do not fit into memory; use smaller inputs."
        )
    return context


def _check_no_pairs(outputs: Tensor, fewer: Tensor) -> None:
    """Refuses similarities of all samples of a batch to each other, of which a sample has as many as there are samples."""
    many, few = len(outputs), len(fewer)
    if many != few and outputs.ndim > 1 and (outputs.shape[-1], fewer.shape[-1]) == (many, few):
        raise ValueError(
            f"The outputs are those of all pairs of samples: {many} for each of {many}, {few} for each of {few}. Give "
            "forward_fn=..., which returns outputs of each sample by itself, such as its embedding, with target=Norm() or Similarity(...)."
        )


def _different(samples: Samples, own: int) -> Samples:
    """Changes all but the first samples, the probe's own: whether samples influence each other takes several."""
    for i in range(own, len(samples)):
        for x in samples.inputs:
            # Half of the one before; for integers (ids), its first id everywhere.
            x[i] = x[i - 1] * 0.5 if x.is_floating_point() else x[i - 1].flatten()[0]
    return samples


@dataclass
class _Runs:
    """The time of the model's runs.

    Args:
        function: What runs the model.
        device: Where.
        seconds: That of the fastest run for each of its samples. Others also pay what is paid once, or waited for the machine.
    """

    function: TargetFunction
    device: torch.device
    seconds: float = math.inf

    @contextmanager
    def timed(self, samples: int) -> Iterator[None]:
        """Times a run on so many samples; one that fails does not count."""
        synchronize(self.device)
        watch, saved = Stopwatch(), self.function.saved
        yield
        synchronize(self.device)
        taken = watch.seconds(on_cpu=self.device.type == "cpu") + self.function.saved - saved
        self.seconds = min(self.seconds, taken / samples)

    def recorded(self, model: nn.Module, found: Record) -> None:
        """Runs the model on the samples of a record, and fills that in."""
        with self.timed(len(found.samples)):
            record(model, self.function.outputs, found)

    def compared(self, found: Record, outputs: Tensor, target: Target, values: Tensor) -> list[Finding]:
        """What :func:`alike` finds, in one run on one sample of three or on both of two; where they differ, in more, which take longer."""
        count = len(found.samples)
        if count < 2:
            return []
        with self.timed(1 if count > 2 else count):
            return alike(self.function, found, outputs, target, values)


def _run_forward(runs: _Runs, samples: Samples, probe: Probe, limit: int) -> Tensor:
    """Runs the model on all samples, at most ``limit`` at a time, and returns its outputs ``(N, ...)``, on the CPU."""

    def run(part: Samples) -> Tensor:
        with runs.timed(len(part)):
            return runs.function.outputs(*part.inputs, *part.extra).cpu()

    def outputs(limit: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([run(part) for part in samples.split(limit)])

    try:
        return within_memory(outputs, limit)[0]
    except (torch.OutOfMemoryError, OutputError):
        raise
    except (RuntimeError, LookupError, TypeError) as error:
        shapes = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in as_tuple(probe.inputs))
        kind = TypeError if isinstance(error, TypeError) else ValueError
        reason = str(error).rstrip(".")
        if isinstance(error, KeyError):
            reason = (
                f"what it gets has no {error}. Labels are not passed to it; to pass them, give batch_fn=lambda batch: "
                f"Probe({{'batch': batch}}, batch[{error}]), with the name that the argument of forward has"
            )
        raise kind(
            f"The model cannot be called with the probe's inputs {shapes} and {len(probe.forward_args)} forward_args: "
            f"{reason}. Give Probe(inputs=..., forward_args=...) as its forward takes them, or "
            "forward_fn=lambda model, x: ..., which calls the part of it that takes them, such as the discriminator of a GAN; "
            "for samples that are chosen from a loader, give batch_fn=...."
        ) from error


# -- what of the request can be carried out ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Granted:
    """What of a request can be carried out on the model.

    Args:
        methods: Methods by name, with their layers.
        metrics: Metrics by name, fitted to the inputs.
        scored: For each metric, the methods that it will score.
        findings: By method: what the doctor says of it, if anything.
        left_out: By method or metric that is left out, or scores nothing: why.
    """

    methods: Mapping[str, Method]
    metrics: Mapping[str, Metric]
    scored: Mapping[str, tuple[str, ...]]
    findings: Mapping[str, str]
    left_out: Mapping[str, str]


def granted(
    context: DoctorContext,
    methods: Mapping[str, Method],
    metrics: Mapping[str, Metric],
    probe: Probe,
    wrong: Sequence[str],
    others: Callable[[nn.Module], Mapping[str, Method]],
    *,
    default_methods: bool,
    default_metrics: bool,
) -> Granted:
    """Judges each method and metric by itself. What was asked for by name is refused; defaults are left out.

    Args:
        context: What is known of the model.
        methods: Methods by name.
        metrics: Metrics by name.
        probe: The samples as the user gave them.
        wrong: What else is wrong; sentences that end with the fix.
        others: Returns methods to propose for a model on which none of the user's can be used.
        default_methods: Whether the user named no methods.
        default_metrics: Whether the user named no metrics.

    Raises:
        RefusedError: If anything is refused; one message names all of it, and ends with a configuration that would run.
    """
    verdicts = [context.verdict(name, method) for name, method in methods.items()]
    refused = [verdict for verdict in verdicts if verdict.state == "refused"]
    usable = {v.method: methods[v.method].at(context.layer) for v in verdicts if v.state != "refused"}
    scores, unfit = dict[str, Metric](), list[Verdict]()
    if probe.masks is None:
        probe = replace(probe, masks=label_masks(context.facts, as_tuple(probe.inputs)))
    for name, metric in metrics.items():
        try:
            fit = fitted(metric, methods, probe)
            context.check_metric(fit)
            scores[name] = fit
        except ValueError as error:
            unfit.append(Verdict(name, "refused", str(error).rstrip(".")))
    lines = [*wrong, *lines_of([] if default_methods else refused, methods)]
    lines += lines_of([] if default_metrics else unfit, metrics)
    if lines:
        proposed = usable or {
            n: m for n, m in others(context.model).items() if context.verdict(n, m).state != "refused"
        }
        raise RefusedError(
            "\n".join(["These requests cannot be carried out on this model:", *lines, _runs(proposed, scores)])
        )
    for line in [*lines_of(refused, methods, " is left out:"), *lines_of(unfit, metrics, " is left out:")]:
        warn_or_log(line)
    function: Any = context.explained.forward
    choices, shape = function.choices, (len(probe), *context.record.outputs.shape[1:])
    if choices > 1:
        warn_or_log(
            f"The model returns {choices} tensors, of which the first, {shape}, is explained; to "
            f"choose another, or to silence this warning, give output_fn=lambda output: output[0].{each_labelled(probe.labels, choices)}"
        )
    for verdict in verdicts:
        if verdict.state == "warned":
            warn_or_log(lines_of([verdict], methods)[0])
    maps = [name for name, method in usable.items() if context.has_map(method)]
    scored = scored_by(context.explained, scores, usable, maps) if usable else {}
    left_out = {verdict.method: in_words(verdict) for verdict in (*refused, *unfit)}
    left_out |= {n: f"scores none of the methods; it needs {scores[n].needs}." for n, by in scored.items() if not by}
    findings = {v.method: in_words(v) for v in verdicts if v.method in usable and v.reason}
    return Granted(usable, scores, scored, findings, left_out)


def _runs(methods: Mapping[str, Method], metrics: Mapping[str, Metric]) -> str:
    """The last line of a refusal: a configuration that would run."""
    if not methods:
        return "No method would run before that is changed."
    written = [", ".join(f"{name!r}: {as_written(v)}" for name, v in part.items()) for part in (methods, metrics)]
    return f"This would run: methods={{{written[0]}}}, metrics={{{written[1]}}}."
