"""What a monitor saves in checkpoints and resumes from: schedule, alerts, history; a saved state is read part by part."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_info

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.core.serialization import fingerprint
from lightning_explain.core.validation import check_flag
from lightning_explain.explainer.history import History
from lightning_explain.monitor.alert_watcher import Alerts
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.monitor.schedule import Schedule

Broadcast: TypeAlias = "Callable[[dict[str, Any]], dict[str, Any]]"
State: TypeAlias = "Mapping[str, Any]"

VERSION = 3
"""That of lightning_explain 0.1.0; older ones were never released."""


@dataclass
class Memory:
    """The schedule, the alerts and the history of one monitor.

    Args:
        schedule: When to explain.
        alerts: The scores to watch.
        by_steps: Whether the schedule counts optimizer steps.
        looks_back: Whether a metric compares maps with earlier ones, so that they must be kept.
        history: These maps.
        follows: Whether the schedule goes on from an earlier count of this training.
    """

    schedule: Schedule
    alerts: Alerts
    by_steps: bool
    looks_back: bool
    history: History = field(default_factory=History)
    follows: bool = False

    def begin_again(self) -> None:
        """Resets everything, because another training begins."""
        self.schedule = Schedule(self.schedule.every, self.schedule.max_overhead)
        self.alerts.load({})
        self.history = History()
        self.follows = False

    def start(self, count: int) -> None:
        """Starts the clock and arms the alerts. A schedule that no checkpoint restored skips what was due before.

        Args:
            count: Epochs or steps so far, as the schedule counts them.
        """
        self.schedule.start(time.perf_counter())
        self.alerts.arm()
        if not self.follows:
            self.schedule.begin_at(count)
        self.follows = True

    def lacks_history(self, probe: Probe) -> bool:
        """Whether a metric needs earlier maps, and there are none of these samples."""
        return self.looks_back and self.history.fingerprint != fingerprint(probe)

    def keep(self, report: Report, probe: Probe, broadcast: Broadcast) -> None:
        """Keeps the maps that the next explanation is compared with, as rank zero has them.

        The ranks' maps may differ, because batch statistics may.
        """
        if self.looks_back:
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
            until = f"{self.schedule.not_before} {'steps' if self.by_steps else 'epochs'}"
            rank_zero_info(f"ExplanationMonitor explains less often because of max_overhead: next after {until}.")

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint; loads with ``weights_only=True``."""
        # Includes the training since the last explanation: a checkpoint may be saved right before the next one.
        trained = {"train_seconds": self.schedule.trained(time.perf_counter())}
        return {
            "by_steps": self.by_steps,
            "schedule": {**self.schedule.state(), **trained, "every": self.schedule.every},
            "alerts": self.alerts.state(),
            "history": self.history.state(),
        }

    def load_schedule(self, state: State) -> None:
        """Restores the schedule, unless it counts something else: steps say nothing about epochs, and the reverse."""
        saved, by_steps = state["schedule"], state["by_steps"]
        check_flag("", "by_steps", by_steps)
        if by_steps == self.by_steps:
            self.schedule.load(saved)
            self.follows = "last" in saved and saved.get("every", self.schedule.every) == self.schedule.every

    def load_history(self, state: State) -> None:
        """Restores the maps of earlier explanations, if a metric needs them."""
        found = History(**state["history"])
        kept = [part for maps in (found.first, found.previous) for parts in maps.values() for part in parts]
        if found.ids.is_floating_point() or any(part.shape[0] != len(found.ids) for part in kept):
            raise ValueError(f"its maps are not of the samples {reprlib.repr(found.ids)}")
        self.history = found if self.looks_back else History()


def restore(state: Any, parts: Mapping[str, Callable[[State], None]], name: str, raising: bool = False) -> None:
    """Restores each part of a saved state that can be read, and says in one line which ones cannot.

    Args:
        state: The monitor's state in the checkpoint.
        parts: By name: takes the state and restores this part; raises before it changes anything.
        name: The monitor's name, for the message.
        raising: Whether an invalid part is an error; a missing one never is.

    Raises:
        ValueError: If ``raising``, and a part is invalid.
    """
    found: State = state if isinstance(state, Mapping) else {}
    version, lost, invalid = found.get("version"), [], False
    for part, read in parts.items():
        try:
            read(found)
        except KeyError as error:
            lost.append(f"{part} (lacks {error})")
        except Exception as error:
            lost.append(f"{part} (invalid: {error})")
            invalid = True
    if not lost and version == VERSION:
        return
    text = (
        f"ExplanationMonitor {name!r}: of its state in the checkpoint (version {reprlib.repr(version)}, this is "
        f"{VERSION}), it cannot restore {', '.join(lost) or 'what it does not know'}"
    )
    if raising and invalid:
        raise ValueError(f'{text}. Resume another checkpoint, or use on_error="warn" to restore the rest.')
    rank_zero_warn_or_log(
        f"{text}, which starts from scratch. To restore everything, resume an intact checkpoint with the version of "
        "lightning_explain that saved it."
    )
