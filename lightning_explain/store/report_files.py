"""Reports to files and back: one safetensors file per report, with its structure as JSON in the header; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_explain.core import schema
from lightning_explain.core.report import PassCount, Publication, Report
from lightning_explain.core.schema import MalformedError, brief, one_line

SUFFIX = ".safetensors"
_KEY = "lightning_explain_report"
_PLAIN_FIELDS = ("passes", "seconds", "failures", "epoch", "step", "fingerprint", "stage", "undefined_reasons", "meta")
_WORDS = schema.mapped(schema.text())
_PLACE_IN_TIME = schema.nothing_or(schema.whole())
_FORM = {
    "passes": schema.fields({"forward": schema.whole(), "backward": schema.whole()}),
    "seconds": schema.number(0),
    "failures": _WORDS,
    "epoch": _PLACE_IN_TIME,
    "step": _PLACE_IN_TIME,
    "fingerprint": schema.text(100),
    "stage": schema.nothing_or(schema.choice("", "fit", "validate", "test", "predict")),
    "undefined_reasons": _WORDS,
    "meta": schema.mapped(schema.listed(schema.text(), 100_000)),
}
_BY_SAMPLE = ("outputs", "predictions", "targets", "ids")
_MOST_HEADER, _MOST_TENSORS, _MOST_FILES = 2**24, 10_000, 10_000
_OF_RUN = ("run", "probe")  # kept once, in files of their own
_TENSOR_FIELDS = [field.name for field in fields(Report) if field.name not in (*_PLAIN_FIELDS, *_OF_RUN)]
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
        directory: The folder ``<run>/<name>``, or the file of one report.

    Raises:
        FileNotFoundError: If there are no reports.
        ValueError: If a file is broken, or no file at all.

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
    named = directory.suffix == SUFFIX and not directory.is_dir() and os.path.lexists(directory)
    paths = [directory] if named or directory.is_file() else sorted(directory.glob(f"*{SUFFIX}"))
    found = [report for path in paths if (report := _load(path)) is not None]
    if not found:
        others = sorted(_folders_below(directory))[:5]
        fix = "give the folder <run>/<name> of a run, or one report's file."
        meant = f"did you mean {' or '.join(map(repr, others))}?"
        raise FileNotFoundError(f"No reports in '{directory}'; {meant if others else fix}")
    return sorted(found, key=_place)


def _folders_below(directory: Path) -> Iterator[str]:
    """Folders with safetensors files below a folder, among the first that are found."""
    for folder, _, names in islice(os.walk(directory), _MOST_FILES):
        if folder != str(directory) and any(name.endswith(SUFFIX) for name in names):
            yield folder


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
        with _opened(path) as file:
            epoch = _content(file).get("epoch")
    except MalformedError:
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


def _unpack(value: Any, tensors: Mapping[str, Tensor], where: str, depth: int = 4) -> Any:
    """The value with each name of a tensor replaced by the tensor."""
    if isinstance(value, str):
        if value not in tensors:
            raise MalformedError(f"{where} names a tensor {brief(value)} that is not there")
        return tensors[value]
    if not depth or not isinstance(value, (list, dict)):
        raise MalformedError(f"{where} is {brief(value)} instead of names of tensors")
    if isinstance(value, list):
        return tuple(_unpack(v, tensors, where, depth - 1) for v in value)
    return {k: _unpack(v, tensors, where, depth - 1) for k, v in value.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file, if it is a regular one with a header of a plausible size.

    Raises:
        MalformedError: If it is not, or if what is read inside is not as it should be.
    """
    try:
        # Opening a pipe or a device would wait, and safetensors believes what a header says of its own size.
        if not stat.S_ISREG(path.stat().st_mode):
            raise MalformedError("it is no regular file")
        with path.open("rb") as raw:
            head = raw.read(8)
        if len(head) < 8 or struct.unpack("<Q", head)[0] > _MOST_HEADER:
            raise MalformedError(f"it has no header of at most {_MOST_HEADER} bytes")
        with safe_open(path, framework="pt") as file:
            yield file
    except MalformedError:
        raise
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise MalformedError(str(error) if str(error) else type(error).__name__) from error


def _content(file: Any) -> dict[str, Any]:
    """What a report holds beside its tensors, by field; empty if the file is no report.

    Raises:
        MalformedError: If it is not of its form.
    """
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        return {}
    content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise MalformedError(f"it is {brief(content)} instead of a report")
    lacking = [name for name in (*_TENSOR_FIELDS[:7], "passes") if name not in content]
    unknown = [name for name in content if name not in (*_TENSOR_FIELDS, *_PLAIN_FIELDS)]
    if lacking or unknown:
        raise MalformedError(f"it lacks {lacking[0]}" if lacking else f"it has an unknown field {brief(unknown[0])}")
    for name, check in _FORM.items():
        if name in content:
            check(content[name], name)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedError("it has a name twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise MalformedError(f"it has the number {name}")


def _load(path: Path) -> Report | None:
    """The report in a file; ``None`` if the file holds something else."""
    try:
        with _opened(path) as file:
            content = _content(file)
            if not content:
                return None
            names = list(file.keys())
            if len(names) > _MOST_TENSORS:
                raise MalformedError(f"it has {len(names)} tensors, more than {_MOST_TENSORS}")
            tensors = {name: file.get_tensor(name) for name in names}
            # Reports of version 0.1.0 and before do not have all of these.
            content.update({name: _unpack(content[name], tensors, name) for name in _TENSOR_FIELDS if name in content})
            report = Report(**{**content, "passes": PassCount(**content["passes"])})
            _check_samples(report)
            return report
    except MalformedError as error:
        shown = one_line(str(path), 120)
        raise ValueError(
            f"Report '{shown}' is broken ({one_line(str(error), 120)}); delete it to read the others."
        ) from error


def _check_samples(report: Report) -> None:
    """Checks that there is one of everything for each sample.

    Raises:
        MalformedError: If there is not.
    """
    schema.tensor(1, of_whole=True)(report.ids, "ids")
    parts: dict[str, Any] = {name: getattr(report, name) for name in (*_BY_SAMPLE, "attributions", "scores")}
    parts |= {name: getattr(report, name) for name in ("standard_errors", "maps", "n_steps", "completeness_errors")}
    for name, part in parts.items():
        if name not in _BY_SAMPLE and not isinstance(part, dict):
            raise MalformedError(f"{name} is {brief(part)} instead of a dictionary")
        for leaf in tree_leaves(part):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != len(report.ids):
                raise MalformedError(f"{name} holds {brief(leaf)} for {len(report.ids)} samples")
