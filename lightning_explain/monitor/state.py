"""Takes finished explanations, and keeps schedule, alerts and history for the next explanation and the next run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_info

from lightning_explain.core.contracts import Metric
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.explainer.history import History
from lightning_explain.monitor.alert_watcher import Alerts
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
        self._looks_back = any(getattr(metric, "needs_history", False) for metric in metrics.values())

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
