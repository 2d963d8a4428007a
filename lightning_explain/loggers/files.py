"""Explanations as plain files."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_explain.core.report import Publication
from lightning_explain.store.report_files import replacing, safe_name, step_path

_EPOCH = "epoch"


class FilesSink:
    """Writes ``scalars.jsonl`` and PNG pictures.

    Lines are appended, so a resumed run keeps the lines of the former one: of two lines with equal name, step,
    epoch and stage (which only validation and test have) the later one holds.

    Args:
        directory: The folder, ``<run>/explain``. It is made when it is first needed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Nothing: files have no charts."""

    def write(self, publication: Publication) -> None:
        """``<directory>/scalars.jsonl`` and ``<directory>/<name>/<method>/step=00000120.png`` (see ``store.step_path``)."""
        for tag, picture in publication.pictures.items():
            method = tag.removeprefix(f"{publication.name}/")
            folder = self._directory / safe_name(publication.name) / safe_name(method)
            with replacing(step_path(folder, publication, ".png", _epoch_in)) as temporary:
                Image.fromarray(picture).save(temporary, format="PNG", pnginfo=_dated(publication.epoch))
        _append_line(self._directory / "scalars.jsonl", _line(publication))


def _dated(epoch: int) -> PngInfo:
    found = PngInfo()
    found.add_text(_EPOCH, str(epoch))
    return found


def _epoch_in(path: Path) -> int | None:
    """The epoch of a picture; ``None`` if it does not say."""
    try:
        with Image.open(path) as picture:
            return int(picture.info[_EPOCH])
    except (OSError, KeyError, ValueError, SyntaxError):
        return None


def _line(publication: Publication) -> str:
    """One explanation's scalars as strict JSON, which has no NaN: ``null`` instead."""
    scalars = {tag: value if math.isfinite(value) else None for tag, value in publication.scalars.items()}
    stage = {"stage": publication.stage} if publication.stage else {}
    head = {"name": publication.name, "epoch": publication.epoch, "step": publication.step, **stage}
    return json.dumps({**head, "scalars": scalars}, allow_nan=False)


def _append_line(path: Path, line: str) -> None:
    """Adds a line in one write, on a line of its own even if a crash cut the last one short.

    Raises:
        OSError: If it does not fit on the disk; the file is as before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        start = "\n" if file.read(1) not in (b"", b"\n") else ""
        added = f"{start}{line}\n".encode()
        # Where it fits in part only, that part is written without an error.
        written = file.write(added)
        if written != len(added):
            file.truncate(end)
            raise OSError(errno.ENOSPC, f"{written} of {len(added)} bytes could be written", str(path))
