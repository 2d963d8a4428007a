"""ExplanationMonitor: when to explain, at which step, and who logs. No mathematics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_explain.core.alert import Alert
from lightning_explain.core.contracts import innermost
from lightning_explain.core.probe import Probe
from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.report import Report
from lightning_explain.core.validation import check_choice, check_kinds, check_monitor_names, check_name, check_seed
from lightning_explain.distributed.ranks import Ranks
from lightning_explain.engine.baselines import Normalization
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import (
    Requests,
    auto_limit,
    build_methods,
    build_metrics,
    check_limit,
    warn_of_unsigned,
)
from lightning_explain.loggers.publication import charts, later_scores
from lightning_explain.model.function import ForwardFn, OutputFn
from lightning_explain.model.targets import Target, check_target
from lightning_explain.monitor import arguments
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor import metric_watchers as watchers
from lightning_explain.monitor.alert_watcher import Alerts, alerts_of
from lightning_explain.monitor.config import monitor_arguments
from lightning_explain.monitor.explain_step import ready_together, report_of
from lightning_explain.monitor.failures import FailureLog, text_of
from lightning_explain.monitor.probe_state import FixedSamples
from lightning_explain.monitor.publisher import Publisher
from lightning_explain.monitor.resuming import VERSION, understood
from lightning_explain.monitor.state import Memory
from lightning_explain.probes.selection import ProbeSelection


class ExplanationMonitor(pl.Callback):
    """Explains the model on fixed samples while it trains, and disturbs nothing.

    Every argument has a default; ``ExplanationMonitor()`` works on an image classifier.

    Args:
        methods: A mapping of names to methods (instances, class names, or mappings with ``name``), or a list of them.
            Default: saliency, integrated gradients, Grad-CAM of the last feature map.
        metrics: The same for metrics. Default: Infidelity and SensitivityMax.
        probe: ``ProbeSelection``, a ``Probe``, or dataset indices. Default: 16 samples of the validation data.
        target: ``"label"``, ``"predicted"``, an int, a tuple such as (class, row, column), or a callable ``(N, ...) -> (N,)``.
        every_n_epochs: Explain after every so many epochs; excludes ``every_n_train_steps``. Default: every epoch.
        every_n_train_steps: Explain after every so many optimiser steps.
        at_start: Explain before the first step as well.
        hook: ``"train_epoch_end"``, or ``"validation_epoch_end"`` (the first validation of a due epoch). The hook decides which weights
            are explained when another callback swaps them for validation.
        max_overhead: Largest share of training time the monitor may take, e.g. 0.05; it explains less often to stay under it.
        max_examples_per_pass: Samples the model may see in one call; ``"auto"``: what is fastest, below the training batch and at most 64.
        channels_last: Images ``(N, C, H, W)`` go through the model in that memory layout, in which convolutions are often faster.
            It rounds differently: where a network has kinks, maps move by up to 1e-4 of their largest value in float32.
        on_error: ``"warn"``: a failure is told once, what failed is left out, and switched off after three failures in a row
            (see :meth:`switch_on`), and training goes on on all ranks; ``"raise"``: it is raised on all ranks.
        seed: Key of all random draws.
        enabled: ``False`` switches everything off.
        save_probe: Keep the samples in checkpoints; otherwise their indices and fingerprint only.
        save_reports: Keep every report as a file in ``<run>/explain/<name>/``, to draw or compare again.
        name: Tag prefix, folder and state key; several monitors need several names.
        forward_fn: ``forward_fn(module, *inputs, *forward_args)`` instead of ``module(...)``.
        output_fn: The tensor ``(N, ...)`` in what the module returns.
        batch_fn: Turns a collated batch into ``(inputs, targets)`` or a ``Probe``.
        class_names: A name for each class index, for titles.
        normalization: ``(mean, std)`` for each channel, undone for display and for the black baseline.
        panels: ``(kind, sign)`` of each column of the pictures, in Captum's vocabulary; or a mapping from methods' names to such
            lists, with ``"default"`` for all others.
        cmap: Color map of heat maps: a name, a matplotlib object or ``(position, color)`` pairs; or a mapping as for ``panels``.
        outlier_perc: Share of a map's total that may be clipped, in percent; or a mapping as for ``panels``.
        alerts: What to do when a score leaves its bounds: a list of ``Alert``, or of mappings of their arguments.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If an argument is of a kind that is not allowed.
    """

    def __init__(
        self,
        methods: Requests = None,
        metrics: Requests = None,
        probe: ProbeSelection | Probe | Sequence[int] | None = None,
        target: Target = "label",
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        at_start: bool = False,
        hook: str = "train_epoch_end",
        max_overhead: float | None = None,
        max_examples_per_pass: int | str = "auto",
        channels_last: bool = False,
        on_error: str = "warn",
        seed: int = 0,
        enabled: bool = True,
        save_probe: bool = True,
        save_reports: bool = True,
        name: str = "explain",
        forward_fn: ForwardFn = None,
        output_fn: OutputFn = None,
        batch_fn: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        normalization: Normalization | None = None,
        panels: Sequence[Sequence[str]] | Mapping[str, Sequence[Sequence[str]]] | None = None,
        cmap: Any = None,
        outlier_perc: float | Mapping[str, float] = 2.0,
        alerts: Sequence[Alert | Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        check_target(target)
        check_seed(seed)
        check_kinds(
            flags={
                "at_start": at_start,
                "channels_last": channels_last,
                "enabled": enabled,
                "save_probe": save_probe,
                "save_reports": save_reports,
            },
            functions={"forward_fn": forward_fn, "output_fn": output_fn, "batch_fn": batch_fn},
        )
        check_choice("hook", hook)
        check_choice("on_error", on_error)
        check_name(name)
        self.name = name
        self.enabled = enabled
        self.hook = hook
        self.at_start = at_start
        self.by_steps = every_n_train_steps is not None
        self.last_report: Report | None = None
        schedule = arguments.schedule_of(every_n_epochs, every_n_train_steps, max_overhead, hook)
        given = probe if isinstance(probe, Probe) else None
        self._selection = arguments.selection_of(probe)
        self._samples = FixedSamples(given, self._selection, batch_fn, save_probe)
        self._limit = check_limit(max_examples_per_pass)
        self._pass_size: int | None = None
        requested = build_methods(methods)
        options = arguments.options_of(
            requested, panels, cmap, outlier_perc, normalization=normalization, class_names=class_names
        )
        self._failure_log = FailureLog(name, raising=on_error == "raise")
        self._publisher = Publisher(name, options, save_reports, self._failure_log)
        self._directory = Path()
        self._explainer = Explainer(
            methods=requested,
            metrics=build_metrics(metrics),
            target=tuple(target) if isinstance(target, list) else target,
            seed=seed,
            channels_last=channels_last,
            forward_fn=forward_fn,
            output_fn=output_fn,
            normalization=options.normalization,
            optional_layers=methods is None,
            optional_metrics=metrics is None,
            raising=on_error == "raise",
        )
        warn_of_unsigned(self._explainer.methods, self._explainer.metrics)
        self._ready = self._explainer
        arguments.check_tags(self._explainer.methods, self._explainer.metrics)
        watched = Alerts(name, alerts_of(alerts), self._failure_log)
        watched.check(self._names())
        self._memory = Memory(schedule, watched, self._explainer.metrics, self.by_steps)
        self._idle = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **arguments: Any) -> ExplanationMonitor:
        """A monitor from a plain mapping or an OmegaConf one, whose names are looked up in ``methods`` and ``metrics`` only.

        Args:
            config: Keys are the constructor's arguments.
            arguments: What a configuration cannot say, such as functions or a ``Probe``; they win over the configuration.

        Raises:
            ValueError: If a key, a method or a metric is unknown; the nearest valid names are listed.
        """
        return cls(**{**monitor_arguments(config, cls), **arguments})

    @property
    def state_key(self) -> str:
        """Several monitors in one Trainer are told apart by their names."""
        return self._generate_state_key(name=self.name)

    @property
    def probe(self) -> Probe | None:
        """The fixed samples of this run, once they are chosen."""
        return self._samples.probe

    @property
    def charts(self) -> dict[str, dict[str, list[str]]]:
        """The tags of each score: what belongs on one chart."""
        return charts(self.name, self._ready.methods, self._ready.metrics, self._ready.scored)

    def switch_on(self, what: str | None = None) -> None:
        """Has a method, metric or sink again that failed three times in a row; all of them without a name.

        To be called on all ranks alike, at any time. What is switched off stays so in checkpoints.
        """
        self._failure_log.switch_on(what)

    # -- before the first batch ------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks strategy and watchers, and settles the run's directory on all ranks."""
        if not self.enabled:
            return
        trainers.check_strategy(trainer)
        if trainer.global_step == 0:
            # Of an earlier training with another model; that of a checkpoint comes after this.
            self._pass_size = None
            if stage == "fit":
                self._samples.begin_again()
                self._begin_again()
        self._directory = trainers.run_directory(trainer) / "explain"
        if stage == "fit":
            self._memory.alerts.check_loggers(trainer)
            names = [monitor.name for monitor in _monitors(trainer)]
            check_monitor_names(names)
            watchers.check_keys(trainer, self.name, names, self._keys())
            later = [f"{self.name}/{key}" for key in later_scores(self._ready.methods, self._ready.metrics)]
            watchers.check_times(trainer, self, self.name, names, self._trigger(), later)
            self._warn_if_never(trainer)

    def _warn_if_never(self, trainer: pl.Trainer) -> None:
        every, last = self._memory.schedule.every, trainer.max_epochs
        if self.by_steps:
            last = trainer.max_steps if trainer.max_steps > 0 else None
        if last is not None and 0 < last < every and not self.at_start:
            unit = "steps" if self.by_steps else "epochs"
            rank_zero_warn(
                f"ExplanationMonitor {self.name!r} explains after every {every} {unit}, and this training ends after {last}: "
                "nothing will be explained. Explain more often, or give at_start=True."
            )

    def _keys(self) -> list[str]:
        return [f"{self.name}/{name}" for name in self._names()]

    def _names(self) -> list[str]:
        """Everything that is logged, without the monitor's name."""
        scores = [tag.removeprefix(f"{self.name}/") for tags in self.charts[self.name].values() for tag in tags]
        return [*scores, *(f"nonfinite/{method}" for method in self._ready.methods), "seconds", "overhead"]

    def _trigger(self) -> watchers.Trigger:
        epochs: watchers.Moment = "validation" if self.hook == "validation_epoch_end" else "train epoch"
        steady = self._memory.schedule.max_overhead is None
        return watchers.Trigger("step" if self.by_steps else epochs, self._memory.schedule.every, self.at_start, steady)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the samples, checks everything that needs the model, and explains if asked to."""
        if not self.enabled:
            return
        if self.hook == "validation_epoch_end" and not trainer.enable_validation:
            raise ValueError(
                'ExplanationMonitor(hook="validation_epoch_end"), but this run does not validate; '
                'use hook="train_epoch_end", or give the Trainer a validation loader.'
            )
        if trainer.global_step == trainer.current_epoch == 0:
            # A monitor may be used for a second training; what it counts begins again.
            self._begin_again()
        self._prepare(trainer, pl_module, self._selection.source)
        # Again, for a method may have been left out on this model.
        watchers.check_keys(trainer, self.name, [monitor.name for monitor in _monitors(trainer)], self._keys())
        self._memory.alerts.check(self._names())
        self._memory.start(self._count(trainer))
        self._catch_up(trainer, pl_module)
        looks_back = self.probe is not None and self._memory.lacks_history(self.probe)
        if self.at_start and (trainer.global_step == 0 or looks_back):
            self._explain(trainer, pl_module, trainer.callback_metrics.__setitem__)

    def _begin_again(self) -> None:
        self._memory.begin_again()
        self._failure_log.failures = {}

    def _count(self, trainer: pl.Trainer) -> int:
        """What the schedule counts, before a batch."""
        return trainer.global_step if self.by_steps else trainer.current_epoch

    def _catch_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the explanation for which the checkpoint came too early: Lightning does not repeat the hook it is made in."""
        count, schedule = self._count(trainer), self._memory.schedule
        after_validation = self.hook == "validation_epoch_end"
        if not (self.enabled and schedule.due(count)) or (
            after_validation and not trainers.ended_on_validation(trainer)
        ):
            return
        if after_validation and trainers.may_swap_weights(trainer):
            rank_zero_warn(
                f"ExplanationMonitor {self.name!r}: the checkpoint was made before the validation of epoch {count - 1}, which "
                "Lightning does not repeat, and the weights may be others in validation. That epoch is not explained."
            )
        elif after_validation or count % schedule.every == 0:
            epoch = trainers.epoch_of_last_batch(trainer) if self.by_steps else count - 1
            self._explain(trainer, pl_module, trainer.callback_metrics.__setitem__, count, epoch)
        schedule.pass_over(count)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops the clock."""
        self._memory.schedule.stop(time.perf_counter())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the samples of that validation and checks, when it runs alone."""
        if self.enabled and trainer.state.fn == "validate":
            self._prepare(trainer, pl_module, "val")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the samples of the test and checks."""
        if self.enabled:
            self._prepare(trainer, pl_module, "test")

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> None:
        ranks = trainers.ranks_of(trainer, pl_module)
        with preserved_random_state(), trainers.silenced(pl_module):
            self._idle = not ready_together(
                trainer, partial(self._samples.choose, trainer, pl_module, source), self._failure_log
            )
            if not self._idle:
                self._samples.share(ranks)
                self._idle = not ready_together(
                    trainer, partial(self._check, trainer, pl_module, ranks), self._failure_log
                )
        if self._pass_size is not None and not self._idle:
            # The clock of rank zero decides for all, and a checkpoint keeps it: equal passes give equal numbers.
            self._pass_size = int(ranks.first(self._pass_size))
            self._ready = replace(self._ready, limit=min(self._pass_size, self._ready.limit))
        monitors = _monitors(trainer)
        # The last one writes the layout of all, for a dashboard has one; by now the others know their layers.
        last = monitors[-1] is self
        layout = {name: chart for monitor in monitors for name, chart in monitor.charts.items()} if last else {}
        self._publisher.open(trainer, self._directory, layout)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, ranks: Ranks) -> None:
        assert self.probe is not None
        self._ready = replace(
            self._explainer,
            limit=self._limit or auto_limit(trainers.batch_size(trainer)),
            forward_context=trainer.precision_plugin.forward_context,
            forward_fn=self._explainer.forward_fn or trainers.forward_of(trainer),
            ranks=ranks,
        ).check(pl_module, self.probe)
        for name, method in self._ready.methods.items():
            if getattr(innermost(self._explainer.methods[name]), "layer", "") is None:
                layer = innermost(method).layer
                rank_zero_info(f"ExplanationMonitor: {name!r} looks at the layer {layer!r}, the last feature map.")
        if self._limit is None:
            self._pass_size = self._pass_size or self._ready.pass_size(pl_module, self.probe)

    # -- when ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Explains after optimizer steps, if the schedule goes by steps."""
        if self.by_steps:
            self._explain_if_due(trainer, pl_module, trainer.global_step, on_step=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after training epochs, if the schedule does not go by steps."""
        if self.by_steps and self.enabled and trainer.global_step == 0 and trainer.is_global_zero:
            self._failure_log.report_once(
                "steps",
                "every_n_train_steps counts the Trainer's global_step, which has not moved in a whole epoch: nothing will be "
                "explained. Use every_n_epochs, or in manual optimization the optimizers of self.optimizers().",
            )
        if not self.by_steps and self.hook == "train_epoch_end":
            self._explain_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after validation, never in the sanity check."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self._explain_alone(trainer, pl_module)
        elif self.hook == "validation_epoch_end":
            self._explain_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after testing."""
        self._explain_alone(trainer, pl_module)

    def _explain_alone(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.enabled:
            self._explain(trainer, pl_module, trainers.logging_to(pl_module))

    def _explain_if_due(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, count: int, on_step: bool = False
    ) -> None:
        if self.enabled and self._memory.schedule.due(count):
            self._explain(trainer, pl_module, trainers.logging_to(pl_module, on_step), count)

    # -- one explanation -------------------------------------------------------------------------------------------

    def _explain(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        log: trainers.Log,
        count: int = 0,
        epoch: int | None = None,
    ) -> None:
        """Explains and logs.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            log: Takes the scalars.
            count: What the schedule counts; 0 outside of it.
            epoch: The one that is explained, if it is not the current one.
        """
        started, everyone = time.perf_counter(), trainers.everyone(trainer)
        with preserved_random_state():
            probe = None if self._idle else self.probe
            past = self._memory.history
            report = report_of(trainer, pl_module, self._ready, probe, self._failure_log, past) if probe else None
            report = report if report is None or epoch is None else replace(report, epoch=epoch)
            scalars = self._scalars(trainer, report, count, started) if report else {}
            names = [monitor.name for monitor in _monitors(trainer)]
            for key, value in {**watchers.missing(trainer, self.name, names), **scalars}.items():
                log(f"{self.name}/{key}", torch.tensor(value))
            if probe and report:
                self.last_report = report
                self._publisher.publish(trainer, report, probe, scalars, self._ready.metrics)
                if trainer.state.fn == "fit":
                    self._memory.keep(report, probe, everyone.first)
                    self._memory.alerts.watch(trainer, scalars, report.epoch)
            if trainer.state.fn == "fit":
                self._memory.note_time(count, started, everyone.first)

    def _scalars(self, trainer: pl.Trainer, report: Report, count: int, started: float) -> dict[str, float]:
        """What is logged, as rank zero has it: equal keys and numbers everywhere."""
        found = {**report.scalars(), "seconds": report.seconds}
        overhead = self._memory.schedule.overhead(started, time.perf_counter())
        if count and overhead is not None:
            found["overhead"] = overhead
        agreed: dict[str, float] = trainers.everyone(trainer).first(found)
        return agreed

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The samples (or what names them), and what is remembered; loads with ``weights_only=True``."""
        pass_size = {} if self._pass_size is None else {"pace": self._pass_size}
        known = {"seed": self._explainer.seed, "failures": dict(self._failure_log.failures)}
        return {"version": VERSION, **known, **self._memory.state(), **pass_size, **self._samples.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a checkpoint's state, of this or another version, so that the curves go on as if never interrupted."""
        try:
            self._take_up(understood(state_dict, self.name, self._failure_log.raising))
        except Exception as error:
            if self._failure_log.raising:
                raise
            text = f"Its state in the checkpoint cannot be read; what is missing begins anew:\n{text_of(error)}"
            self._failure_log.report_once("state", text)

    def _take_up(self, state: dict[str, Any]) -> None:
        self._memory.load(state)
        if "pace" in state and self._limit is None:
            self._pass_size = state["pace"]
        if state.get("seed", self._explainer.seed) != self._explainer.seed:
            rank_zero_warn(
                f"ExplanationMonitor goes on with the seed {state['seed']} of the checkpoint instead of "
                f"{self._explainer.seed}, so that its draws stay the same. To draw anew, give the monitor another name."
            )
            self._explainer = replace(self._explainer, seed=state["seed"])
        self._failure_log.failures = dict(state.get("failures", {}))
        self._samples.load(state)


def _monitors(trainer: pl.Trainer) -> list[ExplanationMonitor]:
    return [c for c in trainer.callbacks if isinstance(c, ExplanationMonitor) and c.enabled]  # type: ignore[attr-defined]
