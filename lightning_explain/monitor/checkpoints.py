"""Takes checkpoints that others may have written; returns when they were saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_explain.core import schema
from lightning_explain.core.schema import MalformedError


def moment_of(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch and the optimizer step of a checkpoint.

    Raises:
        MalformedError: If it lacks one of them.
    """
    for name in ("epoch", "global_step"):
        if name not in checkpoint:
            raise MalformedError(f"it has no {name}, so it is no checkpoint of a Trainer")
        schema.whole()(checkpoint[name], name)
    return checkpoint["epoch"], checkpoint["global_step"]
