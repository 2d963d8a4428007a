"""Takes a Trainer, and explains checkpoints one after the other in the place of a training.

The monitor sees a training whose steps are the checkpoints: the Trainer sets everything up as for ``fit``, and instead of its loop
that would train, the one here runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.schema import MalformedError, brief, one_line
from lightning_explain.distributed.ranks import anything
from lightning_explain.explainer.registry import auto_limit
from lightning_explain.loggers.packages import in_both
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor import loaders
from lightning_explain.monitor.callback import ExplanationMonitor
from lightning_explain.monitor.checkpoints import Checkpoint, load, load_weights, logged_in
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.render.history import PictureHistory
from lightning_explain.store.files import safe_name
from lightning_explain.store.report_files import find_report, load_reports
from lightning_explain.store.run_files import RunFiles

_SAME = ("methods", "metrics", "modalities", "fingerprint", "pass_size", "threads", "memory_format", "versions")
"""What of a run decides its numbers, beside the monitor's arguments."""
_WHEN = (
    *("at_start", "beside", "when_busy", "enabled", "every_n_epochs", "every_n_train_steps"),
    *("hook", "max_overhead", "on_error", "alerts"),
)
_WHERE = ("keep_every", "keep_last", "log_artifacts", "name", "save_inputs", "save_probe", "save_reports", "sinks")
_DRAWING = ("class_names", "cmap", "outlier_perc", "panels", "scale")
_KNOWN_OTHERWISE = ("channels_last", "max_examples_per_pass", "methods", "metrics", "probe")
_OTHERS = frozenset((*_WHEN, *_WHERE, *_DRAWING, *_KNOWN_OTHERWISE))
"""The monitor's arguments that decide no numbers, or whose effect is in :data:`_SAME`."""


@dataclass
class CheckpointLoop:
    """Explains checkpoints one after the other, in the place of a training.

    Args:
        monitor: What explains.
        model: The module.
        checkpoints: In the order of their steps.
        left_out: By file: why it is not explained.
        run_folder: The folder of the run.
        number: This job's number.
        jobs: How many jobs divide the checkpoints between them.
        weights_only: As ``load`` takes it.
    """

    monitor: ExplanationMonitor
    model: pl.LightningModule
    checkpoints: list[Checkpoint]
    left_out: dict[Path, str]
    run_folder: Path
    number: int
    jobs: int
    weights_only: bool
    explained: list[Checkpoint] = field(default_factory=list)
    stored: list[Checkpoint] = field(default_factory=list)
    _initial: Mapping[str, Tensor] | None = None  # the weights, if checkpoints need not hold all of them
    _loaded: Checkpoint | None = None
    _logged: Mapping[str, float] = field(default_factory=dict)  # by the training, when it saved that checkpoint

    def __post_init__(self) -> None:
        # There is no training to go on meanwhile.
        self.monitor._beside = None
        publisher = self.monitor._publisher
        publisher.run_folder, publisher.saves_last = self.run_folder, True
        publisher.reports.keep_every = publisher.reports.keep_last = None

    @property
    def folder(self) -> Path:
        """The folder of the reports."""
        return self.run_folder / safe_name(self.monitor.name)

    @contextmanager
    def as_in_its_run(self) -> Iterator[None]:
        """Computes with as many threads as the reports that are there already."""
        threads, last = torch.get_num_threads(), self._last_run()
        torch.set_num_threads(threads if last is None else last.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _last_run(self) -> RunInfo | None:
        return next(reversed(RunFiles(self.folder).runs.values()), None)

    def run(self, trainer: pl.Trainer, data: Any) -> None:
        """Calls ``fit``, which sets everything up as for a training, with another loop and without optimizers."""
        vars(trainer.fit_loop)["run"] = partial(self._explain_all, trainer)
        of_module = isinstance(data, in_both(pl.LightningDataModule))
        given = {} if data is None else {"datamodule" if of_module else "val_dataloaders": data}
        vars(self.model)["configure_optimizers"] = _no_optimizers
        try:
            with warnings.catch_warnings():
                # It is of no meaning here whether there is a validation.
                warnings.filterwarnings("ignore", "You (passed in|defined) a `val")
                trainer.fit(self.model, **given)
        finally:
            del vars(self.model)["configure_optimizers"]

    def _explain_all(self, trainer: pl.Trainer) -> None:
        everyone, watch = trainers.everyone(trainer), self.monitor
        self.checkpoints = everyone.first(self.checkpoints)
        if not self.model.strict_loading:
            self._initial = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        # Every job is prepared with the weights of the same checkpoint.
        if not any(self._load(trainer, checkpoint) for checkpoint in self.checkpoints):
            return
        self._prepare(trainer)
        self.checkpoints = [one for one in self.checkpoints if one.path not in self.left_out]
        mine = self.checkpoints[self.number :: self.jobs]
        self.stored = everyone.first(self._are_stored(mine))
        for number, checkpoint in enumerate(mine, start=1):
            if checkpoint in self.stored:
                self._recall(trainer, checkpoint, more=len(self.stored) < len(mine))
            elif self._load(trainer, checkpoint) and self._explained(trainer, checkpoint):
                self.explained.append(checkpoint)
                rank_zero_info(f"ExplanationMonitor {watch.name!r}: explained {checkpoint}, {number} of {len(mine)}.")
        watch.on_train_end(trainer, self.model)

    def _load(self, trainer: pl.Trainer, checkpoint: Checkpoint) -> bool:
        """Whether the weights fit, which are then in the module; what does not fit on any rank is left out."""
        if checkpoint == self._loaded:
            return True
        with trainers.everyone(trainer).agree(f"loading {checkpoint}", anything) as loading:
            content = load(checkpoint.path, self.weights_only)
            if self._initial is not None:
                self.model.load_state_dict(self._initial)
            load_weights(self.model, content)
        if loading.failed_rank is not None:
            error = loading.error or f"rank {loading.failed_rank} could not load it"
            fits = "" if isinstance(error, (MalformedError, str)) else "it does not fit the model: "
            self.left_out[checkpoint.path] = one_line(f"{fits}{error}")
            return False
        for name in self._logged:
            trainer.callback_metrics.pop(name, None)
        self._logged = logged_in(content, checkpoint.path.name)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._logged.items()})
        self._loaded, progress = checkpoint, trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_progress.current.completed = checkpoint.epoch
        # The one that counts depends on the module.
        progress.automatic_optimization.optim_progress.optimizer.step.total.completed = checkpoint.step
        progress.manual_optimization.optim_step_progress.total.completed = checkpoint.step
        return True

    def _prepare(self, trainer: pl.Trainer) -> None:
        """Chooses the samples, and checks methods and metrics on the first checkpoint.

        Raises:
            ValueError: If nothing can be explained.
        """
        watch, last = self.monitor, self._last_run()
        if watch._limit is None:
            # Never timed, so that jobs which do not know of each other take the same.
            known = None if last is None else last.pass_size
            watch._pass_size = known or auto_limit(loaders.batch_size_unloaded(trainer))
        watch._prepare_training(trainer, self.model)
        if watch._idle or watch.probe is None or not watch._ready.methods:
            raise ValueError("Nothing can be explained; the warning above says why.")

    def _are_stored(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Those of whose weights there is a report at equal settings; says why others are not good enough."""
        files, good, bad = RunFiles(self.folder), list[Checkpoint](), dict[str, list[int]]()
        for checkpoint in checkpoints:
            found = find_report(files, checkpoint.step, checkpoint.epoch)
            why = "" if found is None else self._why_again(checkpoint, *found)
            if why:
                bad.setdefault(why, []).append(checkpoint.step)
            elif found is not None:
                good.append(checkpoint)
        for why, steps in bad.items():
            rank_zero_warn_or_log(f"Reports that are stored are computed again, because {why}: steps {brief(steps)}.")
        return good

    def _why_again(self, checkpoint: Checkpoint, path: Path, run: RunInfo | None) -> str:
        assert self.monitor._run is not None
        newer = path.stat().st_mtime < checkpoint.path.stat().st_mtime
        return "their checkpoints are newer" if newer else _difference(run, self.monitor._run)

    def _recall(self, trainer: pl.Trainer, checkpoint: Checkpoint, more: bool) -> None:
        """Lets later explanations look back at one that is stored, if there are more to come."""
        watch, memory = self.monitor, self.monitor._memory
        pictures = trainer.is_global_zero and self.jobs == 1
        if not more or not (pictures or memory.looks_back):
            return
        path, _ = find_report(RunFiles(self.folder), checkpoint.step, checkpoint.epoch) or (Path(), None)
        (report,) = load_reports(path)
        assert watch.probe is not None
        memory.keep(report, watch.probe, trainers.everyone(trainer).first)
        if pictures:
            memory.keep_pictures(watch._publisher.snapshot(report, watch.probe), report.fingerprint)

    def _explained(self, trainer: pl.Trainer, checkpoint: Checkpoint) -> bool:
        watch, watch.last_report = self.monitor, None
        watch._explain(trainer, self.model)
        if self.jobs > 1:
            # Other jobs have the checkpoints between.
            watch._memory.pictures = PictureHistory()
        if watch.last_report is None:
            self.left_out[checkpoint.path] = "it could not be explained; the warning above says why"
        return watch.last_report is not None


def _no_optimizers() -> list[Any]:
    return []


def _difference(stored: RunInfo | None, now: RunInfo) -> str:
    """In what the settings that decide the numbers of a stored report are not those of now; empty if in nothing."""
    if stored is None:
        return "their settings are not known"
    fields = [name for name in _SAME if getattr(stored, name) != getattr(now, name)]
    given = [name for name in now.settings if name not in _OTHERS]
    settings = [name for name in given if stored.settings.get(name) != now.settings[name]]
    return f"they have other {', '.join(dict.fromkeys((*fields, *settings)))}" if fields or settings else ""
