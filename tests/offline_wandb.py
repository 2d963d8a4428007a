"""Reads back what an offline run of W&B wrote."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import WandbLogger

KINDS = ("history", "summary", "metric", "config", "artifact", "alert")


def read_back(logger: WandbLogger) -> SimpleNamespace:
    """Ends the run, and returns its records by their kinds, and the folder of its files.

    History, summary and config are nested dictionaries: one for each entry of the history, the last values of the others.
    """
    import wandb

    files = Path(logger.experiment.dir)
    wandb.finish()
    wandb.teardown()  # Only the end of its process says that the file is whole: finish() may return earlier.
    (file,) = files.parent.glob("*.wandb")
    found = list(records(file))
    kinds: dict[str, Any] = {k: [getattr(r, k) for r in found if r.WhichOneof("record_type") == k] for k in KINDS}
    kinds["history"] = [nested(record.item) for record in kinds["history"]]
    for kind in ("summary", "config"):
        parts, kinds[kind] = kinds[kind], {}
        for record in parts:
            merge(kinds[kind], nested(record.update))
    return SimpleNamespace(files=files, **kinds)


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: blocks of 32 KiB, in them parts with a head of checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while len(data) - position >= 7:
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def nested(items: Iterable[Any]) -> dict[str, Any]:
    """Items of a history or summary record as nested dictionaries."""
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = found
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def merge(former: dict[str, Any], new: dict[str, Any]) -> None:
    """Adds new items of a record to those of former ones."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(former.get(key), dict):
            merge(former[key], value)
        else:
            former[key] = value


def staged(artifact: Any, suffix: str) -> dict[str, Path]:
    """The files of an artifact by their names in it."""
    return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents if entry.path.endswith(suffix)}
