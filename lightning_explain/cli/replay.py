"""Takes a configuration file, builds its model, data, monitor and loggers, and replays the checkpoints of a finished training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_explain.core.probe import Probe
from lightning_explain.core.schema import brief, short_errors
from lightning_explain.monitor.callback import ExplanationMonitor
from lightning_explain.monitor.checkpoints import saved_arguments
from lightning_explain.monitor.config import instantiated, monitor_arguments, read
from lightning_explain.monitor.replay import Replayed, replay


@short_errors()
def replay_configured(
    checkpoints: Sequence[Path],
    path: Path,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    part: str = "0/1",
    weights_only: bool = True,
) -> Replayed:
    """Replays what a file with ``model``, ``data`` and, if wanted, ``monitor``, ``logger`` and ``trainer`` describes.

    Args:
        checkpoints: As ``replay`` takes them.
        path: A YAML file, composed by Hydra.
        overrides: As on the command line of a Hydra application.
        output: As ``replay`` takes it.
        part: ``"i/n"``: the i-th of n jobs, counted from 0.
        weights_only: As ``replay`` takes it.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ImportError: If Hydra is not installed.
        ValueError: If a key is missing, an object cannot be built, or nothing can be explained.
        TypeError: If a value has a wrong type.
    """
    numbers = part.split("/")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--part {brief(part)}; write i/n, such as 0/4, with i from 0 to n - 1.")
    config = read(path, overrides)
    arguments = monitor_arguments(config.get("monitor") or {}, ExplanationMonitor)
    data = None if config.get("data") is None else instantiated(config, "data")
    if isinstance(data, Probe):
        arguments, data = {**arguments, "probe": data}, None
    model = instantiated(config, "model", saved_arguments(checkpoints, weights_only))
    return replay(
        checkpoints,
        model,
        data,
        ExplanationMonitor(**arguments),
        output=output,
        logger=_loggers(config),
        trainer=config.get("trainer"),
        part=(int(numbers[0]), int(numbers[1])),
        weights_only=weights_only,
    )


def _loggers(config: Mapping[str, Any]) -> Any:
    """Built loggers; ``None`` and ``False`` as they are."""
    given = config.get("logger")
    if given is None or given is False:
        return given
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [instantiated({"logger": one}, "logger") for one in given]
    return instantiated(config, "logger")
