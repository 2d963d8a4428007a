"""Takes a publication, and writes it to Weights & Biases."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.core.warn import warn_or_log

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

_STEP = "trainer/global_step"
_MAX_PICTURES = 49


class WandbSink(Sink):
    """Writes scalars, pictures and a table of all samples, in one call for each explanation.

    ``*`` in a name becomes ``%2A``. In the keys of pictures and tables, other characters that file names cannot hold
    are escaped the same way.

    Args:
        logger: The logger whose run receives them.
    """

    def __init__(self, logger: WandbLogger) -> None:
        self._logger = logger
        self._defined: set[str] = set()

    @property
    def pictures_go_to(self) -> str:
        """W&B."""
        return "W&B"

    def write(self, publication: Publication) -> None:
        """Logs everything in one call, because W&B counts each call as a step."""
        import wandb

        run = self._logger.experiment
        for tag in (tag for tag in publication.charted if tag not in self._defined):
            run.define_metric(_key(tag), step_metric=_STEP, summary=publication.directions.get(tag, "last"))
        self._defined |= publication.charted.keys()
        columns, lines = publication.report.table()
        run.log(
            {
                **{_key(tag): value for tag, value in publication.charted.items()},
                **_pictures(publication),
                _file_key(f"{publication.name}/table"): wandb.Table(columns=[*columns], data=lines),
                _STEP: publication.step,
            }
        )


def _key(tag: str) -> str:
    """The tag with ``*`` escaped, which W&B would read as a pattern."""
    return tag.replace("*", "%2A")


def _file_key(tag: str) -> str:
    """The tag without characters that some systems forbid in file names: W&B saves pictures and tables as files."""
    return re.sub(r'[*:?|<>"\\]', lambda match: f"%{ord(match[0]):02X}", tag)


def _pictures(publication: Publication) -> dict[str, Any]:
    import wandb

    pictures = publication.pictures
    if len(pictures) > _MAX_PICTURES:
        warn_or_log(
            f"W&B receives only the first {_MAX_PICTURES} of {len(pictures)} pictures of '{publication.name}': it is "
            "made for fewer than 50 a step. To log all of them, use several monitors with fewer methods each."
        )
    first = islice(pictures.items(), _MAX_PICTURES)
    return {_file_key(tag): wandb.Image(picture, caption=publication.caption) for tag, picture in first}
