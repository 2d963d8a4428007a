"""Where explanations are written: one sink for each logger, chosen by the logger's type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.loggers.files import FilesSink
from lightning_explain.loggers.tensorboard import TensorBoardSink
from lightning_explain.loggers.wandb import WandbSink

__all__ = ["FilesSink", "ScalarSink", "TensorBoardSink", "WandbSink", "sinks_for"]


class ScalarSink:
    """Writes the scalars to a logger that is not known to take pictures."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Nothing: charts are the logger's own affair."""

    def write(self, publication: Publication) -> None:
        """The scalars at the explanation's step."""
        self._logger.log_metrics(dict(publication.scalars), step=publication.step)


def sinks_for(loggers: Sequence[Logger], directory: Path) -> list[Sink]:
    """The sinks that serve these loggers.

    TensorBoard and W&B have sinks of their own. Any other logger gets the scalars, and the pictures become files;
    so they do, with the scalars, where there is no logger. Lightning's ``DummyLogger`` gets nothing.

    Args:
        loggers: ``trainer.loggers``.
        directory: Folder for the files, ``<run>/explain``.
    """
    sinks = [_sink(logger) for logger in loggers if not isinstance(logger, DummyLogger)]
    if not loggers or any(isinstance(sink, ScalarSink) for sink in sinks):
        sinks.append(FilesSink(directory))
    return sinks


def _sink(logger: Logger) -> Sink:
    # By type: a DummyLogger, and an experiment of one, has every attribute one asks it for.
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardSink(logger)
    if isinstance(logger, WandbLogger):
        return WandbSink(logger)
    return ScalarSink(logger)
