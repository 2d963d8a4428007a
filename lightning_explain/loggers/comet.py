"""Takes a publication, and writes it to Comet."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CometLogger


class CometSink(Sink):
    """Writes scalars, pictures (Comet's Graphics tab), the settings as parameters, and ``<name>/run.json`` as an asset.

    Args:
        logger: The logger whose experiment receives them.
    """

    def __init__(self, logger: CometLogger) -> None:
        self._logger = logger

    @property
    def place(self) -> str:
        """Comet, and the experiment."""
        return f"Comet (experiment {self._logger.version})"

    def begin(self, run: RunInfo) -> None:
        """Writes the settings, and what else is true of the run."""
        experiment = self._logger.experiment
        experiment.log_parameters({run.name: dict(run.settings)}, nested_support=True)
        experiment.log_asset_data(asdict(run), name=f"{run.name}/run.json", overwrite=True)

    def write(self, publication: Publication) -> None:
        """Logs one point for each scalar and one picture for each tag, at the step of the explanation."""
        self._logger.log_metrics(publication.charted, publication.step)
        for tag, content in publication.files().items():
            self._logger.experiment.log_image(io.BytesIO(content), name=tag, step=publication.step)

    def upload(self, folder: Path) -> None:
        """Logs the files as assets, by their paths."""
        self._logger.experiment.log_asset_folder(str(folder), log_file_name=True, recursive=True)
