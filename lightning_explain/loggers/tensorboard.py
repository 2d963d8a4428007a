"""Explanations in TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_explain.core.report import Publication

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardSink:
    """Writes scalars, pictures and a custom-scalars page.

    TensorBoard keeps one description for all steps of a picture, so the caption is a text, ``<name>/caption``.

    Args:
        logger: The logger whose run is written to.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """One category for each monitor, in it one chart for each metric."""
        self._logger.experiment.add_custom_scalars(
            {
                name: {metric: ["Multiline", [_only(tag) for tag in tags]] for metric, tags in by_metric.items()}
                for name, by_metric in charts.items()
            }
        )

    def write(self, publication: Publication) -> None:
        """One point a tag, at the explanation's step."""
        writer, step = self._logger.experiment, publication.step
        for tag, value in publication.scalars.items():
            writer.add_scalar(tag, value, step)
        for tag, picture in publication.pictures.items():
            writer.add_image(tag, picture, step, dataformats="HWC")
        writer.add_text(f"{publication.name}/caption", publication.caption, step)
        writer.flush()


def _only(tag: str) -> str:
    """A regular expression for this tag alone: charts take expressions that match from the start."""
    return f"^{re.escape(tag)}$"
