"""What is kept of a run once, beside its reports: ``run.json`` and ``probe.safetensors``. Written, read, and attached to reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_explain.core import schema
from lightning_explain.core.probe import Probe
from lightning_explain.core.probe_form import PROBE
from lightning_explain.core.report import Report
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.schema import MalformedError, brief, one_line
from lightning_explain.core.serialization import columns, copied, fingerprint
from lightning_explain.core.warn import warn_or_log
from lightning_explain.modalities import of_probe, restored, stored
from lightning_explain.store.files import MOST_HEADER, SUFFIX, broken, opened, parsed, reading, replacing, tensors_of

KEY = "lightning_explain_run"
"""Where the file of a report has the key of its run."""
_PROBE = "lightning_explain_probe"
_MOST_PROBES = 100
_WORDS, _MANY = schema.mapped(schema.text()), 100_000
_JSON = schema.mapped(lambda value, where: None, _MANY)
_NAMES = schema.listed(schema.text(), _MANY)
_RUN_FORM: dict[str, schema.Check] = {
    "name": schema.text(),
    "settings": _JSON,
    "charts": schema.mapped(_NAMES, _MANY),
    "findings": _WORDS,
    "left_out": _WORDS,
    "cost": schema.text(),
    "higher_is_better": schema.mapped(schema.nothing_or(schema.flag), _MANY),
    "versions": _WORDS,
    "fingerprint": schema.text(100),
    "pass_size": schema.nothing_or(schema.whole(1)),
    "threads": schema.whole(1),
    "methods": _WORDS,
    "metrics": _WORDS,
    "how_to_read": _WORDS,
    "task": schema.text(),
    "memory_format": schema.text(100),
    "drawing": _JSON,
    "precision": schema.text(),
    "hyperparameters": _JSON,
}
T = TypeVar("T")


def key_of(run: RunInfo) -> str:
    """A short digest of what is true of a run; what an explanation costs, which is measured anew each time, does not count."""
    content = {**asdict(run), "cost": ""}
    for later in ("hyperparameters", "precision", "task"):
        # Older files have none, and their keys were made without.
        if not content[later]:
            del content[later]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_run(run: RunInfo, folder: Path) -> Path:
    """Adds a run to ``run.json``, unless it is there; what is there already stays. Training resumed with other settings is another run.

    Raises:
        ValueError: If there is a file of this name that is not of this form.
    """
    path = folder / "run.json"
    found = _read(path, "move it elsewhere, so that another one can be written.") if path.exists() else {}
    if key_of(run) not in found:
        content = {"runs": [asdict(one) for one in (*found.values(), run)]}
        with replacing(path, shared=True) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    return path


def save_probe(probe: Probe, folder: Path) -> Path:
    """Saves samples as ``probe.safetensors``; as ``probe-<fingerprint>.safetensors`` if that file holds others.

    Where the same samples are there as something else, such as a series with another rate, what they are now takes its place.
    Forward arguments that are neither tensors nor plain values are left out.
    """
    name, tensors = fingerprint(probe), dict[str, Tensor]()
    path = folder / f"probe{SUFFIX}"
    if path.exists() and _names(path) != name:
        path = folder / f"probe-{name[:12]}{SUFFIX}"
    kinds = json.loads(json.dumps(stored(of_probe(probe))))
    if path.exists() and _names(path) == name and _kinds(path) == kinds:
        return path
    content = {"dict": {key: _packed(value, key, tensors) for key, value in copied(columns(probe)).items()}}
    with replacing(path, shared=True) as temporary:
        described = {"fingerprint": name, "probe": content, "modalities": kinds}
        save_file(tensors, temporary, metadata={_PROBE: json.dumps(described)})
    return path


@dataclass
class RunFiles:
    """The runs and samples in a folder of reports, each read when it is first needed.

    Args:
        folder: The folder.
    """

    folder: Path
    _runs: dict[str, RunInfo] | None = None
    _probes: dict[str, Probe | None] = field(default_factory=dict)

    @property
    def runs(self) -> dict[str, RunInfo]:
        """The runs in ``run.json`` by key, the latest last; empty if there are none, or, with a warning, if the file is broken."""
        if self._runs is None:
            self._runs = self._survive(lambda: _read(self.folder / "run.json", _FIX)) or {}
        return self._runs

    def attached(self, report: Report, key: str) -> Report:
        """The report with its run and its samples, as far as they are known.

        Args:
            report: A report of the folder.
            key: The key of its run, as its file has it; else the last run with the same samples is taken.
        """
        same = [run for run in self.runs.values() if run.fingerprint == report.fingerprint]
        run = self.runs.get(key, same[-1] if same else None)
        name = report.fingerprint
        if name and name not in self._probes:
            self._probes[name] = self._survive(lambda: self._find(name, len(report.ids)))
        return replace(report, run=run, probe=self._probes.get(name))

    def _survive(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except ValueError as error:
            warn_or_log(str(error), RuntimeWarning)
            return None

    def _find(self, name: str, samples: int) -> Probe | None:
        """The samples with this fingerprint."""
        paths = sorted(self.folder.glob(f"probe*{SUFFIX}"))[:_MOST_PROBES]
        held = {path: _names(path, raising=True) for path in paths}
        path = next((path for path, other in held.items() if other == name), None)
        if path is None:
            others = [path.name for path, other in held.items() if other]
            if others:
                raise ValueError(
                    f"'{one_line(str(self.folder), 120)}' has other samples ({', '.join(others[:5])}) than those of fingerprint "
                    f"{name[:12]}, whose reports are loaded without them. Put the probe{SUFFIX} of their run there."
                )
            return None
        try:
            with opened(path) as file:
                found = _probe_in(file)
                if len(found) != samples:
                    raise MalformedError(f"it has {len(found)} samples instead of {samples}")
                return found
        except MalformedError as error:
            raise ValueError(broken("Probe", path, error, _FIX)) from error


_FIX = "its reports are loaded without it. Delete it, or put the original file back."


def _read(path: Path, fix: str) -> dict[str, RunInfo]:
    """The runs in ``run.json`` by key, the latest last; empty if there is no such file.

    Raises:
        ValueError: If it is not of its form.
    """
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        with reading(path) as size:
            if size > MOST_HEADER:
                raise MalformedError(f"it has {size:,} bytes, more than {MOST_HEADER:,}")
            content = parsed(path.read_text(encoding="utf-8"), "a dictionary with 'runs'")
            schema.listed(schema.mapped(lambda value, where: None))(content.get("runs"), "runs")
            runs = [_run_of(run) for run in content["runs"]]
            return {key_of(run): run for run in runs}
    except MalformedError as error:
        raise ValueError(broken("Run", path, error, fix)) from error


def _run_of(content: dict[str, Any]) -> RunInfo:
    """A run; what later versions may add to it is left out."""
    known: dict[str, Any] = {k: value for k, value in content.items() if k in {f.name for f in fields(RunInfo)}}
    lists = {f.name for f in fields(RunInfo) if f.default == ()}
    if "name" not in known:
        raise MalformedError("a run has no name")
    for name, value in known.items():
        _RUN_FORM.get(name, _NAMES if name in lists else _JSON)(value, name)
    return RunInfo(**(known | {name: tuple(known[name]) for name in lists & known.keys()}))


def _names(path: Path, raising: bool = False) -> str:
    """The fingerprint of the samples in a file; empty if it holds something else.

    Raises:
        ValueError: If it is broken, and ``raising``.
    """
    try:
        with opened(path) as file:
            text = (file.metadata() or {}).get(_PROBE)
            found = "" if text is None else parsed(text, "samples").get("fingerprint")
            schema.text(100)(found, "fingerprint")
            return str(found)
    except MalformedError as error:
        if raising:
            raise ValueError(broken("Probe", path, error, _FIX)) from error
        return ""


def _kinds(path: Path) -> Any:
    """What the inputs in a file of samples are, as stored; ``None`` in files that do not say."""
    with opened(path) as file:
        return parsed(file.metadata()[_PROBE], "samples").get("modalities")


def _probe_in(file: Any) -> Probe:
    """The samples in an open file.

    Raises:
        MalformedError: If they are not of their form, or not those that the file names.
    """
    content, tensors = parsed(file.metadata()[_PROBE], "samples"), tensors_of(file)
    lost: list[str] = []
    state = _unpacked(content.get("probe"), tensors, "probe", lost)
    schema.fields(PROBE, ("inputs", "ids"))(state, "probe")
    try:
        modalities = restored(content["modalities"]) if "modalities" in content else None
    except (ValueError, TypeError) as error:
        raise MalformedError(str(error)) from error
    found = Probe(**state, modalities=modalities)
    if not lost and fingerprint(found) != content["fingerprint"]:
        raise MalformedError("its samples are not those whose fingerprint it has")
    return found


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON: tensors by name, and what JSON cannot tell apart as a dictionary of one entry that says what it is."""
    if isinstance(value, Tensor):
        tensors[name] = value.clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {str(k): _packed(part, f"{name}/{i}", tensors) for i, (k, part) in enumerate(value.items())}}
    if type(value) is float:
        return {"float": repr(value)}
    return value if type(value) in (bool, int, str, type(None)) else {"object": type(value).__name__}


def _unpacked(value: Any, tensors: dict[str, Tensor], where: str, lost: list[str], depth: int = schema.DEEPEST) -> Any:
    """The value again; ``None`` in place of an object, which is added to ``lost``."""
    if not isinstance(value, (dict, list)):
        return value
    if not depth or not isinstance(value, dict) or len(value) != 1:
        raise MalformedError(f"{where} is {brief(value)} instead of a value with its kind")
    ((kind, inner),) = value.items()
    if kind == "tensor" and isinstance(inner, str) and inner in tensors:
        return tensors[inner]
    if kind in ("tuple", "list") and isinstance(inner, list):
        parts = [_unpacked(part, tensors, f"{where}[{i}]", lost, depth - 1) for i, part in enumerate(inner)]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict" and isinstance(inner, dict):
        return {key: _unpacked(part, tensors, f"{where}[{brief(key)}]", lost, depth - 1) for key, part in inner.items()}
    if kind == "float" and isinstance(inner, str):
        return float(inner)
    if kind == "object" and isinstance(inner, str):
        lost.append(inner)
        return None
    raise MalformedError(f"{where} is {brief(value)} instead of a value with its kind")
