"""Reports to files and back: one safetensors file per report, with its structure as JSON in the header; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_explain.core import schema
from lightning_explain.core.report import OF_TARGET, PassCount, Publication, Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.schema import MalformedError, brief
from lightning_explain.store.files import SUFFIX, broken, opened, parsed, replacing, tensors_of
from lightning_explain.store.run_files import KEY as _RUN
from lightning_explain.store.run_files import RunFiles, key_of

_KEY = "lightning_explain_report"
_PLAIN_FIELDS = (
    "passes",
    "seconds",
    "failures",
    "epoch",
    "step",
    "fingerprint",
    "stage",
    "undefined_reasons",
    "meta",
    "task",
    "logged",
    "tasks",
)
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
    "logged": schema.mapped(schema.number(), 100_000),
    "meta": schema.mapped(schema.listed(schema.text(), 100_000)),
    "task": schema.text(100),
    "tasks": _WORDS,
}
_BY_SAMPLE = ("outputs", "predictions", "targets", "ids")
_MOST_FOLDERS = 10_000
_LISTED = 5
_OF_RUN = ("run", "probe")  # kept once, in files of their own
_TENSOR_FIELDS = [field.name for field in fields(Report) if field.name not in (*_PLAIN_FIELDS, *_OF_RUN)]


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
    path = report_path(report, Path(path))
    tensors: dict[str, Tensor] = {}
    content = {name: getattr(report, name) for name in _PLAIN_FIELDS}
    content.update({name: _pack(getattr(report, name), name, tensors) for name in _TENSOR_FIELDS})
    content.update(passes=asdict(report.passes), failures=dict(report.failures), meta=dict(report.meta))
    content.update(
        undefined_reasons=dict(report.undefined_reasons), logged=dict(report.logged), tasks=dict(report.tasks)
    )
    # Older versions know no reports of several targets.
    content = {name: value for name, value in content.items() if value or name not in ("by_target", "tasks")}
    with replacing(path) as temporary:
        of_run = {} if report.run is None else {_RUN: key_of(report.run)}
        save_file(tensors, temporary, metadata={_KEY: json.dumps(content), **of_run})
    return path


def report_path(report: Report, path: Path) -> Path:
    """The path of a report's file, from that path itself or from a folder; see :func:`save_report`."""
    if path.suffix == SUFFIX:
        return path
    return path / f"report{SUFFIX}" if report.step is None else step_path(path, report, SUFFIX, _epoch_in)


def find_run(path: str | os.PathLike[str]) -> Path:
    """Takes a folder of reports, or one above it; returns the only folder there that has some: itself, or one below.

    Args:
        path: The folder ``<run>/<name>``, one above it such as ``<run>``, or the file of one report, which is returned as it is.

    Raises:
        FileNotFoundError: If there are no reports, or only those of several runs.

    Example:
        >>> import tempfile, torch
        >>> from lightning_explain import Report
        >>> from lightning_explain.store.report_files import find_run, save_report
        >>> ids = torch.arange(2)
        >>> with tempfile.TemporaryDirectory() as root:
        ...     saved = save_report(Report({}, {}, {}, torch.zeros(2), ids, ids, ids), f"{root}/version_0/explain")
        ...     find_run(root) == saved.parent
        True
    """
    path = Path(path)
    if not path.is_dir() and (path.is_file() or (path.suffix == SUFFIX and os.path.lexists(path))):
        return path
    if any(map(_holds_report, path.glob(f"*{SUFFIX}"))):
        return path
    others = sorted(_folders_below(path))
    if len(others) == 1:
        return Path(others[0])
    if others:
        listed = ", ".join(map(repr, others[:_LISTED]))
        more = f" or {len(others) - _LISTED} more" if len(others) > _LISTED else ""
        raise FileNotFoundError(
            f"No reports in '{path}' itself, and {len(others)} runs below it; give one of {listed}{more}."
        )
    raise _no_reports(path)


def load_reports(directory: str | os.PathLike[str]) -> list[Report]:
    """Takes a folder of saved reports; returns them sorted by step, then epoch, then stage (training first).

    Reports without a step or an epoch come first. ``Report.run`` and ``Report.probe`` come from ``run.json`` and
    ``probe.safetensors`` in the folder; without them, or if they are broken, which is warned of once, they are ``None``. Other
    files in the folder are skipped.

    Args:
        directory: The folder ``<run>/<name>``, one above it if it has the reports of one run only, or the file of one report.

    Raises:
        FileNotFoundError: If there are no reports, or only those of several runs.
        ValueError: If the file of a report is broken, or no file at all.

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
    directory = find_run(directory)
    paths = sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else [directory]
    found = [loaded for path in paths if (loaded := _load(path)) is not None]
    if not found:
        raise _no_reports(directory)
    files = RunFiles(directory if directory.is_dir() else directory.parent)
    return sorted((files.attached(report, key) for report, key in found), key=_place)


def find_report(files: RunFiles, step: int, epoch: int) -> tuple[Path, RunInfo | None] | None:
    """The file of the report that a training wrote at this step and epoch, and its run if that is known; ``None`` if there is none."""
    paths = [files.folder / f"step={step:08d}{part}{SUFFIX}" for part in ("", f"-epoch={epoch:08d}")]
    path = next((path for path in paths if _epoch_in(path) == epoch), None)
    if path is None:
        return None
    with opened(path) as file:
        return path, files.runs.get((file.metadata() or {}).get(_RUN, ""))


def _no_reports(path: Path) -> FileNotFoundError:
    above = any(path.parent.glob(f"step=*{SUFFIX}"))
    fix = f"did you mean '{path.parent}'?" if above else "give the folder <run>/<name> of a run, or one report's file."
    return FileNotFoundError(f"No reports in '{path}'; {fix}")


def _holds_report(path: Path) -> bool:
    """Whether a file is a report by its name or by its header; what is inside may still be broken."""
    if _is_name(path.name):
        return True
    try:
        with opened(path) as file:
            return _KEY in (file.metadata() or {})
    except MalformedError:
        return False


def _is_name(name: str) -> bool:
    return name.endswith(SUFFIX) and (name.startswith("step=") or name == f"report{SUFFIX}")


def _folders_below(directory: Path) -> Iterator[str]:
    """Folders below that have reports, by the names that :func:`save_report` gives, among the first that are found."""
    for folder, _, names in islice(os.walk(directory), _MOST_FOLDERS):
        if any(map(_is_name, names)):
            yield folder


def _place(report: Report) -> tuple[int, int, str]:
    step, epoch = (-1 if number is None else number for number in (report.step, report.epoch))
    return step, epoch, "" if report.stage in (None, "fit") else report.stage


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
        with opened(path) as file:
            epoch = _content(file).get("epoch")
    except MalformedError:
        return None
    return epoch if isinstance(epoch, int) else None


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


def _content(file: Any) -> dict[str, Any]:
    """What a report holds beside its tensors, by field; empty if the file is no report.

    Raises:
        MalformedError: If it is not of its form.
    """
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        return {}
    content = parsed(text, "a report")
    lacking = [name for name in (*_TENSOR_FIELDS[:7], "passes") if name not in content]
    unknown = [name for name in content if name not in (*_TENSOR_FIELDS, *_PLAIN_FIELDS)]
    if lacking or unknown:
        raise MalformedError(f"it lacks {lacking[0]}" if lacking else f"it has an unknown field {brief(unknown[0])}")
    for name, check in _FORM.items():
        if name in content:
            check(content[name], name)
    return content


def _load(path: Path) -> tuple[Report, str] | None:
    """The report in a file, and the key of its run; ``None`` if the file holds something else."""
    try:
        with opened(path) as file:
            content = _content(file)
            if not content:
                return None
            tensors = tensors_of(file)
            # Reports of version 0.1.0 and before do not have all of these.
            content.update({name: _unpack(content[name], tensors, name) for name in _TENSOR_FIELDS if name in content})
            meta = {name: tuple(texts) for name, texts in content.get("meta", {}).items()}
            report = Report(**{**content, "passes": PassCount(**content["passes"]), "meta": meta})
            _check_samples(report)
            return report, file.metadata().get(_RUN, "")
    except MalformedError as error:
        if path.name.startswith("probe"):
            return None  # Nothing is known of it but its name; RunFiles warns.
        raise ValueError(broken("Report", path, error, "delete it to read the others.")) from error


def _check_samples(report: Report) -> None:
    """Checks that there is one of everything for each sample.

    Raises:
        MalformedError: If there is not.
    """
    schema.tensor(1, of_whole=True)(report.ids, "ids")
    parts: dict[str, Any] = {name: getattr(report, name) for name in (*_BY_SAMPLE, "attributions", "scores")}
    parts |= {
        name: getattr(report, name)
        for name in ("standard_errors", "maps", "n_steps", "n_draws", "completeness_errors", "explained", "by_target")
    }
    for name, part in parts.items():
        if name not in _BY_SAMPLE and not isinstance(part, dict):
            raise MalformedError(f"{name} is {brief(part)} instead of a dictionary")
        for leaf in tree_leaves(part):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != len(report.ids):
                raise MalformedError(f"{name} holds {brief(leaf)} for {len(report.ids)} samples")
    for name, found in report.by_target.items():
        if not isinstance(found, dict) or found.keys() != {*OF_TARGET} or not isinstance(found["explained"], dict):
            raise MalformedError(f"by_target holds {brief(found)} of {brief(name)}")
