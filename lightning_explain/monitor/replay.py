"""Takes the checkpoints of a finished training and its module; writes the files and curves of a monitored training.

Here are the arguments; ``checkpoint_loop.py`` does the work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import distributed

from lightning_explain.core.schema import brief
from lightning_explain.core.validation import check_whole
from lightning_explain.loggers.packages import in_both
from lightning_explain.monitor.callback import ExplanationMonitor
from lightning_explain.monitor.checkpoint_loop import CheckpointLoop
from lightning_explain.monitor.checkpoints import Checkpoint, Given, check_module, find

_PLACE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "plugins")
"""Of a Trainer's arguments, those that say where and how exactly it computes."""


@dataclass(frozen=True)
class Replayed:
    """What :func:`replay` did.

    Args:
        folder: Where the reports are, for ``load_reports``.
        explained: Checkpoints that were explained now.
        stored: Those whose reports were there already, at equal settings.
        left_out: Files that could not be explained, and why.
    """

    folder: Path
    explained: Sequence[Checkpoint]
    stored: Sequence[Checkpoint]
    left_out: Mapping[Path, str]


def replay(
    checkpoints: Given,
    model: pl.LightningModule,
    data: Any = None,
    monitor: ExplanationMonitor | Mapping[str, Any] | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    logger: Any = None,
    trainer: Mapping[str, Any] | None = None,
    part: Sequence[int] = (0, 1),
    weights_only: bool = True,
) -> Replayed:
    """Explains the checkpoints of a finished training as a monitor would have explained them, in the order of their steps.

    All are explained on the same samples, each with the step and epoch that it was saved at. What the folder holds already at equal
    settings is not computed again, so a replay that was ended goes on where it was.

    Args:
        checkpoints: A folder with ``*.ckpt`` files (at any depth), one file, or a list of both. Of checkpoints with the same step and
            weights, such as ``last.ckpt``, one is explained.
        model: The module, built as for the training; its weights are replaced, ``strict_loading`` says whether all of them must be there.
        data: A data module, or validation loaders, from which the samples are chosen. Not needed if the monitor has a ``Probe``.
        monitor: An ``ExplanationMonitor`` of its own, or its configuration (``ExplanationMonitor.from_config``). When to explain, and
            which reports to keep, is of no meaning here.
        output: The run's folder; reports are written to ``<output>/<name>/``. Default: that of the checkpoints, or its parent if it is
            called ``checkpoints``.
        logger: Lightning loggers, or ``False``. Default: TensorBoard, in the run's folder.
        trainer: Of a Trainer's arguments: ``accelerator``, ``devices``, ``num_nodes``, ``strategy``, ``precision``, ``plugins``. Others
            are ignored. Under ``torchrun`` the samples are divided over its processes.
        part: ``(i, n)``: explain only the i-th, (i+n)-th, ... checkpoint, counted from 0, beside other jobs that explain the others.
        weights_only: ``False``: load checkpoints that hold more than tensors and plain values. This can run code that they contain.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ValueError: If an argument has a value that is not allowed, or no checkpoint can be explained.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_explain import ExplanationMonitor, Probe, load_reports, replay
        >>> monitor = ExplanationMonitor(methods=["Saliency"], metrics=[], probe=Probe(torch.rand(2, 32)), target=0)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     checkpoint = {"state_dict": BoringModel().state_dict(), "epoch": 0, "global_step": 64}
        ...     torch.save(checkpoint, f"{run}/a.ckpt")
        ...     done = replay(run, BoringModel(), monitor=monitor, logger=False)
        ...     print([report.step for report in load_reports(done.folder)])
        [64]
    """
    watch = monitor if isinstance(monitor, ExplanationMonitor) else ExplanationMonitor.from_config(monitor or {})
    number, count = _checked(watch, model, part)
    found, left_out = find(checkpoints, weights_only)
    if not found:
        raise ValueError(_nothing(left_out))
    folder = _folder(checkpoints) if output is None else Path(output)
    work = CheckpointLoop(watch, model, found, left_out, folder.absolute(), number, count, weights_only)
    arguments = {key: value for key, value in (trainer or {}).items() if key in _PLACE}
    with work.as_in_its_run():
        work.run(_trainer(model, watch, folder, logger, _launched() | arguments), data)
    if all(one.path in left_out for one in work.checkpoints):
        raise ValueError(_nothing(left_out))
    return Replayed(work.folder, work.explained, work.stored, left_out)


def _checked(monitor: ExplanationMonitor, model: object, part: Sequence[int]) -> tuple[int, int]:
    """The two numbers of a part.

    Raises:
        TypeError: If the model is no LightningModule.
        ValueError: If the part is none, the monitor is switched off, or one of its metrics needs the checkpoints of other jobs.
    """
    check_module(model)
    if not monitor.enabled:
        raise ValueError("The monitor has enabled=False, so there is nothing to replay.")
    if not isinstance(part, Sequence) or isinstance(part, str) or len(part) != 2:
        raise ValueError(f"part={brief(part)}; give two numbers (i, n), with i from 0 to n - 1.")
    check_whole("", "part[1]", part[1])
    check_whole("", "part[0]", part[0], least=0, most=part[1] - 1)
    back = [name for name, metric in monitor._explainer.metrics.items() if metric.needs_history]
    if part[1] > 1 and back:
        raise ValueError(
            f"{', '.join(map(repr, back))} compares each checkpoint with the one before, which another job may explain; replay all "
            "checkpoints in one job, or leave it out."
        )
    return part[0], part[1]


def _nothing(left_out: Mapping[Path, str]) -> str:
    shown = "; ".join(f"'{path.name}': {why}" for path, why in list(left_out.items())[:3])
    return f"None of the checkpoints can be explained: {shown}{'; ...' if len(left_out) > 3 else ''}."


def _folder(checkpoints: Given) -> Path:
    """The run's folder, from where its checkpoints are."""
    first = Path(checkpoints if isinstance(checkpoints, (str, os.PathLike)) else checkpoints[0]).absolute()
    folder = first if first.is_dir() else first.parent
    return folder.parent if folder.name == "checkpoints" else folder


def _launched() -> dict[str, Any]:
    """Arguments that a Trainer needs under ``torchrun``; other launchers know the Trainer's arguments, or set them."""
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        return {"devices": 1}
    here, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": here, "num_nodes": world // here, "strategy": "ddp" if world > 1 else "auto"}


def _trainer(
    model: pl.LightningModule, monitor: ExplanationMonitor, folder: Path, logger: Any, arguments: Mapping[str, Any]
) -> pl.Trainer:
    """A Trainer of the model's package that logs nothing of its own."""
    ours = isinstance(model, pl.LightningModule)
    trainer, board = in_both(pl.Trainer, TensorBoardLogger)[0 if ours else 2 :][:2]
    quiet = dict.fromkeys(("enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False)
    loggers = board(folder, name="", version="") if logger is None else logger
    made: pl.Trainer = trainer(
        callbacks=[monitor],
        default_root_dir=folder,
        logger=loggers,
        max_epochs=1,
        num_sanity_val_steps=0,
        **quiet,
        **arguments,
    )
    if isinstance(made.strategy, in_both(FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
        raise ValueError(
            f"{type(made.strategy).__name__} shards the model, and a replay loads it whole; use one device, or strategy='ddp'."
        )
    return made
