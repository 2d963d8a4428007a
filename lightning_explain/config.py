"""From a configuration to constructor arguments. The only importer of OmegaConf."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from lightning_explain.naming import nearest
from lightning_explain.probe import ProbeSelection

# A configuration is never code: what takes a function takes it from Python alone.
_CODE = ("forward_fn", "output_fn", "batch_fn")


def monitor_arguments(config: Any, monitor: type) -> dict[str, Any]:
    """Arguments of a monitor from a plain mapping or an OmegaConf one.

    Args:
        config: Keys are the constructor's arguments; ``probe`` is a mapping of ``ProbeSelection``'s.
        monitor: The class whose constructor they are for.

    Raises:
        TypeError: If the configuration is not a mapping.
        ValueError: If a key is unknown, or asks for code.
    """
    plain = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    if not isinstance(plain, Mapping):
        raise TypeError(f"The configuration is a {type(plain).__name__}; it must be a mapping of arguments to values.")
    allowed = [name for name in inspect.signature(monitor).parameters if name not in _CODE]
    _check_keys("the monitor", plain, allowed)
    arguments = {str(key): value for key, value in plain.items()}
    if isinstance(arguments.get("probe"), Mapping):
        _check_keys("probe", arguments["probe"], list(inspect.signature(ProbeSelection).parameters))
        arguments["probe"] = ProbeSelection(**arguments["probe"])
    return arguments


def _check_keys(owner: str, given: Mapping[Any, Any], allowed: list[str]) -> None:
    for key in given:
        if key in _CODE:
            raise ValueError(
                f"{key!r} in the configuration of {owner} takes a function; a configuration is never code."
            )
        if key not in allowed:
            raise ValueError(f"Unknown key {key!r} in the configuration of {owner}: {nearest(str(key), allowed)}")
