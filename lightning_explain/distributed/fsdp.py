"""Weights that are sharded over ranks: recognised, and gathered."""

from __future__ import annotations

from torch import nn


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are spread over ranks, as FSDP2's and tensor-parallel ones are."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def resumes_otherwise(model: nn.Module) -> bool:
    """Whether a training that is resumed may not be the uninterrupted one: Lightning restores other batch statistics of sharded models."""
    return is_sharded(model) and any(getattr(module, "running_mean", None) is not None for module in model.modules())


def regather(model: nn.Module, layer: nn.Module) -> None:
    """Gathers the weights around a layer again, for a backward pass that begins inside of it.

    FSDP2 frees them after the forward, and gathers them again only when a gradient comes to the output of what it wraps.
    """
    for part in model.modules():
        # Known by its methods, for importing FSDP takes long.
        if hasattr(part, "set_reshard_after_forward") and any(layer is inner for inner in part.modules()):
            part.unshard()  # type: ignore[operator]
