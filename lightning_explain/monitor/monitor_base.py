"""Takes a Trainer and its module; prepares, makes, logs and remembers explanations. ``callback.py`` decides when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.nn.parameter import is_lazy

from lightning_explain.checks.verdicts import as_written
from lightning_explain.core.probe import Probe
from lightning_explain.core.random_state import cpu_generators, cuda_generators, preserved_random_state
from lightning_explain.core.report import Report
from lightning_explain.core.run_info import RunInfo, plain, versions
from lightning_explain.core.schema import brief, one_line
from lightning_explain.core.serialization import fingerprint
from lightning_explain.core.torch_settings import torch_settings
from lightning_explain.core.validation import elapsed
from lightning_explain.core.warn import warn_or_log
from lightning_explain.distributed.collectives import reporting_failures
from lightning_explain.distributed.fsdp import resumes_otherwise
from lightning_explain.distributed.ranks import ALONE, Ranks, anything, nothing
from lightning_explain.engine.pass_size import Held
from lightning_explain.explainer.cost import Estimate
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.history import History
from lightning_explain.explainer.registry import auto_limit, every_default
from lightning_explain.explainer.several import named
from lightning_explain.loggers.packages import in_both
from lightning_explain.loggers.tags import charts, described, numberless, tags, with_suffix, without
from lightning_explain.modalities import of_probe
from lightning_explain.model.isolation import Context
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor import loaders
from lightning_explain.monitor import metric_watchers as watchers
from lightning_explain.monitor.alike import check_alike
from lightning_explain.monitor.beside import Beside
from lightning_explain.monitor.drawing import Made
from lightning_explain.monitor.failures import (
    NOTHING,
    FailureLog,
    accident,
    hook,
    hook_unless,
    no_refusal,
    rank_zero_warn_or_log,
)
from lightning_explain.monitor.first_forward import FirstForward
from lightning_explain.monitor.job import Job
from lightning_explain.monitor.probe_state import FixedSamples
from lightning_explain.monitor.publisher import Publisher
from lightning_explain.monitor.state import Broadcast, Memory, restore, saved
from lightning_explain.probes.selection import Source
from lightning_explain.render.stored import stored
from lightning_explain.targets import Horizon

_WHOLE = "the whole explanation"
MUCH = 0.2
"""Share of the training so far from which on the first explanation is worth a hint."""


class MonitorBase(pl.Callback):
    """Prepares the samples and the model, makes one explanation, and saves its state in checkpoints."""

    name: str
    """Tag prefix, folder and state key."""
    enabled: bool
    """``False`` switches everything off."""
    last_report: Report | None = None
    """The latest report, of this rank."""
    _last_model: tuple[str, int] | None = None  # of which it is: its class, and how many weights it has
    _given: dict[str, Any]  # all arguments, by name
    _defaults: dict[str, Any]  # of the arguments
    _explainer: Explainer  # methods, metrics and target, not yet checked against a model
    _ready: Explainer  # the same, checked
    _limit: int | None  # samples the model may see in one call; None: measured
    _pass_size: int | None = None  # what was measured before the first explanation
    _entries: Probe | None = None  # what is explained: the samples, or each of them once for each of its labels
    _samples: FixedSamples
    _memory: Memory
    _publisher: Publisher
    _beside: Beside | None = None  # what explains while training goes on; ``None``: training waits
    _failure_log: FailureLog
    _mismatch = ""  # what the first forward showed about the binding of batches
    _run: RunInfo | None = None  # what is true of the run, once it is prepared
    _lazy = False  # the model has parameters without a shape, so it is prepared after the first batch
    _moment: tuple[int, int] | None = None  # epoch and step of the checkpoint that is explained outside of a training
    _idle = False  # the samples or the model could not be prepared
    _unfit = False  # the strategy is none under which one can explain
    _untried = False  # beside the training, whether the worker can read the model is not known yet
    _raised: Exception | None = None  # by rank zero alone, and not yet by the others
    _asked: bool  # the user named what to explain, so that it is refused if it cannot be

    def __init__(self) -> None:
        _join_pytorch_lightning()
        super().__init__()
        self._first_forward = FirstForward(self._end_on_mismatch)

    @property
    def probe(self) -> Probe | None:
        """The fixed samples of this run; ``None`` until they are chosen."""
        return self._samples.probe

    @property
    def charts(self) -> dict[str, dict[str, list[str]]]:
        """The charts of this monitor: ``{name: {score: [tags of all methods with that score]}}``.

        A score with a unit of the output is in reports and can be monitored, but has no chart if another one says the same
        without a unit: ``infidelity`` beside ``infidelity_relative``.
        """
        ready = self._ready
        methods = named(ready.methods, ready.target) if ready is self._explainer else ready.methods
        return charts(self.name, methods, ready.metrics, ready.scored)

    def switch_on(self, what: str | None = None) -> None:
        """Switches a method, metric or sink back on that failed three times in a row; without a name, all of them.

        Call it on all ranks, at any time. Until then it stays switched off, also in runs resumed from checkpoints.
        """
        self._failure_log.switch_on(what)

    def _keys(self) -> list[str]:
        """Every logged key."""
        ready, methods = self._ready, self._methods()
        found, counted = (
            tags(name, methods, ready.metrics, ready.scored) for name in (self.name, f"{self.name}/undefined")
        )
        undefined = with_suffix(ready.metrics, lambda metric: metric.undefined.keys() & {*metric.suffixes})
        counts = [tag for score in sorted(undefined) for tag in counted.get(score, ())]
        others = [*(f"nonfinite/{method}" for method in methods), "seconds", "overhead"]
        return [
            *(tag for of_score in found.values() for tag in of_score),
            *(f"{self.name}/{o}" for o in others),
            *counts,
        ]

    def _tags_with_unit(self) -> list[str]:
        """Tags of scores whose values cannot be compared between epochs."""
        scores = with_suffix(self._ready.metrics, lambda metric: metric.incomparable)
        return [f"{self.name}/{score}/{method}" for score in scores for method in self._methods()]

    def _methods(self) -> Iterable[str]:
        """The names of the methods; before the model has been seen, those of all that may be chosen for it."""
        if self._ready is not self._explainer:
            return self._ready.methods
        possible = every_default() if self._explainer.default_methods else self._ready.methods
        return named(possible, self._explainer.target)

    def _anticipated(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys that a model with several outputs may log: which these are is known once it has been seen."""
        open_ = self._ready is self._explainer and self._explainer.target == "label"
        known = set(self._keys()) if open_ else set()
        return {key for key in keys if "@" in key and key.rpartition("@")[0] in known}

    def _watchers(self, trainer: pl.Trainer) -> watchers.Watchers:
        return watchers.watchers_of(trainer, self.name, [monitor.name for monitor in monitors_of(trainer)])

    # -- before the first batch ------------------------------------------------------------------------------------

    def _check_alike(self, trainer: pl.Trainer) -> None:
        """Checks, once for all monitors, that every rank has them, enabled or not, with the same arguments.

        Where a rank has none, nothing can be explained: the monitors of the others are switched off.
        """
        monitors = [c for c in trainer.callbacks if isinstance(c, MonitorBase)]  # type: ignore[attr-defined]
        given = {monitor.name: {**monitor._given, "enabled": monitor.enabled} for monitor in monitors}
        if self not in monitors[:1] or check_alike(trainer, given):
            return
        text = (
            f"ExplanationMonitor {brief(self.name)} is not in the Trainer of all ranks, or one of them did not reach setup in time. "
            "Nothing is explained (enabled=False); training continues. Give every rank the same callbacks."
        )
        if self._failure_log.raising:
            raise RuntimeError(text)
        warn_or_log(text)
        for monitor in monitors:
            monitor.enabled = False

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source) -> None:
        """Chooses the samples from a loader, checks methods and metrics against the model, and writes what charts there will be.

        A mistake in what the user asked for is raised on all ranks. Anything else is reported, and no rank explains.
        """
        log, everyone = self._failure_log, trainers.everyone(trainer)
        self._mismatch, self._idle, self._run, self._entries = "", True, None, None
        if self._unfit:
            return
        what, survives = "The samples or the model could not be prepared", accident if self._asked else anything
        with preserved_random_state():
            with log.preparing(what, everyone, survives) as ready:
                self._lazy = self._is_lazy(trainer, pl_module)
                if not self._lazy:
                    self._get_ready(trainer, pl_module, source)
            self._idle = self._lazy or ready.failed_rank is not None
            if self._lazy:
                return
            self._first_forward.begin_again()
            cost = ""
            with log.guard("The cost of an explanation could not be estimated", everyone):
                cost = self._say_cost(trainer)
            with log.guard("The charts could not be laid out", everyone):
                self._run = self._run_info(trainer, pl_module, cost)
                self._publisher.begin(trainer, self._run, self._layout(trainer))

    def _share_memory(self, first: Broadcast) -> None:
        """Gives all ranks what rank zero decides by: its clock is its own, and so is what was explained beside a training."""
        self._memory.share(first)
        self._pass_size = first({"pass_size": self._pass_size})["pass_size"]

    def _run_info(self, trainer: pl.Trainer, module: pl.LightningModule, cost: str) -> RunInfo:
        """What is true of the run from now on."""
        ready, probe = self._ready, self._entries
        names = self._publisher.options.class_names or getattr(probe, "class_names", None) or ()
        settings = plain(self._given, numbers=self._publisher.reports.save_inputs)
        differ = (key for key, value in settings.items() if value != plain(self._defaults[key]))
        return RunInfo(
            name=self.name,
            settings=settings,
            changed=tuple(key for key in differ if key not in ("methods", "metrics")),
            methods={name: as_written(method) for name, method in ready.methods.items()},
            metrics={name: as_written(metric) for name, metric in ready.metrics.items()},
            charts=self.charts[self.name],
            findings=ready.findings,
            left_out=ready.left_out,
            objectives=watchers.objectives(trainer),
            cost=cost,
            **described(ready.metrics),
            class_names=tuple(map(str, names)),
            versions=versions(),
            fingerprint="" if probe is None else fingerprint(probe),
            pass_size=self._pass_size or self._limit,
            threads=torch.get_num_threads(),
            modalities=() if probe is None else tuple(type(kind).__name__ for kind in of_probe(probe)),
            task=ready.task_line,
            memory_format="channels_last" if ready.channels_last else "contiguous_format",
            drawing=self._drawing(),
            precision=self._say_precision(trainer),
            hyperparameters=trainers.hyperparameters(trainer, module),
        )

    def _say_precision(self, trainer: pl.Trainer) -> str:
        """Says and returns what the process beside the training computes in, if it is not what the training does."""
        differs = self._context_beside(trainer)[1] if self._is_beside(trainer) else ""
        if differs:
            rank_zero_info(
                f"ExplanationMonitor {self.name!r}: explanations are computed in {differs}; their numbers are those of the same weights "
                "in float32. For those of the training's precision: beside=True."
            )
        return differs

    def _drawing(self) -> dict[str, Any]:
        """The drawing options as JSON can hold them; says once which it cannot."""
        found, lost = stored(self._publisher.options)
        if lost:
            self._failure_log.note_once(
                "drawing",
                f"{' and '.join(lost)} cannot be stored with the reports, so draw(report, ...) uses the default. To store it, give "
                "a name that matplotlib knows, or (position, color) pairs.",
            )
        return found

    def _layout(self, trainer: pl.Trainer) -> list[RunInfo]:
        """What is true of the runs of all monitors, from the last one: a dashboard has one layout."""
        monitors = monitors_of(trainer)
        return [m._run for m in monitors if m._run is not None] if monitors[-1] is self else []

    def _say_cost(self, trainer: pl.Trainer) -> str:
        """Says and returns what an explanation will cost; nothing if it is not known."""
        if self._idle:
            return ""
        expected, count = self._ready.estimate, 0 if self._entries is None else len(self._entries)
        cost = "" if expected is None else self._cost(trainer, expected, count)
        rank_zero_info(f"ExplanationMonitor {self.name!r}: {cost}{'; ' * bool(cost)}{self._publisher.destination}.")
        if trainer.state.fn == "fit" and resumes_otherwise(trainer.lightning_module):
            rank_zero_info(
                "ExplanationMonitor: the model is sharded and has batch statistics, which distributed checkpoints do not restore exactly, "
                "so a resumed training may differ from an uninterrupted one, with or without the monitor."
            )
        return cost

    def _get_ready(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source) -> None:
        """Chooses the samples, and checks methods and metrics; chooses others if those of a checkpoint cannot be explained."""
        ranks, restored = trainers.ranks_of(trainer, pl_module), trainer.state.fn == "fit" and self._samples.restored
        with trainers.silenced(pl_module):
            self._choose(trainer, pl_module, source, ranks)
            survives = anything if restored else nothing
            with ranks.agree("checking the samples of the checkpoint", survives) as checked:
                self._check(trainer, pl_module, ranks)
            if checked.failed_rank is not None:
                self._choose_others(trainer, pl_module, source, ranks, checked.error)
        self._publisher.options.check_kinds(self._ready.modalities)
        if self._pass_size is not None:
            # That of the training so far, or of the checkpoint: equal pass sizes give equal numbers.
            self._pass_size = int(ranks.first(self._pass_size))
            self._ready = replace(self._ready, limit=min(self._pass_size, self._ready.limit))

    def _choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source, ranks: Ranks) -> None:
        with ranks.agree("reading the samples"):
            self._samples.choose(trainer, pl_module, source)
        self._samples.share(ranks)

    def _choose_others(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source, ranks: Ranks, error: Exception | None
    ) -> None:
        """Chooses samples anew where those of the checkpoint cannot be explained, if it is not the fault of something else."""
        self._samples.begin_again()
        self._choose(trainer, pl_module, source, ranks)
        self._check(trainer, pl_module, ranks)
        why = "" if error is None else f" ({type(error).__name__}: {error})"
        rank_zero_warn_or_log(
            one_line(
                f"ExplanationMonitor {brief(self.name)}: the probe samples saved in the checkpoint cannot be explained with this model, "
                f"so others are chosen{why}."
            )
        )

    def _cost(self, trainer: pl.Trainer, expected: Estimate, samples: int) -> str:
        """What an explanation of so many samples will cost, in words."""
        each, epoch = expected.passes, loaders.samples_in_epoch(trainer)
        entries = "steps" if isinstance(self._ready.target, Horizon) else "labels"
        of = (
            f"{samples} {entries} of {len(self.probe)}"
            if self.probe is not None and len(self.probe) < samples
            else f"{samples}"
        )
        parts = [
            f"an explanation of {of} samples takes {each.forward} forward and {each.backward} backward evaluations of the "
            f"model for each, {each.forward * samples:,} and {each.backward * samples:,} in all"
        ]
        if expected.besides:
            parts.append(
                f"in addition to those of {', '.join(map(repr, expected.besides))}, whose number is not known in advance"
            )
        parts.append(self._seconds(trainer, expected, samples))
        if epoch and trainer.state.fn == "fit":
            parts.append(
                f"{each.forward * samples / epoch:.0%} of the samples that a training epoch sends through the model"
            )
        return ", ".join(parts)

    def _seconds(self, trainer: pl.Trainer, expected: Estimate, samples: int) -> str:
        """How long an explanation takes, in words: the last one of such a model, methods and samples, or else an estimate."""
        last = self.last_report
        # Beside a training, the report has the seconds that training waited for it.
        alike = last is not None and len(last.ids) == samples and {*self._ready.methods} == {*last.attributions}
        if last is not None and alike and self._last_model == _kind(trainer.lightning_module) and self._beside is None:
            return f"{last.seconds:.2g} seconds, as the last one took, with drawing"
        drawing = 0.0
        if trainer.is_global_zero and self._entries is not None:
            # What cannot be drawn is reported when it is to be drawn.
            with suppress(Exception):
                drawing = self._publisher.seconds_of_drawing(self._entries, len(self._ready.methods))
        seconds = expected.time(samples) / self._ready.ranks.world + drawing
        return f"about {seconds:.2g} seconds with drawing, as estimated from the fastest of a few runs of the model"

    def _is_lazy(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the model cannot be prepared yet, because it has layers without weights; says so."""
        lazy = any(map(is_lazy, (*pl_module.parameters(), *pl_module.buffers())))
        if lazy:
            when = "methods are checked after the first training batch instead of before it"
            rank_zero_warn_or_log(
                f"ExplanationMonitor {self.name!r}: the model has lazy layers without weights yet, so "
                f"{when if trainer.state.fn == 'fit' else 'nothing is explained'}. Run the model once before, for example by "
                "num_sanity_val_steps of the Trainer."
            )
        return lazy

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, ranks: Ranks) -> None:
        assert self.probe is not None
        unlabelled = self.probe.targets is None and not self.probe.labels
        if self._explainer.target == "label" and unlabelled and not self._samples.given:
            rank_zero_warn_or_log(
                'target="label", but no labels can be read in the batches: if the model has several outputs, the predicted one is '
                'explained. Give batch_fn=..., which returns (inputs, targets), or write target="predicted".'
            )
        self._ready = replace(
            self._explainer,
            limit=self._limit or auto_limit(loaders.batch_size(trainer)),
            auto_limit=self._limit is None,
            forward_context=trainers.forward_context(trainer)[0],
            held=Held(),
            forward_fn=self._explainer.forward_fn or trainers.forward_of(trainer),
            ranks=ranks,
            feature_names=loaders.feature_names(trainer),
        ).check(pl_module, self.probe, timed=True)
        self._samples.describe(self._ready.modalities)
        self._entries = self._ready.entries(self.probe)
        self._say_choices()

    def _say_choices(self) -> None:
        """Says what the inputs, the task, the methods and their layers were taken for, where the user left it open."""
        kinds = ", ".join(type(one).__name__ for one in self._ready.modalities)
        if self._explainer.default_methods and self._ready.methods:
            names = ", ".join(map(repr, self._ready.methods))
            rank_zero_info(
                f"ExplanationMonitor: treats the input as {kinds} (to change that: modalities=...), and explains it by {names}."
            )
        if self._ready.task_line:
            rank_zero_info(f"ExplanationMonitor: {self._ready.task_line} (to change that: task=... or target=...).")
        for name in self._ready.methods:
            if line := self._layer_line(name):
                rank_zero_info(f"ExplanationMonitor: {name!r} {line}")
        if not self._ready.methods:
            rank_zero_warn_or_log(
                f"ExplanationMonitor {self.name!r}: none of the default methods can be used on this model, so {NOTHING}. To explain it, "
                "name methods that can: methods=..."
            )

    def _layer_line(self, name: str) -> str:
        """Which layers a method explains where the user left them open, and how; empty if there is nothing to say."""
        given = self._explainer.methods.get(name.rpartition("@")[0] or name)
        method = self._ready.methods[name].innermost
        if given is not None and given.innermost.needs_layer:
            line = f"explains the layer {method.layer!r}, chosen for this model, by {type(method).__name__}"
            if type(given) is type(self._ready.methods[name]):
                found = self._ready.findings.get(name, "")
                return f"{line}; {found}" if found else f"{line}."
            why = "each of its places has weights of its own after it, over which Grad-CAM would average"
            if self._ready.frames > 1:
                why = "each place of each frame has weights of its own after it, and Grad-CAM may mark other frames"
            return f"{line}, because {why}."
        if type(given) is not type(self._ready.methods[name]) and method.layer is not None:
            where = ", ".join(f"inputs[{n}]" if isinstance(n, int) else repr(n) for n in method.layers)
            return f"explains {where}, which look the ids up or are numbers."
        return ""

    # -- the first forward of the user's own ------------------------------------------------------------------------

    def _starts_as_before(self, *_: Any, **__: Any) -> bool:
        """Whether nothing is to be done before this batch."""
        return not (self._untried or self._memory.unfinished is not None or self._compares("train"))

    @hook_unless(_starts_as_before)
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compares the first forward with how its batch is bound."""
        self._await_trial(trainer)
        if self._memory.unfinished is not None:
            self._memory.go_on()
        self._watch_forward(trainer, pl_module, batch)

    @hook
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The same for a validation."""
        if dataloader_idx == self._samples.dataloader_idx:
            self._watch_forward(trainer, pl_module, batch)

    on_test_batch_start = on_validation_batch_start

    @hook
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ends the comparison."""
        self._first_forward.leave()

    on_test_batch_end = on_validation_batch_end

    def _compares(self, stage: str) -> bool:
        """Whether the first forward of a stage is still to be compared."""
        # What the user gives needs no comparison: it is bound as the user says.
        bound = self._explainer.forward_fn is None and not self._samples.given
        known = self.enabled and not self._idle and bound and self.probe is not None
        return known and not self._first_forward.is_over(stage)

    def _watch_forward(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> None:
        stage = "" if trainer.state.stage is None else trainer.state.stage.value
        if self._compares(stage) and not trainer.sanity_checking:
            assert self.probe is not None
            self._first_forward.watch(stage, module, batch, self.probe, partial(self._samples.read, module))

    def _end_on_mismatch(self, text: str) -> None:
        self._mismatch = (
            f"{text}: batches are not passed as your step passes them, so {NOTHING}. "
            "Give batch_fn=lambda batch: ..., which returns (inputs, targets) with the inputs as the step passes them."
        )
        if not self._failure_log.raising:
            self._failure_log.report_once("binding", self._mismatch)

    # -- one explanation -------------------------------------------------------------------------------------------

    def _explain(
        self, trainer: pl.Trainer, module: pl.LightningModule, count: int = 0, epoch: int | None = None
    ) -> None:
        """Explains the fixed samples once, publishes the scalars and the report, and checks the alerts.

        Args:
            trainer: The Trainer.
            module: The module.
            count: The schedule's count (epochs or steps); 0 outside the schedule.
            epoch: The epoch to report; ``None``: the current one.
        """
        if self._is_beside(trainer):
            self._explain_beside(trainer, module, count, epoch)
            return
        started, everyone, log = trainers.now(module), trainers.everyone(trainer), self._failure_log
        report: Report | None = None
        with preserved_random_state():
            # Before any exchange of our own: a progress bar before us may wait on rank zero, in a metric that all ranks compute.
            logged = self._logged(trainer)
            with log.guard("No explanation", everyone) as made:
                report = self._report(trainer, module, epoch)
            report = replace(report, logged=logged) if report is not None and made.failed_rank is None else None
            self._publish(trainer, module, everyone, report, count, started)

    def _publish(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        ranks: Ranks,
        report: Report | None,
        count: int,
        started: float,
        make: Callable[[], Made] | None = None,
        reached: int | None = None,
    ) -> None:
        """Draws, saves and logs a report, checks the alerts, and notes the time; ``None``: there is none.

        Args:
            trainer: The Trainer.
            module: The module.
            ranks: The processes that call it.
            report: The report; what the module logged is not in it yet.
            count: As for :meth:`_explain`.
            started: Clock reading when the explanation began, in seconds.
            make: Returns what was drawn and saved; ``None``: it is done here.
            reached: The schedule's count by now, if training went on meanwhile.
        """
        log = self._failure_log
        scalars = {} if report is None else self._scalars(trainer, module, ranks, report, count, started, make)
        with log.guard("The scores of an explanation did not reach the Trainer", ranks):
            self._hand_over(trainer, module, scalars)
        alerts: list[str] = []
        if trainer.state.fn == "fit":
            with log.guard("The alerts could not be checked", ranks):
                if report is not None:
                    alerts = self._memory.alerts.watch(trainer, scalars, report.epoch, report.step)
        if report is not None:
            with log.guard("A report could not be written", ranks):
                self._publisher.write(trainer, ranks, scalars, self._ready.metrics, alerts)
        if trainer.state.fn == "fit":
            with log.guard("The time of an explanation could not be recorded", ranks):
                self._note_time(module, count, started, ranks.first, reached)

    def _logged(self, trainer: pl.Trainer) -> dict[str, float]:
        """What the module has logged by now. Call it on all ranks."""
        with self._failure_log.guard("What the module logged could not be read", trainers.everyone(trainer)):
            return trainers.logged(trainer, [monitor.name for monitor in monitors_of(trainer)])
        return {}

    def _scalars(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        ranks: Ranks,
        report: Report,
        count: int,
        started: float,
        make: Callable[[], Made] | None,
    ) -> dict[str, float]:
        """The means of all scores, and what the explanation took, with all that takes long about a report: drawing and keeping."""
        log, memory, publisher, found = self._failure_log, self._memory, self._publisher, dict[str, float]()
        assert self._entries is not None
        self.last_report, self._last_model, probe = report, _kind(module), self._entries
        with log.guard("A report could not be drawn and saved", ranks):
            found = report.scalars()
            here = lambda: publisher.drawing(memory.pictures).make(report, probe)  # noqa: E731
            publisher.prepare(trainer, ranks, report, found, self._ready.metrics, make or here)
        with log.guard("The maps of an explanation could not be kept", ranks):
            if trainer.state.fn == "fit":
                memory.keep(report, probe, ranks.first)
                memory.keep_pictures(publisher.drawn, report.fingerprint)
        with log.guard("The time of an explanation could not be measured", ranks):
            now = trainers.now(module)
            found |= memory.schedule.measured(started, now) if count else {"seconds": elapsed(started, now)}
            self.last_report = replace(report, seconds=found["seconds"])
        with log.guard("The scores of an explanation are not known on all ranks", ranks):
            # Those of rank zero, so that keys and numbers are equal on all ranks.
            found.update(ranks.first(found))
        return found

    def _hand_over(self, trainer: pl.Trainer, module: pl.LightningModule, scalars: Mapping[str, float]) -> None:
        """Gives the Trainer what checkpoints, early stopping and sweeps read; loggers get theirs from the sinks.

        Sweeps read them after ``trainer.test``, too: scores of test samples have names of their own, so that none is chosen by them.
        """
        missing = watchers.missing(self._watchers(trainer)) if trainer.state.fn == "fit" else []
        prefix = f"test/{self.name}" if trainer.state.fn == "test" else self.name
        tagged = {f"{prefix}/{key}": value for key, value in scalars.items()}
        for key, value in {**dict.fromkeys(missing, math.nan), **tagged}.items():
            trainer.callback_metrics[key] = torch.tensor(value, device=module.device)

    def _count(self, trainer: pl.Trainer) -> int:
        """The schedule's count before a batch: optimizer steps or epochs."""
        return trainer.global_step if self._memory.by_steps else trainer.current_epoch

    def _note_time(
        self, module: pl.LightningModule, count: int, started: float, first: Broadcast, reached: int | None
    ) -> None:
        early = count > 0 and self._memory.schedule.last <= self._memory.schedule.first
        self._memory.note_time(count, started, trainers.now(module), first, reached)
        if early:
            self._hint()

    def _hint(self) -> None:
        """Says, after the first explanation, how to spend less, if that took much of the training so far."""
        schedule = self._memory.schedule
        spent, trained = schedule.explain_seconds, schedule.train_seconds
        if spent > MUCH * trained and schedule.max_overhead is None:
            rank_zero_info(
                f"ExplanationMonitor {self.name!r}: explaining, with drawing and writing, took {spent:.2g} seconds so far, "
                f"{spent / max(trained, 1e-9):.0%} of the time of training. To spend less: max_overhead=0.1, a larger every_n_epochs, "
                "fewer samples (ProbeSelection(count=...)), or cheaper methods and metrics, which `lightning-explain methods --plan` "
                "compares."
            )

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, epoch: int | None) -> Report | None:
        """The report without what failed on any rank; ``None`` on all ranks if it failed as a whole on any."""
        log, ranks = self._failure_log, trainers.everyone(trainer)
        explainer, report = self._explainer_now(ranks), None
        if explainer is None:
            return None
        with (
            log.guard("No explanation", ranks) as whole,
            trainers.silenced(module),
            trainers.progress_bar(trainer, len(explainer.methods) + len(explainer.metrics)) as progress,
        ):
            explainer = replace(explainer, limit=self._choose_pass_size(module))
            report = explainer.explain(module, self._entries_now, progress, self._memory.history)
            report.scalars()  # If its scores cannot be averaged, the explanation has failed.
        self._keep_what_fits(min(ranks.gather(explainer.pass_size)))
        report = self._settled(ranks, explainer, report if whole.failed_rank is None else None)
        dated = {**self._moment_now(trainer, epoch), "run": self._run, "probe": self._entries}
        return None if report is None else replace(report, **dated)

    @property
    def _entries_now(self) -> Probe:
        assert self._entries is not None
        return self._entries

    def _explainer_now(self, ranks: Ranks) -> Explainer | None:
        """The explainer without what is switched off; ``None`` if nothing is to be explained."""
        log = self._failure_log
        mismatches = [text for text in ranks.gather(self._mismatch) if text]
        if mismatches and log.raising:
            raise ValueError(mismatches[0])
        self._idle = self._idle or bool(mismatches)
        methods, metrics = log.without_off(self._ready.methods), log.without_off(self._ready.metrics)
        idle = self._idle or self._entries is None or log.is_off(_WHOLE) or not methods
        return None if idle else replace(self._ready, methods=methods, metrics=metrics)

    def _settled(
        self, ranks: Ranks, explainer: Explainer, report: Report | None, empty: Collection[str] | None = None
    ) -> Report | None:
        """The report without what failed on any rank, all of which is counted; ``None``: it failed as a whole.

        Args:
            ranks: The processes that explained.
            explainer: What was to be explained.
            report: The report.
            empty: What has no finite number in it; then the report is without what failed already. ``None``: to be found here.
        """
        log = self._failure_log
        if report is None:
            # Nothing is known about single methods and metrics.
            log.count(_WHOLE, True, speaks=ranks.rank == 0)
            return None
        with reporting_failures(report.failures):
            failed = ranks.failing(report.failures)
        without_numbers = ranks.failing(numberless(report, explainer.metrics) if empty is None else empty)
        for name in (name for name, rank in failed.items() if rank == ranks.rank):
            what = f"{name!r} failed and is left out of this explanation (rank {ranks.rank})"
            log.report_once(name, f"{what}; training continues. Fix the cause:\n{report.failures[name]}")
        for name in (_WHOLE, *explainer.methods, *explainer.metrics):
            log.count(name, name in failed or name in without_numbers, speaks=ranks.rank == 0)
        return without(report, failed, explainer.metrics) if empty is None else report

    def _moment_now(self, trainer: pl.Trainer, epoch: int | None) -> dict[str, Any]:
        """Epoch, step and stage of an explanation; ``epoch``: the one to report, if it is not the current one."""
        stage = None if trainer.state.fn is None else trainer.state.fn.value
        current, step = self._moment or (trainer.current_epoch, trainer.global_step)
        return {"epoch": current if epoch is None else epoch, "step": step, "stage": stage}

    def _choose_pass_size(self, module: pl.LightningModule) -> int:
        """The most samples in a pass: timed before the first explanation, unless the user, the training so far or a checkpoint says it."""
        if self._measures:
            self._keep_pass_size(self._ready.fastest(module, self._entries_now).limit)
        return self._ready.limit

    @property
    def _measures(self) -> bool:
        """Whether passes are still to be timed."""
        return self._limit is None and self._pass_size is None

    def _keep_pass_size(self, found: int, why: str = "as measured") -> None:
        self._pass_size, self._ready = found, replace(self._ready, limit=found)
        if self._run is not None:
            self._run = replace(self._run, pass_size=found)
        rank_zero_info(f"ExplanationMonitor: calls the model with {found} samples at a time, {why}.")

    def _keep_what_fits(self, found: int) -> None:
        """Keeps the most samples in a pass that fit into memory, if they are fewer than before."""
        if found < self._ready.limit:
            self._keep_pass_size(found, "because more do not fit into memory")

    # -- explanations beside the training: rank zero alone has them ------------------------------------------------

    def _is_beside(self, trainer: pl.Trainer) -> bool:
        """Whether another process explains; outside of ``fit`` nothing would go on meanwhile."""
        return self._beside is not None and trainer.state.fn == "fit"

    @property
    def _besides(self) -> Beside:
        assert self._beside is not None
        return self._beside

    def _begin_beside(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Sends the worker what does not change, and the model for a try; what cannot be sent is refused on all ranks."""
        what, everyone = "The process that explains beside the training could not begin", trainers.everyone(trainer)
        with self._failure_log.preparing(what, everyone, no_refusal) as begun:
            if self._ready.ranks.sharded:
                raise ValueError(
                    "beside=... explains in one process, but this model cannot be called there: its forward needs the other ranks. "
                    "Use beside=False."
                )
            explainer = self._explainer_now(ALONE) if trainer.is_global_zero else None
            if explainer is not None:
                self._besides.begin(self._known, self._job(module, explainer, self._moment_now(trainer, None)))
        self._idle = self._idle or begun.failed_rank is not None
        self._untried = not self._idle
        if self._idle:
            self._end_beside()

    @property
    def _known(self) -> list[Any]:
        """What jobs and reports of this training have in common."""
        return [self._entries, self._publisher.options, self._run]

    def _await_trial(self, trainer: pl.Trainer) -> None:
        """Refuses, on all ranks and before the first batch, a model that the worker cannot read. It had until now to start."""
        if not self._untried:
            return
        self._untried, log = False, self._failure_log
        what, everyone = (
            "The process that explains beside the training cannot explain the model",
            trainers.everyone(trainer),
        )
        with log.preparing(what, everyone, no_refusal) as tried:
            if trainer.is_global_zero:
                self._besides.tried()
        if tried.failed_rank is not None:
            self._idle = True
            self._end_beside()

    def _job(self, module: pl.LightningModule, explainer: Explainer, dated: Mapping[str, Any]) -> Job:
        """The explanation of the module as it is now."""
        return Job(
            module=module,
            explainer=replace(explainer, ranks=ALONE, forward_context=self._context_beside(module.trainer)[0]),
            probe=self._entries_now,
            history=self._memory.history if self._memory.looks_back else History(),
            drawing=self._publisher.drawing(self._memory.pictures, encodes=True),
            dated={**dated, "run": self._run, "probe": self._entries},
            measures=self._measures,
            settings=torch_settings(),
            generators=cpu_generators(),
            cuda_generators=cuda_generators(),
        )

    def _context_beside(self, trainer: pl.Trainer) -> tuple[Context, str]:
        """What the worker enters around each forward pass, and in words what differs from the training, if it does."""
        return trainers.forward_context(trainer, self._besides.device)

    def _explain_beside(self, trainer: pl.Trainer, module: pl.LightningModule, count: int, epoch: int | None) -> None:
        """Lets the worker explain the module as it is now. Call it on all ranks, at the same counts."""
        self._await_trial(trainer)
        started, schedule, everyone = time.perf_counter(), self._memory.schedule, trainers.everyone(trainer)
        last = schedule.last
        schedule.pass_over(count)
        logged = self._logged(trainer)
        spent, free = elapsed(started, time.perf_counter()), False
        if trainer.is_global_zero and self._has_time(count):
            with self._raising_later(everyone):
                # Whether there is time is known again only once the one before has taken its own.
                free = not self._is_busy(trainer, module) and self._has_time(count)
        self._raise_together(everyone)
        if not free:
            return
        # What the last one took until it was published is its own time.
        started, moment = time.perf_counter() - spent, {**self._moment_now(trainer, epoch), "logged": logged}
        with self._raising_later(everyone), self._failure_log.guard("No explanation", ALONE) as handed_over:
            explainer = self._explainer_now(ALONE)
            if explainer is None:
                return
            self._besides.hand_over(self._known, self._job(module, explainer, moment), count, started)
            self._memory.hand_over(last, trainer.global_step)
        if handed_over.failed_rank is not None:
            self._settled(ALONE, self._ready, None)

    def _has_time(self, count: int) -> bool:
        """Whether ``max_overhead`` allows an explanation at this count. Rank zero alone has the clock that says so."""
        schedule = self._memory.schedule
        return not schedule.put_off(count) and schedule.has_room(time.perf_counter())

    @contextmanager
    def _raising_later(self, everyone: Ranks) -> Iterator[None]:
        """A section of rank zero alone; an error in it is raised on all ranks where they meet next: they would wait for rank zero."""
        try:
            yield
        except Exception as error:
            if everyone.world == 1:
                raise
            self._raised = self._raised or error

    def _raise_together(self, everyone: Ranks) -> None:
        """Raises on all ranks what rank zero could not raise alone. Call it on all ranks."""
        if not self._failure_log.raising:
            return
        error, self._raised = self._raised, None
        with self._failure_log.guard("An explanation beside the training failed", everyone):
            if error is not None:
                raise error

    def _is_busy(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Whether the last explanation is not done, although it was waited for if that is wanted; one more is skipped then."""
        besides = self._besides
        self._take_arrived(trainer, module, waits=besides.when_busy == "wait")
        if besides.pending is None:
            return False
        besides.skipped += 1
        return True

    def _take_arrived(self, trainer: pl.Trainer, module: pl.LightningModule, waits: bool = False) -> None:
        """Publishes the explanation that the worker has done, if there is one; ``waits``: until it is done."""
        besides, log, started = self._besides, self._failure_log, time.perf_counter()
        if besides.pending is None:
            return
        taken = besides.awaited(partial(trainers.progress_bar, trainer)) if waits else besides.arrived()
        if taken is None:
            return
        pending, outcome = taken
        self._memory.arrived()
        done = None
        with preserved_random_state():
            with log.guard("No explanation", ALONE):
                done = outcome.get()
                if self._measures:
                    self._keep_pass_size(done.limit)
                self._keep_what_fits(done.limit)
            report, empty, make = None, frozenset[str](), None
            if done is not None:
                report, empty, make = done.report, done.empty, partial(getattr, done, "made")
            report = self._settled(ALONE, pending.job.explainer, report, empty)
            self._publish(
                trainer, module, ALONE, report, pending.count, started - pending.blocked, make, self._count(trainer)
            )
        self._idle = self._idle or besides.given_up

    def _finish_beside(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Awaits the last explanation, and gives the other ranks its scores."""
        log, everyone = self._failure_log, trainers.everyone(trainer)
        with log.guard("The last explanation is not known", everyone):
            if self._raised is not None:
                raise self._raised
            if trainer.is_global_zero:
                self._take_arrived(trainer, module, waits=True)
                self._say_skipped()
            mine = (item for item in trainer.callback_metrics.items() if item[0].startswith(f"{self.name}/"))
            for key, value in everyone.first({key: float(value) for key, value in mine}).items():
                trainer.callback_metrics[key] = torch.tensor(value, device=module.device)
        self._end_beside()

    def _say_skipped(self) -> None:
        if self._besides.skipped:
            rank_zero_info(
                f"ExplanationMonitor {self.name!r}: {self._besides.skipped} explanations were skipped, because the one before was not done "
                'when they were due. To have all of them: when_busy="wait", or explain less often.'
            )

    def _end_beside(self) -> None:
        self._untried, self._raised = False, None
        if self._beside is not None:
            self._beside.close()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The samples (or their indices and fingerprint), seed, schedule, alerts, history and failure counts.

        Loads with ``weights_only=True``.
        """
        pass_size = {} if self._pass_size is None else {"pace": self._pass_size}
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "seed": lambda: {"seed": self._explainer.seed, **pass_size},
            "failures": lambda: {"failures": dict(self._failure_log.failures)},
            **self._memory.parts(),
            "curves": lambda: {"curves": sorted(self._publisher.curves)},
            "samples": self._samples.state,
        }
        return saved(parts, self._failure_log)

    @hook
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of this or another version, so that the curves continue."""
        memory, samples = self._memory, self._samples
        samples.begin_again()
        parts = {
            "seed": self._load_seed,
            "failures": lambda state: self._failure_log.load(state["failures"]),
            "schedule": memory.load_schedule,
            "alerts": lambda state: memory.alerts.load(state["alerts"]),
            "history": memory.load_history,
            "pictures": memory.load_pictures,
            "curves": self._load_curves,
            "pace": self._load_pass_size,
            "ids": samples.load_ids,
            "probe": samples.load_probe,
        }
        restore(state_dict, parts, self.name, self._failure_log.raising)

    def _load_seed(self, state: Mapping[str, Any]) -> None:
        seed, own = state["seed"], self._explainer.seed
        if seed != own:
            rank_zero_warn_or_log(
                f"ExplanationMonitor keeps the seed {seed} of the checkpoint instead of {own}, so that its random draws "
                "stay the same. To use the new seed, give the monitor another name."
            )
            self._explainer = replace(self._explainer, seed=seed)

    def _load_curves(self, state: Mapping[str, Any]) -> None:
        self._publisher.curves = set(state.get("curves", ()))

    def _load_pass_size(self, state: Mapping[str, Any]) -> None:
        self._pass_size = state.get("pace") if self._limit is None else None


def _join_pytorch_lightning() -> None:
    """Makes every monitor a callback of ``pytorch_lightning`` too, if that package is imported.

    Its Trainer calls any object in a list of callbacks; its command line, and ``Trainer(callbacks=monitor)``, ask for the class.
    """
    added = [base for base in in_both(pl.Callback) if not issubclass(MonitorBase, base)]
    if added:
        MonitorBase.__bases__ = (*MonitorBase.__bases__, *added)


_join_pytorch_lightning()


def monitors_of(trainer: pl.Trainer) -> list[MonitorBase]:
    """The enabled monitors of a Trainer, in the order of its callbacks."""
    return [c for c in trainer.callbacks if isinstance(c, MonitorBase) and c.enabled]  # type: ignore[attr-defined]


def _kind(module: pl.LightningModule) -> tuple[str, int]:
    """The name of a model's class, and how many numbers its weights have; weights that have no shape yet count for none."""
    return type(module).__qualname__, sum(0 if is_lazy(p) else p.numel() for p in module.parameters())
