"""A model in, one of its layers out: the layer with a dotted name."""

from __future__ import annotations

from contextlib import suppress

from torch import nn

from lightning_explain.core.naming import nearest


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule of ``model`` with a dotted name; the level ``_orig_mod`` of ``torch.compile`` may be omitted.

    Raises:
        ValueError: If there is none; the error lists the nearest names.
    """
    with suppress(AttributeError):
        if name:
            return model.get_submodule(name)
    layers: dict[str, nn.Module] = {plain(key): module for key, module in model.named_modules() if key}
    if plain(name) not in layers:
        raise ValueError(f"There is no layer {name!r} in {type(model).__name__}: {nearest(name, layers)}")
    return layers[plain(name)]


def plain(name: str) -> str:
    """A dotted name without the level ``_orig_mod`` that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")
