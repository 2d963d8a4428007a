"""What a monitor remembers from one explanation to the next, and from one run to the next."""

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
    """When it explained, what it found, and what it was alert to.

    Args:
        schedule: When to explain.
        alerts: Which scores are watched.
        metrics: By name; maps are kept if one of them looks back.
        by_steps: Whether the schedule counts optimiser steps.
    """

    def __init__(self, schedule: Schedule, alerts: Alerts, metrics: Mapping[str, Metric], by_steps: bool) -> None:
        self.schedule = schedule
        self.alerts = alerts
        self.history = History()
        self._by_steps = by_steps
        self._follows = False
        self._looks_back = any(getattr(metric, "needs_history", False) for metric in metrics.values())

    def begin_again(self) -> None:
        """Forgets all, for another training begins."""
        self.schedule = Schedule(self.schedule.every, self.schedule.max_overhead)
        self.alerts.begin_again()
        self.history = History()
        self._follows = False

    def start(self, count: int) -> None:
        """Starts the clock and arms the alerts. A schedule of which the checkpoint knew nothing begins at its next multiple.

        Args:
            count: What the schedule counts, as far as training has come.
        """
        self.schedule.start(time.perf_counter())
        self.alerts.arm()
        if not self._follows:
            self.schedule.pass_over(count)
        self._follows = True

    def lacks_history(self, probe: Probe) -> bool:
        """Whether a metric wants to look back, and there is nothing of these samples."""
        return self._looks_back and self.history.fingerprint != fingerprint(probe)

    def keep(self, report: Report, probe: Probe, broadcast: Broadcast) -> None:
        """Keeps what the next explanation looks back on, as rank zero has it: batch statistics may differ between steps."""
        if self._looks_back:
            self.history = History(**broadcast(self.history.followed_by(report, probe).state()))

    def note_time(self, count: int, started: float, broadcast: Broadcast) -> None:
        """Notes what an explanation took; the clock of rank zero decides for all, so that no rank explains alone.

        Args:
            count: What the schedule counts.
            started: Reading of the clock when it began.
            broadcast: Gives what rank zero has.
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
        """What must survive in a checkpoint; loads with ``weights_only=True``."""
        # Trained since the last explanation, too: a checkpoint may come right before the next one.
        trained = {"train_seconds": self.schedule.trained(time.perf_counter())}
        return {
            "by_steps": self._by_steps,
            "schedule": {**self.schedule.state(), **trained, "every": self.schedule.every},
            "alerts": self.alerts.state(),
            "history": self.history.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        if state.get("by_steps") == self._by_steps:
            # What was counted in steps says nothing about epochs.
            saved = state.get("schedule", {})
            self.schedule.load(saved)
            self._follows = "last" in saved and saved.get("every", self.schedule.every) == self.schedule.every
        self.alerts.load(state.get("alerts", {}))
        self.history = History(**state.get("history", {})) if self._looks_back else History()
