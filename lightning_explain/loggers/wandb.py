"""Takes a publication, and writes it to Weights & Biases."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.core.warn import warn_or_log
from lightning_explain.store.disk import check_room

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

_STEP = "trainer/global_step"


class WandbSink(Sink):
    """Writes scalars, pictures and a table of all samples, in one call for each explanation.

    ``*`` in a name becomes ``%2A``. In the keys of pictures and tables, other characters that file names cannot hold
    are escaped the same way.

    Args:
        logger: The logger whose run receives them.
    """

    most_pictures = 49

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger
        self._defined: set[str] = set()
        self._prepared: object = None
        self._pictures: dict[str, Any] = {}
        self._folder: TemporaryDirectory[str] | None = None

    @property
    def place(self) -> str:
        """W&B, and the run."""
        return f"W&B (project {self._logger.name}, run {self._logger.version})"

    def prepare(self, publication: Publication) -> None:
        """Makes the files of the pictures, which W&B copies when they are logged."""
        import wandb

        self._clean()
        count = len(publication.report.attributions)
        if publication.pictures and count > self.most_pictures:
            warn_or_log(
                f"W&B receives only the first {self.most_pictures} of {count} pictures of '{publication.name}': it is "
                "made for fewer than 50 a step. To log all of them, use several monitors with fewer methods each."
            )
        self._folder = TemporaryDirectory(prefix="lightning_explain_")
        for i, (tag, content) in enumerate(islice(publication.files().items(), self.most_pictures)):
            path = Path(self._folder.name, f"{i}.png")
            path.write_bytes(content)
            self._pictures[_file_key(tag)] = wandb.Image(str(path), caption=publication.caption)
        self._prepared = publication.png

    def write(self, publication: Publication) -> None:
        """Logs everything in one call, because W&B counts each call as a step."""
        try:
            self._log(publication)
        finally:
            self._clean()

    def _log(self, publication: Publication) -> None:
        import wandb

        run = self._logger.experiment
        check_room(Path(run.dir), sum(map(len, publication.files().values())))
        if self._prepared is not publication.png:
            self.prepare(publication)
        for tag in (tag for tag in publication.charted if tag not in self._defined):
            run.define_metric(_key(tag), step_metric=_STEP, summary=publication.directions.get(tag, "last"))
        self._defined |= publication.charted.keys()
        columns, lines = publication.report.table()
        run.log(
            {
                **{_key(tag): value for tag, value in publication.charted.items()},
                **self._pictures,
                _file_key(f"{publication.name}/table"): wandb.Table(columns=[*columns], data=lines),
                _STEP: publication.step,
            }
        )

    def _clean(self) -> None:
        """Forgets the files of the last pictures."""
        if self._folder is not None:
            self._folder.cleanup()
        self._pictures, self._folder, self._prepared = {}, None, None


def _key(tag: str) -> str:
    """The tag with ``*`` escaped, which W&B would read as a pattern."""
    return tag.replace("*", "%2A")


def _file_key(tag: str) -> str:
    """The tag without characters that some systems forbid in file names: W&B saves pictures and tables as files."""
    return re.sub(r'[*:?|<>"\\]', lambda match: f"%{ord(match[0]):02X}", tag)
