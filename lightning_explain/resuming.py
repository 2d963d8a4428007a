"""The monitor's state in a checkpoint: its versions, and what is made of one that is not as expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_explain.types import Probe

VERSION = 3
"""1: rows, schedule, ``by_steps``. 2: also the seed of the draws, and failures in a row. 3: the pace is a number of rows."""

_ALWAYS = ("by_steps", "schedule")
_SINCE_2 = ("seed", "failures")
_SOMETIMES = ("alerts", "history", "pace")
_ROWS = ("ids", "fingerprint", "probe", "selection")


def understood(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What there is to take up of a saved state, of this version or any other; what is odd about it is told.

    Args:
        state: As it comes from the checkpoint.
        name: The monitor's name, for the warning.
    """
    version = state.get("version", 1)
    missing = [key for key in (*_ALWAYS, *(_SINCE_2 if version != 1 else ())) if key not in state]
    unknown = [str(key) for key in state if key not in ("version", *_ALWAYS, *_SINCE_2, *_SOMETIMES, *_ROWS)]
    found = {key: value for key, value in state.items() if key not in unknown}
    if version == 2 and "pace" in found:
        # Then it was also said which memory layout was the faster one.
        found["pace"], _ = found["pace"]
    if found.get("probe") is not None:
        columns = [field.name for field in fields(Probe)]
        unknown += [f"probe.{key}" for key in found["probe"] if key not in columns]
        found["probe"] = {key: value for key, value in found["probe"].items() if key in columns}
        if "inputs" not in found["probe"]:
            missing.append("probe.inputs")
            del found["probe"]
    if missing or unknown:
        odd = [f"lacks {', '.join(missing)}"] if missing else []
        odd += [f"has {', '.join(unknown)}, which is not known here"] if unknown else []
        rank_zero_warn(
            f"ExplanationMonitor {name!r}: its state in the checkpoint (version {version}, this is {VERSION}) "
            f"{' and '.join(odd)}. It takes up the rest; what is missing begins anew."
        )
    return found
