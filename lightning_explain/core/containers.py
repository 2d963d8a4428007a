"""Arguments that Hydra passed as OmegaConf containers in; dicts, lists and the dataclasses that they describe out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def resolved(value: Any) -> Any:
    """The value without OmegaConf containers, however deeply they are nested in mappings, lists and tuples.

    Hydra passes what stands below a ``_target_`` as such containers, a method or metric among it too, unless
    ``_convert_: all`` is set.

    Args:
        value: Any argument; OmegaConf is not imported for it.

    Raises:
        ValueError: If a value refers to another one that does not exist.

    Example:
        >>> from omegaconf import OmegaConf
        >>> from lightning_explain import methods as m
        >>> from lightning_explain.core.containers import resolved
        >>> resolved([OmegaConf.create({"ig": m.IntegratedGradients(n_steps=8)})])
        [{'ig': IntegratedGradients(...n_steps=8...)}]
    """
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
        try:
            return omegaconf.OmegaConf.to_container(
                value, resolve=True, structured_config_mode=omegaconf.SCMode.INSTANTIATE
            )
        except omegaconf.errors.OmegaConfBaseException as error:
            raise ValueError(
                f"{error.full_key!r} in the configuration cannot be resolved ({error.msg}); define what it refers to."
            ) from error
    if isinstance(value, Mapping):
        return {key: resolved(part) for key, part in value.items()}
    return type(value)(map(resolved, value)) if type(value) in (list, tuple) else value
