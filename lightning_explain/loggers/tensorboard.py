"""Takes a publication, and writes it to TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardSink(Sink):
    """Writes scalars, pictures and a custom-scalars page.

    TensorBoard keeps one description for all steps of a picture, so the caption is logged as the text
    ``<name>/caption``.

    Args:
        logger: The logger whose run receives them.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    @property
    def pictures_go_to(self) -> str:
        """TensorBoard, and the folder of its run."""
        return f"TensorBoard ({self._logger.log_dir})"

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Adds one category for each monitor, with one chart for each score."""
        # TensorBoard matches regular expressions from a tag's start; these match one tag each.
        pages = {
            name: {metric: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]] for metric, tags in by_metric.items()}
            for name, by_metric in charts.items()
        }
        self._logger.experiment.add_custom_scalars(pages)

    def write(self, publication: Publication) -> None:
        """Adds one point for each tag, at the step of the explanation."""
        writer, step = self._logger.experiment, publication.step
        for tag, value in publication.charted.items():
            writer.add_scalar(tag, value, step)
        for tag, picture in publication.pictures.items():
            writer.add_image(tag, picture, step, dataformats="HWC")
        writer.add_text(f"{publication.name}/caption", publication.caption, step)
        writer.flush()
