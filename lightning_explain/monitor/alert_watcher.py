"""Takes alerts and the scores of explanations; warns, alerts W&B, or stops training on scores out of bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from lightning_explain.core.alert import Alert
from lightning_explain.core.naming import nearest
from lightning_explain.core.schema import brief
from lightning_explain.explainer.registry import construct
from lightning_explain.loggers.packages import in_both
from lightning_explain.monitor.failures import FailureLog, rank_zero_warn_or_log, text_of


def alerts_of(given: Any) -> tuple[Alert, ...]:
    """The alerts in a user's list of instances, expressions, or mappings of their arguments; ``None``: no alerts.

    Raises:
        TypeError: If the argument is not a list of alerts.
        ValueError: If an argument of an alert is unknown or not allowed, or two alerts are equal.
    """
    if given is None:
        return ()
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(f"alerts={brief(given)} is of type {type(given).__name__}; give a list of alerts.")
    found: dict[str, Alert] = {}
    for i, one in enumerate(given):
        arguments = {"metric": one} if isinstance(one, str) else one
        alert = construct(Alert, arguments, f"alerts[{i}]") if isinstance(arguments, Mapping) else one
        if not isinstance(alert, Alert):
            raise TypeError(
                f"alerts[{i}] is a {type(one).__name__}; give an Alert, an expression, or a mapping of its arguments."
            )
        if alert.key in found:
            raise ValueError(f"alerts has {alert.key!r} twice; keep one of them, since every action also warns.")
        found[alert.key] = alert
    return tuple(found.values())


@dataclass
class Watch:
    """An alert and its state.

    Args:
        alert: The alert.
        count: Number of consecutive explanations out of bounds.
        first: The first finite value of the score.
    """

    alert: Alert
    count: int = 0
    first: float | None = None

    def sees(self, value: float | None) -> bool:
        """Updates the state with a value, and returns whether the alert fires; ``None``: there is no value."""
        if value is None or not math.isfinite(value):
            return False
        self.first = value if self.first is None else self.first
        self.count = self.count + 1 if self.alert.out(value, self.first) else 0
        return self.count == self.alert.patience


class Alerts:
    """All alerts of a monitor.

    Args:
        name: The monitor's name.
        alerts: The alerts.
        failure_log: Reports alerts that could not be sent.
    """

    def __init__(self, name: str, alerts: Sequence[Alert], failure_log: FailureLog) -> None:
        self.name = name
        self._failure_log = failure_log
        self._watches = [Watch(alert) for alert in alerts]

    @property
    def keys(self) -> list[str]:
        """The keys of the scores that the alerts name."""
        return [f"{self.name}/{watch.alert.metric}" for watch in self._watches]

    def check(self, keys: Iterable[str]) -> None:
        """Refuses alerts on scores that are never logged.

        Args:
            keys: The keys of all scores, with the monitor's name.

        Raises:
            ValueError: If an alert names another score.
        """
        known = [key.removeprefix(f"{self.name}/") for key in keys]
        for metric in (watch.alert.metric for watch in self._watches):
            if metric not in known:
                raise ValueError(f"Alert({brief(metric)}) names a score that is not logged: {nearest(metric, known)}")

    def refuse_late(self) -> None:
        """Refuses alerts that stop the training, if scores arrive later than they are due.

        Raises:
            ValueError: If there is one.
        """
        for watch in self._watches:
            if watch.alert.action == "stop":
                raise ValueError(
                    f'Alert({watch.alert.metric!r}, action="stop") would stop the training too late, because with beside=... scores arrive '
                    'after the training has gone on. Use beside=False, or action="log".'
                )

    def watched(self) -> dict[str, str]:
        """Each alert in words, and the tag of its score."""
        return {f"Alert({w.alert.metric!r})": f"{self.name}/{w.alert.metric}" for w in self._watches}

    def check_loggers(self, trainer: pl.Trainer) -> None:
        """Refuses W&B alerts if the Trainer has no W&B logger, except in a ``fast_dev_run``, which has no loggers.

        Raises:
            ValueError: If there is such an alert.
        """
        asked = [w.alert for w in self._watches if w.alert.action == "wandb"]
        dry = getattr(trainer, "fast_dev_run", False)
        if asked and not dry and not any(isinstance(logger, in_both(WandbLogger)) for logger in trainer.loggers):
            raise ValueError(
                f'Alert({asked[0].metric!r}, action="wandb"), but the Trainer has no WandbLogger; give it one, or use action="log".'
            )

    def watch(
        self, trainer: pl.Trainer, scalars: Mapping[str, float], epoch: int | None = None, step: int | None = None
    ) -> list[str]:
        """Checks the scalars of one explanation, acts on every alert that fires, and returns what these say.

        Args:
            trainer: The Trainer.
            scalars: Equal on all ranks; by name, without the monitor's name.
            epoch: The epoch that was explained; ``None``: the current one.
            step: The same for the step.
        """
        texts, now = [], (trainer.current_epoch, trainer.global_step)
        epoch, step = (current if given is None else given for given, current in zip((epoch, step), now, strict=True))
        when = f"(epoch {epoch}, step {step})"
        for watch in self._watches:
            alert, new = watch.alert, watch.first is None
            fires = watch.sees(scalars.get(alert.metric))
            if new and alert.times is not None and watch.first is not None and watch.first <= 0:
                rank_zero_warn_or_log(
                    f"Alert({alert.metric!r}, times={alert.times!r}) will never fire: the first value is "
                    f"{watch.first:.6g}, which is not above 0. Use above=... or below=... instead."
                )
            if fires:
                found = alert.found(scalars[alert.metric], watch.first or 0.0)
                patience = f" in {alert.patience} explanations in a row" if alert.patience > 1 else ""
                texts.append(self._act(trainer, alert, f"{found}{patience} {when}"))
        return texts

    def _act(self, trainer: pl.Trainer, alert: Alert, found: str) -> str:
        text = f"{self.name}/{alert.metric} is {found}{'; training stops' if alert.action == 'stop' else ''}."
        rank_zero_warn_or_log(text)
        if alert.action == "stop":
            trainer.should_stop = True
        if alert.action == "wandb" and trainer.is_global_zero:
            self._send(trainer, f"{self.name}/{alert.metric} {alert.condition}", text)
        return text

    def _send(self, trainer: pl.Trainer, title: str, text: str) -> None:
        try:
            for logger in trainer.loggers:
                if isinstance(logger, in_both(WandbLogger)):
                    logger.experiment.alert(title=title, text=text)
        except Exception as error:
            # Reported but never raised: only rank zero gets here, and the other ranks would wait for it.
            self._failure_log.report_once(
                f"alert {title}", f"The alert could not be sent to W&B; check the connection:\n{text_of(error)}"
            )

    def arm(self) -> None:
        """Lets alerts that have fired fire again. Called when training resumes."""
        for watch in self._watches:
            watch.count = min(watch.count, watch.alert.patience - 1)

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint, by alert; loads with ``weights_only=True``."""
        return {watch.alert.key: {"count": watch.count, "first": watch.first} for watch in self._watches}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state; alerts that are not in it start from scratch."""
        self._watches = [Watch(watch.alert, **state.get(watch.alert.key, {})) for watch in self._watches]
