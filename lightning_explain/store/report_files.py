"""Reports to files and back: one safetensors file per report, with its structure as JSON in the header; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_explain.core.report import PassCount, Publication, Report

SUFFIX = ".safetensors"
_KEY = "lightning_explain_report"
_PLAIN_FIELDS = ("passes", "seconds", "failures", "epoch", "step", "fingerprint", "stage", "undefined_reasons", "meta")
_TENSOR_FIELDS = [field.name for field in fields(Report) if field.name not in _PLAIN_FIELDS]
# The most bytes of a file name's part; file systems allow 255.
_LONGEST = 200
_WINDOWS_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9¹²³]", re.IGNORECASE)


def save_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Saves a report as one file, atomically: at every moment the file is either complete or absent.

    Args:
        report: The report.
        path: A file name that ends in ``.safetensors``, or a folder. In a folder the file is named
            ``step=00000120.safetensors``; ``step=00000120-test.safetensors`` outside of training;
            ``step=00000120-epoch=00000003.safetensors`` if the folder has a report of the same step and another epoch;
            ``report.safetensors`` if the report has no step.

    Returns:
        The path of the file.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        path = path / f"report{SUFFIX}" if report.step is None else step_path(path, report, SUFFIX, _epoch_in)
    tensors: dict[str, Tensor] = {}
    content = {name: getattr(report, name) for name in _PLAIN_FIELDS}
    content.update({name: _pack(getattr(report, name), name, tensors) for name in _TENSOR_FIELDS})
    content.update(passes=asdict(report.passes), failures=dict(report.failures), meta=dict(report.meta))
    content.update(undefined_reasons=dict(report.undefined_reasons))
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(content)})
    return path


def load_reports(directory: str | os.PathLike[str]) -> list[Report]:
    """Takes a folder of saved reports; returns them sorted by step, then epoch, then stage (training first).

    Reports without a step or an epoch come first. Other safetensors files in the folder, such as a saved probe, are
    skipped.

    Args:
        directory: The folder ``<run>/explain/<name>``, or the file of one report.

    Raises:
        FileNotFoundError: If there are no reports.
        ValueError: If a file is broken.

    Example:
        >>> import tempfile, torch
        >>> from lightning_explain import Report, load_reports
        >>> from lightning_explain.store.report_files import save_report
        >>> ids = torch.arange(2)
        >>> report = Report({"ig": torch.ones(2, 3)}, {}, {}, torch.zeros(2), ids, ids, ids, step=120)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_report(report, folder)
        ...     print(path.name, [loaded.step for loaded in load_reports(folder)])
        step=00000120.safetensors [120]
    """
    directory = Path(directory)
    paths = [directory] if directory.is_file() else sorted(directory.glob(f"*{SUFFIX}"))
    found = [report for path in paths if (report := _load(path)) is not None]
    if not found:
        others = sorted({str(p.parent) for p in directory.rglob(f"*{SUFFIX}") if p.parent != directory})
        named = f"did you mean {' or '.join(map(repr, others[:5]))}?"
        fix = named if others else "give the folder <run>/explain/<name> of a run, or one report's file."
        raise FileNotFoundError(f"No reports in '{directory}'; {fix}")
    return sorted(found, key=_place)


def _place(report: Report) -> tuple[int, int, str]:
    step, epoch = (-1 if number is None else number for number in (report.step, report.epoch))
    return step, epoch, "" if report.stage in (None, "fit") else report.stage


def safe_name(name: str) -> str:
    """A name as one path component that is valid on every system; different names give different components.

    Letters, digits, ``_`` and ``-`` are kept; every other character is replaced by its bytes, as in ``a%2Fb``. A name
    too long for a file system is cut, and a digest of the whole name is appended. Where a file system ignores case,
    names that differ only in case still collide.
    """
    kept = re.sub(r"[^\w-]", lambda match: _bytes(match[0]), name)
    if len(kept.encode("utf-8", "surrogatepass")) > _LONGEST:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return f"{kept[:40]}%{digest}"
    if _WINDOWS_DEVICE.fullmatch(kept):
        return _bytes(kept[0]) + kept[1:]
    return kept or "%empty"


def _bytes(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def step_path(folder: Path, moment: Report | Publication, suffix: str, epoch_in: Callable[[Path], int | None]) -> Path:
    """The path of a file for one report or publication, with a name that sorts by step: ``step=00000120.png``.

    In stages other than ``"fit"`` the name contains the stage: ``step=00000120-test.png``. With manual optimization the
    step may not advance: if a file of that step but another epoch exists, the name contains the epoch too, so that
    nothing is overwritten. A resumed run writes the same step and epoch to the same name.

    Args:
        folder: The folder of the file.
        moment: The report or publication; its step, epoch and stage are used.
        suffix: The file's suffix, with the dot.
        epoch_in: Reads the epoch of an existing file; returns ``None`` if the file has none.
    """
    stage = "" if moment.stage in (None, "", "fit") else f"-{moment.stage}"
    plain = folder / f"step={moment.step or 0:08d}{stage}{suffix}"
    if moment.epoch is None or not plain.is_file() or epoch_in(plain) in (None, moment.epoch):
        return plain
    return plain.with_name(f"step={moment.step or 0:08d}-epoch={moment.epoch:08d}{stage}{suffix}")


def _epoch_in(path: Path) -> int | None:
    """The epoch of the report in a file; ``None`` if the file holds something else."""
    try:
        with safe_open(path, framework="pt") as file:
            epoch = json.loads((file.metadata() or {})[_KEY])["epoch"]
    except (SafetensorError, KeyError, TypeError, ValueError):
        return None
    return epoch if isinstance(epoch, int) else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context that yields a temporary path in the same folder; on exit without an exception it replaces ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value with each tensor replaced by its name; the tensors are added to ``tensors``."""
    if isinstance(value, Tensor):
        # A clone, because safetensors refuses tensors that share memory, as the maps of two methods may.
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return name
    if isinstance(value, tuple):
        return [_pack(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return {k: _pack(v, f"{name}/{quote(k, safe='')}", tensors) for k, v in value.items()}


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str):
        return tensors[value]
    if isinstance(value, list):
        return tuple(_unpack(v, tensors) for v in value)
    return {k: _unpack(v, tensors) for k, v in value.items()}


def _load(path: Path) -> Report | None:
    """The report in a file; ``None`` if the file holds something else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        content: dict[str, Any] = json.loads(metadata[_KEY])
        # Reports of version 0.1.0 and before do not have all of these.
        content.update({name: _unpack(content[name], tensors) for name in _TENSOR_FIELDS if name in content})
        return Report(**{**content, "passes": PassCount(**content["passes"])})
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"Report '{path}' is broken ({error}); delete it to read the others.") from error
