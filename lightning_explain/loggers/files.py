"""Takes a publication, and writes its scalars and pictures as plain files."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

from PIL import Image

from lightning_explain.core.contracts import Sink
from lightning_explain.core.report import Publication
from lightning_explain.store.disk import check_room
from lightning_explain.store.files import replacing, safe_name
from lightning_explain.store.report_files import step_path


class FilesSink(Sink):
    """Writes ``scalars.jsonl`` and PNG pictures.

    Lines are appended, so a resumed run keeps the earlier lines. If two lines have equal name, step, epoch and stage
    (which only validation and test have), the later one is valid.

    Args:
        directory: The folder of one monitor, ``<run>/<name>``; created when it is first needed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._prepared: object = None  # whose pictures are written

    @property
    def place(self) -> str:
        """Files in its folder."""
        return f"files in {self._directory}"

    def prepare(self, publication: Publication) -> None:
        """Writes ``<method>/step=00000120.png`` (see ``step_path``)."""
        found = publication.files()
        check_room(self._directory, sum(map(len, found.values())))
        for tag, content in found.items():
            folder = self._directory.joinpath(*map(safe_name, _place(tag, publication.name)))
            with replacing(step_path(folder, publication, ".png", _epoch_in)) as temporary:
                temporary.write_bytes(content)
        self._prepared = publication.png

    def write(self, publication: Publication) -> None:
        """Writes the pictures, if that is not done, and appends to ``scalars.jsonl``."""
        if self._prepared is not publication.png:
            self.prepare(publication)
        self._prepared = None
        _append_line(self._directory / "scalars.jsonl", _line(publication))


def _place(tag: str, name: str) -> list[str]:
    """The folders of a picture: ``["history", "ig"]`` for ``explain_maps/history/ig``."""
    prefix = next((start for start in (f"{name}_maps/", f"{name}/") if tag.startswith(start)), "")
    return tag.removeprefix(prefix).split("/")


def _epoch_in(path: Path) -> int | None:
    """The epoch stored in a picture file; ``None`` if there is none."""
    try:
        with Image.open(path) as picture:
            return int(picture.info["epoch"])
    except (OSError, KeyError, ValueError, SyntaxError):
        return None


def _line(publication: Publication) -> str:
    """The scalars of one explanation as a line of strict JSON, with ``null`` for NaN and infinity."""
    scalars = {tag: value if math.isfinite(value) else None for tag, value in publication.scalars.items()}
    stage = {"stage": publication.stage} if publication.stage else {}
    head = {"name": publication.name, "epoch": publication.epoch, "step": publication.step, **stage}
    return json.dumps({**head, "scalars": scalars}, allow_nan=False)


def _append_line(path: Path, line: str) -> None:
    """Appends a line in one write. It starts on a new line even if a crash cut the last one short.

    Raises:
        OSError: If the line does not fit on the disk; the file is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        start = "\n" if file.read(1) not in (b"", b"\n") else ""
        added = f"{start}{line}\n".encode()
        # On a full disk a write may succeed for only a part of the bytes, without an error.
        written = file.write(added)
        if written != len(added):
            file.truncate(end)
            raise OSError(
                errno.ENOSPC, f"{written} of {len(added)} bytes could be written; free some disk space", str(path)
            )
