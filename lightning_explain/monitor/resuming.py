"""The monitor's state in a checkpoint: its versions, and what is made of one that is not as expected."""

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
"""1: rows, schedule, ``by_steps``. 2: also the seed of the draws, and failures in a row. 3: the pace is a number of rows."""

_ALWAYS = ("by_steps", "schedule")
_SINCE_2 = ("seed", "failures")
_SOMETIMES = ("alerts", "history", "pace")
_SAMPLES = ("ids", "fingerprint", "probe", "selection")


# -- what an entry may be ------------------------------------------------------------------------------------------


def _whole(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sample_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and not (value.is_floating_point() or value.is_complex())


def _watched(value: Any) -> bool:
    """What an alert has seen."""
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
    """What of a state can be taken up, and what cannot be what it says."""
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


# -- the whole of it -----------------------------------------------------------------------------------------------


def understood(state: Mapping[str, Any], name: str, raising: bool = False) -> dict[str, Any]:
    """What there is to take up of a saved state, of this version or any other; what is odd about it is told.

    Args:
        state: As it comes from the checkpoint.
        name: The monitor's name, for the warning.
        raising: Whether what cannot be is refused instead.

    Raises:
        ValueError: If it is, and there is such.
    """
    version = state.get("version", 1)
    missing = [key for key in (*_ALWAYS, *(_SINCE_2 if version != 1 else ())) if key not in state]
    unknown = [str(key) for key in state if key not in ("version", *_ALWAYS, *_SINCE_2, *_SOMETIMES, *_SAMPLES)]
    found = {key: value for key, value in state.items() if key not in unknown}
    if version == 2 and isinstance(found.get("pace"), (tuple, list)) and found["pace"]:
        # Then it was also said which memory layout was the faster one.
        found["pace"] = found["pace"][0]
    found, impossible = _sorted_out(found)
    if impossible and raising:
        raise ValueError(f"ExplanationMonitor {name!r}: its state says {', '.join(impossible)}, which cannot be.")
    if not {"ids", "fingerprint"} <= found.keys():
        # One says nothing without the other.
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
        odd += [f"has {', '.join(unknown)}, which is not known here"] if unknown else []
        odd += [f"says {', '.join(impossible)}, which cannot be"] if impossible else []
        rank_zero_warn(
            f"ExplanationMonitor {name!r}: its state in the checkpoint (version {version}, this is {VERSION}) "
            f"{' and '.join(odd)}. It takes up the rest; what is missing begins anew."
        )
    return found
