"""ExplanationMonitor: when to explain, at which step, and who logs. No mathematics."""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_explain import trainer as trainers
from lightning_explain.baselines import Normalization
from lightning_explain.config import monitor_arguments
from lightning_explain.forward import ForwardFn, OutputFn, Target, check_target
from lightning_explain.pipeline import (
    AUTO_LIMIT,
    Explainer,
    Requests,
    build_methods,
    build_metrics,
    check_limit,
)
from lightning_explain.probe import ProbeSelection, collect, fingerprint, probe_from_state, probe_state
from lightning_explain.publish import charts, publication, score_names
from lightning_explain.random_state import preserved_random_state
from lightning_explain.render import Options
from lightning_explain.schedule import Schedule
from lightning_explain.sinks import sinks_for
from lightning_explain.store import safe_name, save_report
from lightning_explain.types import Probe, Publication, Report, Sink

HOOKS = ("train_epoch_end", "validation_epoch_end")
ON_ERROR = ("warn", "raise")


class ExplanationMonitor(pl.Callback):
    """Explains the model on fixed rows while it trains, and disturbs nothing.

    Every argument has a default; ``ExplanationMonitor()`` works on an image classifier.

    Args:
        methods: A mapping of names to methods (instances, class names, or mappings with ``name``), or a list of them.
            Default: saliency, integrated gradients, Grad-CAM of the last feature map.
        metrics: The same for metrics. Default: Infidelity and SensitivityMax.
        probe: ``ProbeSelection``, a ``Probe``, or dataset indices. Default: 16 rows of the validation data.
        target: ``"label"``, ``"predicted"``, an int, a tuple such as (class, row, column), or a callable ``(N, ...) -> (N,)``.
        every_n_epochs: Explain after every so many epochs; excludes ``every_n_train_steps``. Default: every epoch.
        every_n_train_steps: Explain after every so many optimiser steps.
        at_start: Explain before the first step as well.
        hook: ``"train_epoch_end"``, or ``"validation_epoch_end"`` (the first validation of a due epoch). The hook decides which weights
            are explained when another callback swaps them for validation.
        max_overhead: Largest share of training time the monitor may take, e.g. 0.05; it explains less often to stay under it.
        max_examples_per_pass: Rows the model may see in one call; ``"auto"``: the training batch, at most 64.
        on_error: ``"warn"``: a failing explanation is told once and training goes on; ``"raise"``.
        seed: Key of all random draws.
        enabled: ``False`` switches everything off.
        save_probe: Keep the rows in checkpoints; otherwise their indices and fingerprint only.
        save_reports: Keep every report as a file in ``<run>/explain/<name>/``, to draw or compare again.
        name: Tag prefix, folder and state key; several monitors need several names.
        forward_fn: ``forward_fn(module, *inputs, *forward_args)`` instead of ``module(...)``.
        output_fn: The tensor ``(N, ...)`` in what the module returns.
        batch_fn: Turns a collated batch into ``(inputs, targets)`` or a ``Probe``.
        class_names: A name for each class index, for titles.
        normalization: ``(mean, std)`` for each channel, undone for display and for the black baseline.
        panels: ``(kind, sign)`` of each column of the pictures, in Captum's vocabulary.
        cmap: Colour map of all heat maps.

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
        panels: Sequence[Sequence[str]] | None = None,
        cmap: Any = None,
    ) -> None:
        super().__init__()
        check_target(target)
        _one_of("hook", hook, HOOKS)
        _one_of("on_error", on_error, ON_ERROR)
        _check_name(name)
        self.name = name
        self.enabled = enabled
        self.hook = hook
        self.at_start = at_start
        self.on_error = on_error
        self.save_probe = save_probe
        self.save_reports = save_reports
        self.by_steps = every_n_train_steps is not None
        self.last_report: Report | None = None
        self._schedule = _schedule(every_n_epochs, every_n_train_steps, max_overhead)
        self._selection = _selection(probe)
        self._batch_fn = batch_fn
        self._limit = check_limit(max_examples_per_pass)
        self._options = _options(panels, cmap, normalization, class_names)
        self._explainer = Explainer(
            methods=build_methods(methods),
            metrics=build_metrics(metrics),
            target=tuple(target) if isinstance(target, list) else target,
            seed=seed,
            forward_fn=forward_fn,
            output_fn=output_fn,
            normalization=self._options.normalization,
            optional_layers=methods is None,
            raising=on_error == "raise",
        )
        _warn_of_unsigned(self._explainer)
        self._ready = self._explainer
        self._probe: Probe | None = probe if isinstance(probe, Probe) else None
        self._expected: tuple[Tensor, str] | None = None
        self._directory: Path | None = None
        self._sinks: list[Sink] = []
        self._told: set[str] = set()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ExplanationMonitor:
        """A monitor from a plain mapping or an OmegaConf one, whose names are looked up in ``methods`` and ``metrics`` only.

        Raises:
            ValueError: If a key, a method or a metric is unknown; the nearest valid names are listed.
        """
        return cls(**monitor_arguments(config, cls))

    @property
    def state_key(self) -> str:
        """Several monitors in one Trainer are told apart by their names."""
        return self._generate_state_key(name=self.name)

    @property
    def probe(self) -> Probe | None:
        """The fixed rows, once they are chosen."""
        return self._probe

    @property
    def charts(self) -> dict[str, dict[str, list[str]]]:
        """The tags of each score: what belongs on one chart."""
        return charts(self.name, self._ready.methods, self._ready.metrics)

    # -- before the first batch ------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks strategy and watchers, and settles the run's directory on all ranks."""
        if not self.enabled:
            return
        trainers.check_strategy(trainer)
        if stage == "fit":
            keys = [tag for tags in self.charts[self.name].values() for tag in tags]
            trainers.check_watchers(self, trainer, f"{self.name}/", keys, self._first_score())
        if self._directory is None:
            self._directory = trainers.run_directory(trainer) / "explain"

    def _first_score(self) -> str:
        if self.at_start:
            return "start"
        return self.hook if self._schedule.every == 1 and not self.by_steps else "later"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the rows, checks everything that needs the model, and explains if asked to."""
        if not self.enabled:
            return
        if self.hook == "validation_epoch_end" and not self.by_steps and not trainer.enable_validation:
            raise ValueError(
                'ExplanationMonitor(hook="validation_epoch_end"), but this run does not validate; '
                'use hook="train_epoch_end", or give the Trainer a validation loader.'
            )
        self._prepare(trainer, pl_module, self._selection.source)
        self._schedule.start(time.perf_counter())
        if self.at_start and trainer.global_step == 0:
            self._explain(trainer, pl_module, trainer.callback_metrics.__setitem__)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the rows and checks, when validation runs alone."""
        if self.enabled and trainer.state.fn == "validate":
            self._prepare(trainer, pl_module, "val")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the rows and checks, when testing."""
        if self.enabled:
            self._prepare(trainer, pl_module, "test")

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> None:
        with preserved_random_state():
            if self._probe is None:
                self._probe = self._collect(trainer, pl_module, source)
            self._ready = replace(
                self._explainer,
                limit=self._limit or min(trainers.batch_size(trainer) or AUTO_LIMIT, 64),
                forward_context=trainer.precision_plugin.forward_context,
            ).check(pl_module, self._probe)
            if trainer.is_global_zero:
                self._open_sinks(trainer)

    def _collect(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> Probe:
        loader = trainers.find_loader(trainer, source, self._selection.dataloader_idx)
        selection = self._selection
        if self._expected is not None:
            selection = replace(selection, indices=self._expected[0].tolist(), per_class=False)
        probe = collect(loader, selection, self._batch_fn, trainers.transferred(trainer, pl_module))
        if self._expected is not None and fingerprint(probe) != self._expected[1]:
            rank_zero_warn(
                f"The probe rows are not what they were: the data under indices {self._expected[0].tolist()} has "
                f"fingerprint {fingerprint(probe)[:12]}, the checkpoint names {self._expected[1][:12]}. "
                "Curves from here on are of other rows; save_probe=True would have kept them."
            )
        return probe

    def _open_sinks(self, trainer: pl.Trainer) -> None:
        assert self._directory is not None
        dry = getattr(trainer, "fast_dev_run", False)
        self._sinks = [] if dry else sinks_for(trainer.loggers, self._directory)
        monitors = [c for c in trainer.callbacks if isinstance(c, ExplanationMonitor) and c.enabled]  # type: ignore[attr-defined]
        if monitors[-1] is self:
            # The last one writes the layout of all, for a dashboard has one; by now the others know their layers.
            merged = {name: chart for monitor in monitors for name, chart in monitor.charts.items()}
            for sink in self._sinks:
                self._survive(partial(sink.layout, merged), f"The layout of {type(sink).__name__}")

    # -- when ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Explains after optimiser steps, if the schedule goes by steps."""
        if self.by_steps:
            self._explain_if_due(trainer, pl_module, trainer.global_step, on_step=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after training epochs."""
        if not self.by_steps and self.hook == "train_epoch_end":
            self._explain_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after validation, never in the sanity check."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self._explain_alone(trainer, pl_module)
        elif not self.by_steps and self.hook == "validation_epoch_end":
            self._explain_if_due(trainer, pl_module, trainer.current_epoch + 1)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Explains after testing."""
        self._explain_alone(trainer, pl_module)

    def _explain_alone(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.enabled:
            self._explain(trainer, pl_module, self._logging(pl_module))

    def _explain_if_due(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, count: int, on_step: bool = False
    ) -> None:
        if self.enabled and self._schedule.due(count):
            self._explain(trainer, pl_module, self._logging(pl_module, on_step), count)

    def _logging(self, pl_module: pl.LightningModule, on_step: bool = False) -> Callable[[str, Tensor], None]:
        def log(key: str, value: Tensor) -> None:
            value = value.to(pl_module.device)
            pl_module.log(key, value, logger=False, sync_dist=True, batch_size=1, on_step=on_step, on_epoch=not on_step)

        return log

    # -- one explanation -------------------------------------------------------------------------------------------

    def _explain(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, log: Callable[[str, Tensor], None], count: int = 0
    ) -> None:
        started = time.perf_counter()
        with preserved_random_state():
            report = self._report(trainer, pl_module)
            if report is not None:
                self.last_report = report
                fitting = trainer.state.fn == "fit"
                found = self._publication(trainer, report, started) if trainer.is_global_zero else None
                for key, value in {**report.scalars(), "seconds": report.seconds}.items():
                    log(f"{self.name}/{key}", torch.tensor(value))
                if found is not None:
                    self._write(found)
                if fitting:
                    self._note_time(trainer, count, started)

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Report | None:
        """The report, or ``None`` on all ranks if any of them failed."""
        assert self._probe is not None
        error: Exception | None = None
        with self._progress(trainer) as progress:
            try:
                report = self._ready.explain(pl_module, self._probe, progress)
            except Exception as failure:
                error = failure
        if not trainer.strategy.reduce_boolean_decision(error is None, all=True):
            self._fail(trainer, error)
            return None
        for name, failure_text in report.failures.items():
            self._tell_once(name, f"{name!r} failed and is left out of this explanation:\n{failure_text}")
        self._tell_of_nonfinite(report)
        return replace(report, epoch=trainer.current_epoch, step=trainer.global_step)

    def _fail(self, trainer: pl.Trainer, error: Exception | None) -> None:
        if self.on_error == "raise":
            raise error or RuntimeError("An explanation failed on another rank; its traceback is printed there.")
        if error is not None:
            text = "".join(traceback.format_exception(error))
            self._tell_once("explanation", f"No explanation, on rank {trainer.global_rank}; training goes on:\n{text}")

    def _tell_of_nonfinite(self, report: Report) -> None:
        for method, rows in report.nonfinite().items():
            if rows:
                self._tell_once(
                    f"nonfinite/{method}",
                    f"{method!r} has a map or score that is NaN or infinite on rows {rows}; they are counted in "
                    f"{self.name}/nonfinite/{method} and left out of means.",
                )

    def _publication(self, trainer: pl.Trainer, report: Report, started: float) -> Publication | None:
        assert self._probe is not None
        fitting = trainer.state.fn == "fit"
        overhead = self._schedule.overhead(started, time.perf_counter()) if fitting else None
        try:
            return publication(self.name, report, self._probe, self._ready.metrics, self._options, overhead)
        except Exception as error:
            self._survive_failure("Drawing pictures", error)
            return None

    def _write(self, found: Publication) -> None:
        if self.save_reports and self._sinks:
            assert self._directory is not None
            folder = self._directory / safe_name(self.name)
            self._survive(partial(save_report, found.report, folder), "Saving the report")
        for sink in self._sinks:
            self._survive(partial(sink.write, found), type(sink).__name__)

    def _note_time(self, trainer: pl.Trainer, count: int, started: float) -> None:
        lengthened = self._schedule.lengthened
        self._schedule.done(count, started, time.perf_counter())
        # The clock of rank zero decides for all, so that no rank explains alone.
        self._schedule.load(trainer.strategy.broadcast(self._schedule.state()))
        if self._schedule.lengthened and not lengthened:
            unit = "steps" if self.by_steps else "epochs"
            rank_zero_info(
                f"ExplanationMonitor explains less often to stay under max_overhead={self._schedule.max_overhead}: "
                f"next after {self._schedule.not_before} {unit}."
            )

    @contextmanager
    def _progress(self, trainer: pl.Trainer) -> Iterator[Callable[[str], None]]:
        """Lightning's own bar, for explanations of more than two seconds."""
        shown = getattr(trainer.progress_bar_callback, "is_enabled", False) and trainer.is_global_zero
        total = len(self._ready.methods) + len(self._ready.metrics)
        bar = Tqdm(total=total, desc="Explaining", delay=2, leave=False, disable=not shown, dynamic_ncols=True)

        def step(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        try:
            yield step
        finally:
            bar.close()

    # -- failures --------------------------------------------------------------------------------------------------

    def _survive(self, work: Callable[[], Any], what: str) -> None:
        try:
            work()
        except Exception as error:
            self._survive_failure(what, error)

    def _survive_failure(self, what: str, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        text = "".join(traceback.format_exception(error))
        self._tell_once(what, f"{what} failed; training goes on:\n{text}")

    def _tell_once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            warnings.warn(f"ExplanationMonitor {self.name!r}: {text}", RuntimeWarning, stacklevel=2)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The rows (or what names them), and the schedule; loads with ``weights_only=True``."""
        state: dict[str, Any] = {"version": 1, "schedule": self._schedule.state()}
        if self._probe is not None:
            state["ids"] = self._probe.row_ids
            state["fingerprint"] = fingerprint(self._probe)
            state["probe"] = probe_state(self._probe) if self.save_probe else None
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rows and the schedule of a checkpoint, so that the same rows are explained."""
        self._schedule.load(state_dict["schedule"])
        saved = state_dict.get("probe")
        if saved is not None:
            self._probe = probe_from_state(saved)
        elif "ids" in state_dict:
            self._expected = (state_dict["ids"], state_dict["fingerprint"])


def _schedule(every_n_epochs: int | None, every_n_train_steps: int | None, max_overhead: float | None) -> Schedule:
    given = {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}
    for name, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}; allowed: a whole number of at least 1, or None.")
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError("every_n_epochs and every_n_train_steps exclude each other; give one of them.")
    if max_overhead is not None and not (isinstance(max_overhead, (int, float)) and 0 < max_overhead < math.inf):
        raise ValueError(f"max_overhead={max_overhead!r}; allowed: None or a share above 0, such as 0.05.")
    return Schedule(every=every_n_epochs or every_n_train_steps or 1, max_overhead=max_overhead)


def _selection(probe: Any) -> ProbeSelection:
    if probe is None or isinstance(probe, Probe):
        return ProbeSelection()
    if isinstance(probe, ProbeSelection):
        return probe
    if isinstance(probe, Sequence) and not isinstance(probe, str) and all(isinstance(i, int) for i in probe):
        return ProbeSelection(indices=list(probe))
    raise TypeError(
        f"probe is a {type(probe).__name__}; allowed: ProbeSelection(count=16), Probe(inputs, targets), "
        "or a list of dataset indices."
    )


def _options(panels: Any, cmap: Any, normalization: Any, class_names: Any) -> Options:
    given = {"cmap": cmap, "normalization": normalization, "class_names": class_names}
    return Options(**given) if panels is None else Options(panels=panels, **given)


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}.")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or name != name.strip("/ ") or name in (".", ".."):
        raise ValueError(f"name={name!r}; allowed: a word that can be a tag prefix and a folder, such as 'explain'.")


def _warn_of_unsigned(explainer: Explainer) -> None:
    unsigned = [name for name, method in explainer.methods.items() if getattr(method, "abs", False) is True]
    scored = [score for score in score_names(explainer.metrics) if score.startswith("infidelity")]
    if unsigned and scored:
        rank_zero_warn(
            f"{unsigned} take absolute values, and {scored} cannot be right on a map without signs; use abs=False."
        )
