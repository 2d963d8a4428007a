"""ExplanationMonitor: takes the user's arguments, and decides after which steps, epochs and validations to explain.

``monitor_base.py`` makes the explanation itself. No mathematics is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_explain.core.alert import Alert
from lightning_explain.core.containers import resolved
from lightning_explain.core.contracts import Sink
from lightning_explain.core.probe import Probe
from lightning_explain.core.schema import short_errors
from lightning_explain.core.validation import check_monitor_names
from lightning_explain.distributed.ranks import ALONE, anything
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import (
    Requests,
    build_methods,
    build_metrics,
    build_modalities,
    build_target,
    check_limit,
    check_task,
    every_default,
    warn_of_unsigned,
)
from lightning_explain.explainer.several import named
from lightning_explain.modalities.image import Normalization
from lightning_explain.model.function import ForwardFn, OutputFn
from lightning_explain.model.targets import Target
from lightning_explain.monitor import arguments
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor import metric_watchers as watchers
from lightning_explain.monitor.alert_watcher import Alerts, alerts_of
from lightning_explain.monitor.checkpoints import load, moment_of
from lightning_explain.monitor.config import monitor_arguments
from lightning_explain.monitor.failures import (
    FailureLog,
    hook,
    hook_unless,
    no_refusal,
    rank_zero_warn_or_log,
)
from lightning_explain.monitor.monitor_base import MonitorBase, monitors_of
from lightning_explain.monitor.probe_state import FixedSamples
from lightning_explain.monitor.publisher import Publisher
from lightning_explain.monitor.state import Memory
from lightning_explain.probes.selection import ProbeSelection
from lightning_explain.render.options import DEFAULT_PANELS, Options

_FLAGS = ("at_start", "channels_last", "enabled", "save_probe", "save_reports", "save_inputs", "log_artifacts")
_DRAWING = ("cmap", "outlier_perc", "class_names", "normalization", "scale")


class ExplanationMonitor(MonitorBase):
    """Explains a model on fixed samples while it trains, and logs maps and scores without changing the training.

    Every argument has a default; ``ExplanationMonitor()`` works on an image classifier.

    Args:
        methods: A mapping of names to methods (instances, class names, or mappings with ``name``), or a list of them.
            Default: saliency, integrated gradients (16 steps), Grad-CAM of the last layer whose places lie on the input.
            Where its mean over places is wrong: HiResCAM of the bottleneck, if the outputs have places; else integrated
            gradients of that layer.
        metrics: The same for metrics. Default: Infidelity (32 draws), and SensitivityMax (3) of the default integrated gradients.
        probe: ``ProbeSelection``, a ``Probe``, or dataset indices. Default: 16 samples of the validation data.
        target: ``"label"``, ``"predicted"``, an int, a tuple such as ``(class, y, x)``, a callable ``(outputs)`` or
            ``(outputs, sample)`` that returns ``(N,)``, or one of
            ``lightning_explain.targets``. Where labels are not one class for each sample, ``"label"`` is ``Positive()``,
            ``Horizon("sum")``, ``Position("label")`` or ``Pixels("label")``, by their shape; of a detector ``Detection(box="label")``.
            Or a mapping of names to such targets: a map of each, such as ``ig@age``. Of a model that returns several outputs by name,
            each is explained, at most 4.
        every_n_epochs: Explain after every n epochs; excludes ``every_n_train_steps``. Default: every epoch.
        every_n_train_steps: Explain after every n optimizer steps.
        at_start: Also explain before the first step.
        hook: ``"train_epoch_end"``, or ``"validation_epoch_end"`` (the first validation of a due epoch). If another
            callback swaps the weights for validation, the hook decides which weights are explained.
        max_overhead: Largest share of training time the monitor may take, e.g. 0.05; it then explains less often.
        max_examples_per_pass: Samples in one call of the model. ``"auto"``: the fastest up to the batch size and 64,
            timed before the first explanation and kept for all others.
        channels_last: Pass images ``(N, C, H, W)`` in that memory format, which often speeds up convolutions. Rounding
            differs: where a network has kinks, maps move by up to 1e-4 of their largest value in float32.
        on_error: ``"warn"``: report a failure once, leave out what failed, switch it off after three failures in a row
            (see :meth:`switch_on`), and keep training on all ranks. ``"raise"``: raise it on all ranks.
        seed: Seed of all random draws.
        enabled: ``False`` switches everything off.
        save_probe: Keep the samples in checkpoints; otherwise only their indices and fingerprint.
        save_reports: Save every report as a file in ``<run>/<name>/``, to draw or compare again, and once the samples
            (``probe.safetensors``) and settings (``run.json``).
        name: Tag prefix, folder and state key; several monitors need several names.
        forward_fn: Called as ``forward_fn(module, *inputs, *forward_args)`` instead of ``module(...)``; by name, if a batch
            has the names of its arguments.
        output_fn: Takes what the module returns, and returns the tensor ``(N, ...)`` to explain.
        batch_fn: Takes a collated batch, and returns ``(inputs, targets)`` or a ``Probe``; inputs are a tensor, a tuple in
            the order of ``forward``, or a mapping of its argument names. Default: batches are bound by name or position.
        class_names: A name for each class index, for titles.
        normalization: ``(mean, std)`` for each channel; undone for display and for the black baseline.
        panels: What is drawn: of images, ``(kind, sign)`` of each row of a page, in Captum's vocabulary; of tables ``"beeswarm"``,
            ``"importance"``, ``"features"``, ``"waterfall"``; or a mapping from method names to such lists, with ``"default"`` for all
            others.
        cmap: Colors of heat maps: a name, a matplotlib object or ``(position, color)`` pairs; or a mapping like ``panels``.
        outlier_perc: Share of a map's total that may be clipped, in percent; or a mapping as for ``panels``.
        alerts: What to do when a score leaves its bounds: a list of ``Alert``, of expressions such as
            ``"relevance_mass/ig > 0.3 for 2"``, or of mappings with the arguments of ``Alert``.
        sinks: ``"auto"``: write to the Trainer's loggers; or a list of your own ``Sink`` objects to write to as well.
        log_artifacts: At the end, upload the files of ``save_reports`` to W&B (as an artifact of type ``explanations``), MLflow or
            Comet. Off by default, because they hold the probe's inputs, and whoever sees the run can download them.
        keep_every: Keep only every n-th file of ``save_reports``, and the first and last of each stage (fit, test); see ``keep_last``.
        keep_last: Keep only the newest n, and the first; with ``keep_every``, what either keeps. Default: all. Files that were there
            before, also of the training that this one resumes, are never deleted.
        save_inputs: ``False``: no file of the run or checkpoint holds the inputs, ``forward_args`` or ``meta`` of the samples, so that
            ``draw`` is not possible; a resumed training reads the samples again. Pictures, which loggers still get, show them.
        modalities: What the inputs are: ``modalities.Text(tokenizer=...)``, ``Tabular(feature_names=[...])``, ``TimeSeries(...)``,
            ``Image()``; one for each of several inputs, or a mapping of their names to them. Default: guessed.
        scale: What the strongest color of words and series, or the longest bar of features, stands for: the largest absolute attribution
            of the ``"sample"``, or of ``"all"`` samples.
        task: What the model was trained for: ``"multiclass"``, ``"binary"``, ``"multilabel"``, ``"regression"``, ``"dense"``,
            ``"tokens"``, ``"embedding"`` or ``"reconstruction"``. It decides what ``target="label"`` means, and what titles say.
            Default: recognized by its outputs and labels, and a line at the start says as what.
        beside: ``True``, or a device such as ``"cpu"`` or ``"cuda:1"``: a process of its own explains, on the device of the model or
            that one, and training waits only until the weights are copied. Scores arrive later, with their own step and epoch.
        when_busy: With ``beside``, what to do when an explanation is due before the last is done: ``"skip"`` it, or ``"wait"``.

    Raises:
        ValueError: If an argument has a value that is not allowed.
        TypeError: If an argument has a type that is not allowed.

    Example:
        >>> from lightning_explain import ExplanationMonitor
        >>> monitor = ExplanationMonitor(methods=["IntegratedGradients"], metrics=["Infidelity"], every_n_epochs=5)
        >>> monitor.charts
        {'explain': {'infidelity_relative': ['explain/infidelity_relative/integrated_gradients']}}
    """

    def __init__(
        self,
        methods: Requests = None,
        metrics: Requests = None,
        probe: ProbeSelection | Probe | Sequence[int] | None = None,
        target: Target | Mapping[str, Any] = "label",
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
        panels: Sequence[str | Sequence[str]] | Mapping[str, Sequence[str | Sequence[str]]] | None = None,
        cmap: Any = None,
        outlier_perc: float | Mapping[str, float] = 2.0,
        alerts: Sequence[Alert | str | Mapping[str, Any]] | None = None,
        sinks: Sequence[Sink] | str = "auto",
        log_artifacts: bool = False,
        keep_every: int | None = None,
        keep_last: int | None = None,
        save_inputs: bool = True,
        modalities: Any = None,
        scale: str = "sample",
        task: str = "auto",
        beside: bool | str = False,
        when_busy: str = "skip",
    ) -> None:
        methods, metrics, probe, alerts, sinks = map(resolved, (methods, metrics, probe, alerts, sinks))
        modalities, target = resolved(modalities), build_target(resolved(target))
        self._given = {name: value for name, value in list(locals().items()) if name not in ("self", "__class__")}
        functions = {"forward_fn": forward_fn, "output_fn": output_fn, "batch_fn": batch_fn}
        arguments.check_plain(seed, hook, on_error, name, {n: self._given[n] for n in _FLAGS}, functions)
        super().__init__()
        self.name, self.enabled, self.hook, self.at_start = name, enabled, hook, at_start
        self.by_steps = every_n_train_steps is not None
        schedule = arguments.schedule_of(every_n_epochs, every_n_train_steps, max_overhead, hook)
        self._selection = arguments.selection_of(probe)
        self._limit, requested = check_limit(max_examples_per_pass), build_methods(methods)
        drawing = {name: self._given[name] for name in _DRAWING}
        options = Options(**drawing | {"panels": DEFAULT_PANELS if panels is None else panels})
        options.check_methods(possible := every_default() if methods is None else requested)
        self._failure_log = log = FailureLog(name, raising=on_error == "raise")
        self._explainer = self._ready = Explainer(
            methods=requested,
            metrics=build_metrics(metrics, methods is None),
            target=target,
            seed=seed,
            channels_last=channels_last,
            forward_fn=forward_fn,
            output_fn=output_fn,
            normalization=options.normalization,
            default_methods=methods is None,
            default_metrics=metrics is None,
            modalities=build_modalities(modalities),
            task=check_task(task),
            raising=on_error == "raise",
        )
        warn_of_unsigned(requested, scores := self._ready.metrics)
        arguments.check_tags(named(possible, target), scores)
        self._asked = arguments.asked(target, methods, metrics, probe, alerts, modalities, task, *functions.values())
        self._samples = FixedSamples(probe, self._selection, batch_fn, save_probe and save_inputs, forward_fn)
        watching, looks_back = Alerts(name, alerts_of(alerts), log), any(one.needs_history for one in scores.values())
        self._memory = Memory(schedule, watching, self.by_steps, looks_back)
        self._beside = arguments.beside_of(beside, when_busy, name)
        reports, own = arguments.reports_of(save_reports, keep_every, keep_last, save_inputs), arguments.sinks_of(sinks)
        self._publisher = Publisher(name, options, reports, log, own, log_artifacts)
        watching.check([*self._keys(), *self._anticipated(watching.keys)])

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **arguments: Any) -> ExplanationMonitor:
        """A monitor from a plain or OmegaConf mapping. Names are looked up only in ``methods`` and ``metrics``.

        Args:
            config: Keys are the constructor's arguments. References are resolved, but for environment variables
                (``${oc.env:...}``); if these are wanted, resolve the configuration with ``OmegaConf.to_container(config, resolve=True)``.
            arguments: What a configuration cannot hold, such as functions or a ``Probe``; these take precedence.

        Raises:
            ValueError: If a key, a method or a metric is unknown (the message lists the nearest valid names), or the configuration is
                endless or reads an environment variable.
        """
        with short_errors():
            return cls(**{**monitor_arguments(config, cls), **arguments})

    @property
    def state_key(self) -> str:
        """The key of this monitor's state in checkpoints; its name tells several monitors in one Trainer apart."""
        return self._generate_state_key(name=self.name)

    # -- before the first batch ------------------------------------------------------------------------------------

    @hook
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks that the ranks agree, the strategy, and the callbacks that watch scores, and opens the sinks."""
        log, everyone = self._failure_log, trainers.everyone(trainer)
        # Some ranks may have no monitor, and cannot agree; those that have see the same arguments, and refuse them together.
        with log.guard("The arguments of the ranks could not be compared", ALONE, no_refusal):
            self._check_alike(trainer)
        if not self.enabled:
            return
        survives = no_refusal if self._asked else anything
        with log.preparing("The strategy does not fit", everyone, survives) as fits:
            trainers.check_strategy(trainer)
        self._unfit, self._moment = fits.failed_rank is not None, None
        if trainer.global_step == 0:
            # Measured in an earlier training with another model; the size in a checkpoint is restored after this.
            self._pass_size = None
            if stage == "fit":
                self._ready = self._explainer
                self._samples.begin_again()
                self._memory.begin_again()
                self._publisher.curves = set()
                self._failure_log.failures = {}
        if stage == "fit":
            with log.guard("The callbacks that monitor scores could not be checked", everyone, no_refusal):
                self._check_watchers(trainer)
        with log.guard("What rank zero knows of earlier trainings could not be shared", everyone):
            self._share_memory(everyone.first)
        with log.guard("The process that explains beside the training could not be started", everyone):
            if self._is_beside(trainer) and trainer.is_global_zero and not self._unfit:
                self._memory.arrived()  # Of a training that an error ended.
                self._besides.open()
        with log.guard("The sinks could not be opened", everyone):
            self._publisher.open(trainer)

    def _check_watchers(self, trainer: pl.Trainer) -> None:
        self._memory.alerts.check_loggers(trainer)
        check_monitor_names([monitor.name for monitor in monitors_of(trainer)])
        found, schedule = self._watchers(trainer), self._memory.schedule
        watchers.check_keys(found, [*self._keys(), *self._anticipated(key for _, key in found)])
        if self._is_beside(trainer):
            trainers.check_whole(trainer)
            watchers.refuse_late(found)
            self._memory.alerts.refuse_late()
        watchers.warn_of_times(found, schedule, self.by_steps)
        watched = {watchers.called(watcher, key): key for watcher, key in found} | self._memory.alerts.watched()
        watchers.note_units(watched, self._tags_with_unit())

    @hook
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the samples, runs every check that needs the model, and explains if ``at_start`` asks for it.

        Raises:
            ValueError: If the hook is ``"validation_epoch_end"`` and this run does not validate.
        """
        if not self.enabled:
            return
        log, everyone = self._failure_log, trainers.everyone(trainer)
        with log.guard("The end of the training is not known", everyone, no_refusal):
            if self.hook == "validation_epoch_end" and not trainer.enable_validation:
                raise ValueError(
                    f'hook={self.hook!r}, but this run does not validate; use hook="train_epoch_end", or give a validation loader.'
                )
            watchers.announce_end(trainer, self.name, self._memory.schedule, self.by_steps, self.hook, self.at_start)
        self._prepare_training(trainer, pl_module)
        with log.guard("The clock could not be started", everyone):
            self._memory.start(self._count(trainer), self._entries)
        if self._lazy:
            return
        self._catch_up(trainer, pl_module)
        looks_back = self._entries is not None and self._memory.lacks_history(self._entries)
        if self.at_start and (trainer.global_step == 0 or looks_back):
            self._explain(trainer, pl_module)

    def _prepare_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._prepare(trainer, pl_module, self._selection.source)
        with self._failure_log.guard(
            "The callbacks that monitor scores are not known", trainers.everyone(trainer), no_refusal
        ):
            # Once more, because preparing may have left a method out on this model, and schedulers are known only now.
            found = self._watchers(trainer)
            watchers.check_keys(found, self._keys())
            if self._is_beside(trainer):
                watchers.refuse_late(found)
            for key in watchers.missing(found):
                trainer.callback_metrics[key] = torch.tensor(math.nan)
            self._memory.alerts.check(self._keys())
        if self._is_beside(trainer) and not self._lazy:
            self._begin_beside(trainer, pl_module)

    def _catch_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes an explanation that was due right after the checkpoint: on resume Lightning skips that hook."""
        count, schedule = self._count(trainer), self._memory.schedule
        after_validation = self.hook == "validation_epoch_end"
        if not schedule.due(count) or (after_validation and not trainers.ended_on_validation(trainer)):
            return
        if after_validation and trainers.may_swap_weights(trainer):
            rank_zero_warn_or_log(
                f"ExplanationMonitor {self.name!r}: the checkpoint was saved before the validation of epoch "
                f"{count - 1}, which Lightning does not repeat, and the weights in validation may differ. That epoch "
                "is not explained. To explain it, save checkpoints after validation."
            )
        elif after_validation or count % schedule.every == 0:
            epoch = trainers.epoch_of_last_batch(trainer) if self.by_steps else count - 1
            self._explain(trainer, pl_module, count, epoch)
        schedule.pass_over(count)

    @hook
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Awaits the last explanation, stops the clock, and uploads the reports if that is wanted."""
        if self.enabled and self._is_beside(trainer):
            self._finish_beside(trainer, pl_module)
        self._memory.schedule.stop(time.perf_counter())
        self._upload(trainer)

    def _upload(self, trainer: pl.Trainer) -> None:
        if not self.enabled:
            # It may be that no other rank has this monitor.
            return
        with self._failure_log.guard("The reports could not be uploaded", trainers.everyone(trainer)):
            self._publisher.upload(trainer)

    @hook
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes of which step and epoch a validation or test outside of ``fit`` explains the weights."""
        if trainer.state.fn != "fit":
            self._moment = moment_of(checkpoint)

    @hook
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses and checks the samples of a validation that runs outside of ``fit``."""
        if self.enabled and trainer.state.fn == "validate":
            self._note_moment(trainer)
            self._prepare(trainer, pl_module, "val")

    @hook
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses and checks the samples of the test."""
        if self.enabled:
            self._note_moment(trainer)
            self._prepare(trainer, pl_module, "test")

    def _note_moment(self, trainer: pl.Trainer) -> None:
        """The same for a checkpoint that holds weights only, with which Lightning calls no callback."""
        if self._moment is None and trainer.ckpt_path is not None:
            with self._failure_log.guard("The step of the checkpoint is not known", trainers.everyone(trainer)):
                self._moment = moment_of(load(Path(trainer.ckpt_path)))

    # -- when ------------------------------------------------------------------------------------------------------

    def _rests(self, trainer: pl.Trainer, *_: Any, **__: Any) -> bool:
        """Whether nothing is to be done after this batch."""
        beside = self._beside
        if self._lazy or self._first_forward.watches or not (beside is None or not beside.has_news()):
            return False
        return not (self.by_steps and self._memory.schedule.reached(trainer.global_step))

    @hook_unless(_rests)
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Explains after an optimizer step, if the schedule counts steps."""
        self._first_forward.leave()
        if not self.enabled:
            return
        if self._lazy:
            self._prepare_training(trainer, pl_module)
        if self._is_beside(trainer):
            with self._raising_later(trainers.everyone(trainer)):
                self._take_arrived(trainer, pl_module)
        if self.by_steps:
            self._explain_if_due(trainer, pl_module, trainer.global_step)

    @hook
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after a training epoch, if the schedule counts epochs."""
        if self.by_steps and self.enabled and trainer.global_step == 0 and trainer.is_global_zero:
            self._failure_log.report_once(
                "steps",
                "every_n_train_steps counts the Trainer's global_step, which did not move in a whole epoch: nothing will be "
                "explained. Use every_n_epochs, or in manual optimization the optimizers of self.optimizers().",
            )
        if not self.by_steps and self.hook == "train_epoch_end":
            self._explain_if_due(trainer, pl_module, trainer.current_epoch + 1)

    @hook
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after a validation, but never after the sanity check."""
        asked = trainer.state.fn == "validate" or self.hook == "validation_epoch_end"
        if asked and not trainer.sanity_checking:
            self._explain_if_due(trainer, pl_module, trainer.current_epoch + 1)

    @hook
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Uploads the reports after a validation outside of ``fit``, if that is wanted."""
        if trainer.state.fn == "validate":
            self._upload(trainer)

    @hook
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Ends the process that explains beside the training."""
        self._end_beside()

    @hook
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The same."""
        self._end_beside()

    @hook
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Uploads the reports after the test, if that is wanted."""
        self._upload(trainer)

    @hook
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after the test."""
        self._explain_if_due(trainer, pl_module)

    def _explain_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule, count: int = 0) -> None:
        """Explains if the count of a training is due; a validation or test outside of ``fit`` has none."""
        fitting, schedule = trainer.state.fn == "fit", self._memory.schedule
        # Beside the training, rank zero alone knows what ``max_overhead`` puts off.
        due = schedule.reached if self._is_beside(trainer) else schedule.due
        if self.enabled and (not fitting or due(count)):
            self._explain(trainer, pl_module, count if fitting else 0)


ExplanationMonitor._defaults = arguments.defaults_of(ExplanationMonitor.__init__)
