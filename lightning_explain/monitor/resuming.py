"""Takes a monitor's saved state of any version, and returns its valid entries; warns of all others."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_explain.core.probe import Probe

VERSION = 3
"""1: samples, schedule, ``by_steps``. 2: also seed and failures in a row. 3: ``pace`` is one number, the pass size."""

_ALWAYS = ("by_steps", "schedule")
_SINCE_2 = ("seed", "failures")
_SOMETIMES = ("alerts", "history", "pace")
_SAMPLES = ("ids", "fingerprint", "probe", "selection")


# -- valid entries -------------------------------------------------------------------------------------------------


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sample_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and not (value.is_floating_point() or value.is_complex())


def _watched(value: Any) -> bool:
    """Whether a value is a saved state of an alert."""
    if not isinstance(value, Mapping) or not value.keys() <= {"count", "first"}:
        return False
    return _whole(value.get("count", 0)) and (value.get("first") is None or _number(value["first"]))


def _history(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value.keys() <= {"first", "previous", "ids", "fingerprint"}:
        return False
    ids, kept = value.get("ids"), [value.get("first", {}), value.get("previous", {})]
    if not (
        _sample_ids(ids) and isinstance(value.get("fingerprint"), str) and all(isinstance(x, Mapping) for x in kept)
    ):
        return False
    return all(_maps(found, len(value["ids"])) for maps in kept for found in maps.values())


def _maps(value: Any, samples: int) -> bool:
    parts = value if isinstance(value, (tuple, list)) else [None]
    return all(isinstance(part, Tensor) and part.ndim > 0 and len(part) == samples for part in parts)


_FITS: dict[str, Callable[[Any], bool]] = {
    "by_steps": lambda value: isinstance(value, bool),
    "schedule": lambda value: isinstance(value, Mapping),
    "schedule.last": _whole,
    "schedule.not_before": _whole,
    "schedule.every": partial(_whole, least=1),
    "schedule.explain_seconds": _number,
    "schedule.train_seconds": _number,
    "schedule.lengthened": lambda value: isinstance(value, bool),
    "seed": _whole,
    "failures": lambda value: isinstance(value, Mapping) and all(map(_whole, value.values())),
    "alerts": lambda value: isinstance(value, Mapping) and all(map(_watched, value.values())),
    "history": _history,
    "pace": partial(_whole, least=1),
    "ids": _sample_ids,
    "fingerprint": lambda value: isinstance(value, str),
    "probe": lambda value: value is None or isinstance(value, Mapping),
    "selection": lambda value: isinstance(value, Mapping),
}


def _sorted_out(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """The valid entries of a state, and the invalid ones as text."""
    found: dict[str, Any] = {}
    odd: list[str] = []
    for key, value in state.items():
        if f"{prefix}{key}" in _FITS and not _FITS[f"{prefix}{key}"](value):
            odd.append(f"{prefix}{key}={reprlib.repr(value)}")
            continue
        found[key] = value
        if key == "schedule":
            found[key], more = _sorted_out(value, "schedule.")
            odd += more
    return found, odd


# -- the whole state -----------------------------------------------------------------------------------------------


def understood(state: Mapping[str, Any], name: str, raising: bool = False) -> dict[str, Any]:
    """The valid part of a saved state of this version or any other; warns of everything missing, unknown or invalid.

    Args:
        state: The state in the checkpoint.
        name: The monitor's name, for the warning.
        raising: Whether invalid entries are an error.

    Raises:
        ValueError: If ``raising``, and an entry is invalid.
    """
    version = state.get("version", 1)
    missing = [key for key in (*_ALWAYS, *(_SINCE_2 if version != 1 else ())) if key not in state]
    unknown = [str(key) for key in state if key not in ("version", *_ALWAYS, *_SINCE_2, *_SOMETIMES, *_SAMPLES)]
    found = {key: value for key, value in state.items() if key not in unknown}
    if version == 2 and isinstance(found.get("pace"), (tuple, list)) and found["pace"]:
        # Version 2 also stored which memory format was faster.
        found["pace"] = found["pace"][0]
    found, impossible = _sorted_out(found)
    if impossible and raising:
        raise ValueError(
            f"ExplanationMonitor {name!r}: its state in the checkpoint has {', '.join(impossible)}, which is invalid. "
            'Resume from another checkpoint, or use on_error="warn" to restore the rest.'
        )
    if not {"ids", "fingerprint"} <= found.keys():
        # Indices and fingerprint are useful only together.
        found = {key: value for key, value in found.items() if key not in ("ids", "fingerprint")}
    if found.get("probe") is not None:
        columns = [field.name for field in fields(Probe)]
        unknown += [f"probe.{key}" for key in found["probe"] if key not in columns]
        found["probe"] = {key: value for key, value in found["probe"].items() if key in columns}
        if "inputs" not in found["probe"]:
            missing.append("probe.inputs")
            del found["probe"]
    if missing or unknown or impossible:
        odd = [f"lacks {', '.join(missing)}"] if missing else []
        odd += [f"has {', '.join(unknown)}, which this version does not know"] if unknown else []
        odd += [f"has {', '.join(impossible)}, which is invalid"] if impossible else []
        rank_zero_warn(
            f"ExplanationMonitor {name!r}: its state in the checkpoint (version {version}, this is {VERSION}) "
            f"{' and '.join(odd)}. It restores the rest, and what is missing starts from scratch. To restore "
            "everything, resume an intact checkpoint with the version of lightning_explain that saved it."
        )
    return found
