"""What a monitor saves in checkpoints and resumes from: schedule, alerts, history; a saved state is read part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_info

from lightning_explain.core import schema
from lightning_explain.core.probe import Probe
from lightning_explain.core.probe_form import PROBE, SAMPLES
from lightning_explain.core.report import Report
from lightning_explain.core.schema import MalformedError, brief, one_line
from lightning_explain.core.serialization import fingerprint
from lightning_explain.core.warn import shown_warnings
from lightning_explain.distributed.ranks import ALONE
from lightning_explain.explainer.history import History
from lightning_explain.monitor.alert_watcher import Alerts
from lightning_explain.monitor.failures import FailureLog, rank_zero_warn_or_log
from lightning_explain.monitor.schedule import Schedule
from lightning_explain.render.history import PictureHistory, Snapshot

Broadcast: TypeAlias = "Callable[[dict[str, Any]], dict[str, Any]]"
State: TypeAlias = "Mapping[str, Any]"

VERSION = 3
"""That of lightning_explain 0.1.0; older ones were never released."""

_CENTURY = 100 * 365 * 24 * 3600.0
_SECONDS, _MAPS = schema.number(0, _CENTURY), schema.mapped(schema.listed(schema.tensor()))
_SCHEDULE = {"first": schema.whole(), "last": schema.whole(), "not_before": schema.whole(), "every": schema.whole(1)}
_SCHEDULE |= {"explain_seconds": _SECONDS, "train_seconds": _SECONDS, "lengthened": schema.flag}
_SCHEDULE |= {"last_seconds": _SECONDS, "next_seconds": _SECONDS}
_ALERT = {"count": schema.whole(), "first": schema.nothing_or(schema.number())}
_HISTORY = {"first": _MAPS, "previous": _MAPS, "ids": schema.tensor(1, of_whole=True), "fingerprint": schema.text(100)}
_BY_METHOD = schema.mapped(schema.tensor())
_WHEN = schema.nothing_or(schema.whole())
_SNAPSHOT = {"epoch": _WHEN, "step": _WHEN, "weights": _BY_METHOD, "largest": _BY_METHOD, "scores": _BY_METHOD}
_PICTURES = {
    "kept": schema.listed(schema.fields(_SNAPSHOT), 3),
    "count": schema.whole(),
    "fingerprint": schema.text(100),
}
_INDICES = schema.nothing_or(schema.listed(schema.whole(), SAMPLES))


def _selection(value: Any, where: str) -> None:
    schema.mapped(lambda part, place: (_INDICES if isinstance(part, (list, tuple)) else schema.plain)(part, place))(
        value, where
    )


_FORM: Mapping[str, Mapping[str, schema.Check]] = {
    "seed": {"seed": schema.whole(0, schema.LARGEST_SEED)},
    "failures": {"failures": schema.mapped(schema.whole())},
    "schedule": {"schedule": schema.fields(_SCHEDULE), "by_steps": schema.flag, "overtaken": schema.whole()},
    "alerts": {"alerts": schema.mapped(schema.fields(_ALERT))},
    "history": {"history": schema.fields(_HISTORY)},
    "pictures": {"pictures": schema.fields(_PICTURES)},
    "curves": {"curves": schema.listed(schema.text(), 1_000_000)},
    "pace": {"pace": schema.whole(1)},
    "ids": {"ids": schema.tensor(1, of_whole=True), "fingerprint": schema.text(100)},
    "probe": {"probe": schema.nothing_or(schema.fields(PROBE, ("inputs",))), "selection": _selection},
}
"""By part of a state: the form of each of its entries."""


@dataclass
class Memory:
    """The schedule, the alerts and the history of one monitor.

    Args:
        schedule: When to explain.
        alerts: The scores to watch.
        by_steps: Whether the schedule counts optimizer steps.
        looks_back: Whether a metric compares maps with earlier ones, so that they must be kept.
        history: These maps.
        pictures: The maps for pictures over epochs, on rank zero.
        follows: Whether the schedule goes on from an earlier count of this training.
        unfinished: The count of the last explanation before the one that another process is making; ``None``: none is, or training has
            gone on since. A training that is resumed from a checkpoint which is saved meanwhile makes it again.
        overtaken: The step of the one that another process is still making after training has gone on; ``None``: none is. From a
            checkpoint which is saved then nobody can make it again, and a training that is resumed from it says so.
    """

    schedule: Schedule
    alerts: Alerts
    by_steps: bool
    looks_back: bool
    history: History = field(default_factory=History)
    pictures: PictureHistory = field(default_factory=PictureHistory)
    follows: bool = False
    unfinished: int | None = None
    overtaken: int | None = None
    _made_at: int | None = None  # the step of the unfinished one

    def begin_again(self) -> None:
        """Resets everything, because another training begins."""
        self.schedule = Schedule(self.schedule.every, self.schedule.max_overhead)
        self.alerts.load({})
        self.history, self.pictures = History(), PictureHistory()
        self.follows = False
        self.arrived()

    def hand_over(self, last: int, step: int) -> None:
        """Notes that another process is making an explanation.

        Args:
            last: Count of the last explanation before it.
            step: Its own step.
        """
        self.unfinished, self._made_at, self.overtaken = last, step, None

    def go_on(self) -> None:
        """Notes that training goes on from where the unfinished explanation is being made of."""
        self.unfinished, self.overtaken = None, self._made_at

    def arrived(self) -> None:
        """Notes that no other process is making an explanation."""
        self.unfinished = self.overtaken = self._made_at = None

    def start(self, count: int, probe: Probe | None) -> None:
        """Starts the clock and arms the alerts. A schedule that no checkpoint restored skips what was due before.

        Args:
            count: Epochs or steps so far, as the schedule counts them.
            probe: The samples of this training.
        """
        if (
            probe is not None
            and self.looks_back
            and not self.lacks_history(probe)
            and (lost := self.history.misplaced(probe))
        ):
            rank_zero_warn_or_log(
                f"ExplanationMonitor {brief(self.alerts.name)}: the earlier maps of {brief(lost)} in the checkpoint do not lie on the "
                "probe samples; they are left out."
            )
            self.history = self.history.without(lost)
        schedule = self.schedule
        # A checkpoint that is saved in the middle of an epoch may have explained it already.
        if self.follows and schedule.last > count + 1:
            unit = "steps" if self.by_steps else "epochs"
            rank_zero_warn_or_log(
                f"ExplanationMonitor {self.alerts.name!r}: the schedule in the checkpoint has explained after {schedule.last} {unit}, "
                f"but this training begins after {count}; the schedule starts again."
            )
            self.schedule = schedule = Schedule(schedule.every, schedule.max_overhead)
            self.follows = False
        schedule.start(time.perf_counter())
        self.alerts.arm()
        if not self.follows:
            schedule.begin_at(count)
        schedule.take_up(count)
        if schedule.put_off(count):
            self._announce_next()
        self.follows = True

    def _announce_next(self) -> None:
        until = f"{self.schedule.not_before} {'steps' if self.by_steps else 'epochs'}"
        rank_zero_info(f"ExplanationMonitor explains less often because of max_overhead: next after {until}.")

    def lacks_history(self, probe: Probe) -> bool:
        """Whether a metric needs earlier maps, and there are none of these samples."""
        return self.looks_back and self.history.fingerprint != fingerprint(probe)

    def keep(self, report: Report, probe: Probe, broadcast: Broadcast) -> None:
        """Keeps the maps that the next explanation is compared with, as rank zero has them.

        The ranks' maps may differ, because batch statistics may.
        """
        if self.looks_back:
            self.history = History(**broadcast(self.history.followed_by(report, probe).state()))

    def keep_pictures(self, drawn: Snapshot | None, fingerprint: str) -> None:
        """Keeps the maps that later pictures show beside theirs, where pictures are drawn."""
        if drawn is not None:
            self.pictures = self.pictures.followed_by(drawn, fingerprint)

    def note_time(
        self, count: int, started: float, now: float, broadcast: Broadcast, reached: int | None = None
    ) -> None:
        """Records the time an explanation took. Rank zero's clock decides, so that no rank explains alone.

        Args:
            count: Epochs or steps until the explanation, as the schedule counts them.
            started: Clock reading when the explanation began, in seconds.
            now: Clock reading when it ended.
            broadcast: Returns rank zero's value on every rank.
            reached: Epochs or steps by now, if training went on meanwhile.
        """
        lengthened = self.schedule.lengthened
        self.schedule.done(count, started, now, reached)
        self.schedule.load(broadcast(self.schedule.state()))
        if self.schedule.lengthened and not lengthened:
            self._announce_next()

    def share(self, broadcast: Broadcast) -> None:
        """Takes over the schedule, the alerts and the history of rank zero, which may have explained alone, by its own clock.

        Args:
            broadcast: Returns rank zero's value on every rank.
        """
        own = {"schedule": self.schedule.state(), "alerts": self.alerts.state(), "history": self.history.state()}
        found = broadcast(own)
        self.schedule.load(found["schedule"])
        self.alerts.load(found["alerts"])
        self.history = History(**found["history"])

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """The parts of the state to save in a checkpoint, as functions that return them; all load with ``weights_only=True``."""
        return {
            "schedule": self._schedule_state,
            "alerts": lambda: {"alerts": self.alerts.state()},
            "history": lambda: {"history": self.history.state()},
            "pictures": lambda: {"pictures": self.pictures.state()},
        }

    def _schedule_state(self) -> dict[str, Any]:
        # Includes the training since the last explanation: a checkpoint may be saved right before the next one.
        trained = {"train_seconds": self.schedule.trained(time.perf_counter())}
        last = {} if self.unfinished is None else {"last": self.unfinished}
        overtaken = {} if self.overtaken is None else {"overtaken": self.overtaken}
        return {
            **overtaken,
            "by_steps": self.by_steps,
            "schedule": {**self.schedule.state(), **trained, **last, "every": self.schedule.every},
        }

    def load_schedule(self, state: State) -> None:
        """Restores the schedule, unless it counts something else: steps say nothing about epochs, and the reverse."""
        saved, by_steps, overtaken = state["schedule"], state["by_steps"], state.get("overtaken")
        if overtaken is not None:
            rank_zero_warn_or_log(
                f"ExplanationMonitor {brief(self.alerts.name)}: when the checkpoint was saved, the explanation of step {overtaken} was "
                "still being made beside the training, which had gone on since. It is not made again; it is missing unless that training "
                "went on until it was done. To keep all, save checkpoints when explanations are due, or use beside=False."
            )
        if by_steps == self.by_steps:
            self.schedule.load(saved)
            self.follows = "last" in saved and saved.get("every", self.schedule.every) == self.schedule.every

    def load_history(self, state: State) -> None:
        """Restores the maps of earlier explanations, if a metric needs them."""
        found = History(**state["history"])
        kept = [part for maps in (found.first, found.previous) for parts in maps.values() for part in parts]
        if any(part.ndim == 0 or len(part) != len(found.ids) for part in kept):
            raise MalformedError(f"its maps are not of {len(found.ids)} samples")
        self.history = found if self.looks_back else History()

    def load_pictures(self, state: State) -> None:
        """Restores the maps for pictures over epochs; version 0.1 kept none."""
        self.pictures = PictureHistory.of_state(state["pictures"]) if "pictures" in state else PictureHistory()


def saved(parts: Mapping[str, Callable[[], Mapping[str, Any]]], log: FailureLog) -> dict[str, Any]:
    """The state to save in a checkpoint, without what fails: a checkpoint that lacks it is better than none."""
    state: dict[str, Any] = {"version": VERSION}
    for part, read in parts.items():
        with shown_warnings(), log.guard(f"A checkpoint is saved without the monitor's {part}", ALONE):
            state |= read()
    return state


def restore(state: Any, parts: Mapping[str, Callable[[State], None]], name: str, raising: bool = False) -> None:
    """Restores each part of a saved state that has its declared form, and says in one line which ones have not.

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
            for key, check in _FORM[part].items():
                if key in found:
                    check(found[key], key)
            read(found)
        except KeyError as error:
            lost.append(f"{part} (lacks {error})")
        except Exception as error:
            # The first reason leaves room for the names of all others.
            lost.append(part if invalid else f"{part} (invalid: {one_line(str(error), 90)})")
            invalid = True
    if not lost and version == VERSION:
        return
    text = (
        f"ExplanationMonitor {brief(name)}: of its state in the checkpoint (version {brief(version)}, this is "
        f"{VERSION}), it cannot restore {', '.join(lost) or 'what it does not know'}"
    )
    if raising and invalid:
        raise ValueError(one_line(f'{text}. Resume another checkpoint, or use on_error="warn" to restore the rest.'))
    rank_zero_warn_or_log(one_line(f"{text}, which starts from scratch. To keep it, resume an intact checkpoint."))
