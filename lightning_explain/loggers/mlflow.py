"""Takes a publication, and writes it to MLflow."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Picture, Publication
from lightning_explain.core.run_info import RunInfo, flat

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger

_LONGEST_VALUE = 1000
_MOST_TAGS = 100  # in one call


class MlflowSink(Sink):
    """Writes scalars, pictures (the image grid of MLflow's page), the settings as tags, and ``<name>/run.json`` as an artifact.

    The slider of the image grid starts at 0 and finds no picture there unless one was logged at 0. So pictures are logged by epoch, unless
    the monitor explains before the first step (``at_start``) or by steps (``every_n_train_steps``); then, as scalars, by step.
    A card of the grid shows the upper 219 pixels of a square of 256, with the picture in its middle. So pictures are squares that are
    empty below, and pages are narrow ones: their capital letters are 9 pixels high there.
    The settings are tags and no params, because MLflow's page lists all params above each picture, and refuses to change them in a run
    that is resumed. A tag keeps the first 1,000 characters. Characters that MLflow does not allow in names become ``_``. Scalars are
    written as the logger is configured (``synchronous``), the rest when the call returns (unless ``MLFLOW_ENABLE_ASYNC_LOGGING``).

    Args:
        logger: The logger whose run receives them.
    """

    narrow_pages = True

    def __init__(self, logger: MLFlowLogger) -> None:
        self._logger = logger
        self._name = ""
        self._by_epoch = True

    @property
    def place(self) -> str:
        """MLflow, and the run."""
        return f"MLflow (run {self._logger.run_id})"

    def begin(self, run: RunInfo) -> None:
        """Writes the settings, and what else is true of the run."""
        from mlflow.entities import RunTag

        self._name = run.name
        self._by_epoch = not (run.settings.get("at_start") or run.settings.get("every_n_train_steps"))
        client, run_id = self._logger.experiment, str(self._logger.run_id)
        tags = [
            RunTag(_key(key), str(value)[:_LONGEST_VALUE])
            for key, value in flat(run.settings, run.name, lists=True).items()
        ]
        for i in range(0, len(tags), _MOST_TAGS):
            client.log_batch(run_id, tags=tags[i : i + _MOST_TAGS])
        client.log_dict(run_id, asdict(run), f"{_key(run.name)}/run.json")

    def write(self, publication: Publication) -> None:
        """Logs one point for each scalar, at the step of the explanation, and one picture for each tag."""
        self._logger.log_metrics({_key(tag): value for tag, value in publication.charted.items()}, publication.step)
        client, run_id = self._logger.experiment, str(self._logger.run_id)
        step = publication.epoch if self._by_epoch else publication.step
        for tag, picture in publication.pictures.items() if hasattr(client, "log_image") else ():
            client.log_image(run_id, _square(picture), key=_key(tag), step=step)

    def upload(self, folder: Path) -> None:
        """Logs the files as artifacts in ``<name>/reports``."""
        self._logger.experiment.log_artifacts(self._logger.run_id, str(folder), f"{_key(self._name)}/reports")


def _square(picture: Picture) -> Picture:
    """The picture above white, as high as it is wide."""
    below = max(0, picture.shape[1] - picture.shape[0])
    return np.pad(picture, ((0, below), (0, 0), (0, 0)), constant_values=255)


def _key(tag: str) -> str:
    """The tag without what MLflow does not allow in names."""
    return re.sub(r"[^\w\-. /]", "_", tag, flags=re.ASCII)
