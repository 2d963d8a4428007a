"""What a monitor saves in checkpoints and resumes from: schedule, alerts, history; the valid part of a saved state."""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_explain.core.contracts import Metric
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.explainer.history import History
from lightning_explain.monitor.alert_watcher import Alerts
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.monitor.schedule import Schedule
from lightning_explain.probes.selection import fingerprint

Broadcast: TypeAlias = "Callable[[dict[str, Any]], dict[str, Any]]"


class Memory:
    """The schedule, the alerts and the history of one monitor.

    Args:
        schedule: When to explain.
        alerts: The scores to watch.
        metrics: By name; maps are kept if a metric compares them with earlier ones.
        by_steps: Whether the schedule counts optimizer steps.
    """

    def __init__(self, schedule: Schedule, alerts: Alerts, metrics: Mapping[str, Metric], by_steps: bool) -> None:
        self.schedule = schedule
        self.alerts = alerts
        self.history = History()
        self._by_steps = by_steps
        self._follows = False
        self._looks_back = any(metric.needs_history for metric in metrics.values())

    def begin_again(self) -> None:
        """Resets everything, because another training begins."""
        self.schedule = Schedule(self.schedule.every, self.schedule.max_overhead)
        self.alerts.begin_again()
        self.history = History()
        self._follows = False

    def start(self, count: int) -> None:
        """Starts the clock and arms the alerts. A schedule that no checkpoint restored skips what was due before.

        Args:
            count: Epochs or steps so far, as the schedule counts them.
        """
        self.schedule.start(time.perf_counter())
        self.alerts.arm()
        if not self._follows:
            self.schedule.pass_over(count)
        self._follows = True

    def lacks_history(self, probe: Probe) -> bool:
        """Whether a metric needs earlier maps, and there are none of these samples."""
        return self._looks_back and self.history.fingerprint != fingerprint(probe)

    def keep(self, report: Report, probe: Probe, broadcast: Broadcast) -> None:
        """Keeps the maps that the next explanation is compared with, as rank zero has them.

        The ranks' maps may differ, because batch statistics may.
        """
        if self._looks_back:
            self.history = History(**broadcast(self.history.followed_by(report, probe).state()))

    def note_time(self, count: int, started: float, broadcast: Broadcast) -> None:
        """Records the time an explanation took. Rank zero's clock decides, so that no rank explains alone.

        Args:
            count: Epochs or steps so far, as the schedule counts them.
            started: Clock reading when the explanation began, in seconds.
            broadcast: Returns rank zero's value on every rank.
        """
        lengthened = self.schedule.lengthened
        self.schedule.done(count, started, time.perf_counter())
        self.schedule.load(broadcast(self.schedule.state()))
        if self.schedule.lengthened and not lengthened:
            unit = "steps" if self._by_steps else "epochs"
            rank_zero_info(
                f"ExplanationMonitor explains less often to stay under max_overhead={self.schedule.max_overhead}: "
                f"next after {self.schedule.not_before} {unit}."
            )

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint; loads with ``weights_only=True``."""
        # Includes the training since the last explanation: a checkpoint may be saved right before the next one.
        trained = {"train_seconds": self.schedule.trained(time.perf_counter())}
        return {
            "by_steps": self._by_steps,
            "schedule": {**self.schedule.state(), **trained, "every": self.schedule.every},
            "alerts": self.alerts.state(),
            "history": self.history.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state."""
        if state.get("by_steps") == self._by_steps:
            # A count of steps says nothing about epochs, and the reverse.
            saved = state.get("schedule", {})
            self.schedule.load(saved)
            self._follows = "last" in saved and saved.get("every", self.schedule.every) == self.schedule.every
        self.alerts.load(state.get("alerts", {}))
        self.history = History(**state.get("history", {})) if self._looks_back else History()


# -- reading a saved state -----------------------------------------------------------------------------------------

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
        rank_zero_warn_or_log(
            f"ExplanationMonitor {name!r}: its state in the checkpoint (version {version}, this is {VERSION}) "
            f"{' and '.join(odd)}. It restores the rest, and what is missing starts from scratch. To restore "
            "everything, resume an intact checkpoint with the version of lightning_explain that saved it."
        )
    return found
