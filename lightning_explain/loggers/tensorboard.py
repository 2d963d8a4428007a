"""Takes a publication, and writes it to TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.loggers.event_file import EventFile, records

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoardSink(Sink):
    """Writes scalars, pictures and a custom-scalars page to an event file of its own in the run of a logger.

    TensorBoard keeps one description for all steps of a picture, so the caption is logged as the text
    ``<name>/caption``.

    Args:
        logger: The logger whose run receives them.
    """

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._events = EventFile(logger.log_dir)
        self._prepared: tuple[object, bytes] = (None, b"")  # whose pictures, and their records

    @property
    def place(self) -> str:
        """TensorBoard, and the folder of its run."""
        return f"TensorBoard ({self._events.folder})"

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Adds one category for each monitor, with one chart for each score."""
        # TensorBoard matches regular expressions from a tag's start; these match one tag each.
        pages = {
            name: {metric: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]] for metric, tags in by_metric.items()}
            for name, by_metric in charts.items()
        }
        self._events.append(records([_summaries().custom_scalars(pages)]))

    def prepare(self, publication: Publication) -> None:
        """Encodes the pictures."""
        make, found = _summaries(), []
        for tag, content in publication.files().items():
            height, width = publication.pictures[tag].shape[:2]
            image = make.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            found.append(make.Summary(value=[make.Summary.Value(tag=tag, image=image)]))
        self._prepared = publication.png, records(found, publication.step)

    def write(self, publication: Publication) -> None:
        """Adds one point for each tag, at the step of the explanation."""
        if self._prepared[0] is not publication.png:
            self.prepare(publication)
        make, pictures = _summaries(), self._prepared[1]
        self._prepared = None, b""
        found = [make.scalar(tag, value) for tag, value in publication.charted.items()]
        found.append(make.text(f"{publication.name}/caption", publication.caption))
        self._events.append(pictures + records(found, publication.step))


def _summaries() -> Any:
    """The functions that make summaries, of the package that Lightning's logger writes with."""
    try:
        return import_module("torch.utils.tensorboard.summary")
    except ImportError:
        return import_module("tensorboardX.summary")
