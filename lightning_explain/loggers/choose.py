"""Takes a Trainer's loggers, and returns one sink for each, chosen by the logger's type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.loggers.comet import CometSink
from lightning_explain.loggers.files import FilesSink
from lightning_explain.loggers.mlflow import MlflowSink
from lightning_explain.loggers.packages import in_both
from lightning_explain.loggers.tensorboard import TensorBoardSink
from lightning_explain.loggers.wandb import WandbSink


class ScalarSink(Sink):
    """Writes only the scalars, to a logger of a type that may not take pictures."""

    most_pictures = 0

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    @property
    def place(self) -> str:
        """The logger, and its folder if it has one."""
        folder = self._logger.log_dir or self._logger.save_dir
        return f"{type(self._logger).__name__}{f' ({folder})' if folder else ''}"

    def write(self, publication: Publication) -> None:
        """Logs the scalars at the step of the explanation."""
        self._logger.log_metrics(publication.charted, step=publication.step)


def sinks_for(loggers: Sequence[Logger], directory: Path) -> list[Sink]:
    """The sinks for these loggers.

    TensorBoard, W&B, MLflow and Comet have their own sinks. Any other logger receives the scalars, and pictures and scalars are also
    written to files, as they are without any logger. Lightning's ``DummyLogger`` receives nothing.

    Args:
        loggers: ``trainer.loggers``.
        directory: Folder for the files, ``<run>/<name>``.
    """
    sinks = [_sink(logger) for logger in loggers if not isinstance(logger, in_both(DummyLogger))]
    if not loggers or any(isinstance(sink, ScalarSink) for sink in sinks):
        sinks.append(FilesSink(directory))
    return sinks


_KINDS: dict[type, Callable[[Any], Sink]] = {
    TensorBoardLogger: TensorBoardSink,
    WandbLogger: WandbSink,
    MLFlowLogger: MlflowSink,
    CometLogger: CometSink,
}


def _sink(logger: Logger) -> Sink:
    # Chosen by type, because a DummyLogger and its experiment have every attribute.
    return next(
        (make(logger) for kind, make in _KINDS.items() if isinstance(logger, in_both(kind))), ScalarSink(logger)
    )
