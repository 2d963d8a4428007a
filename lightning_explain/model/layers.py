"""A model in, one of its layers out: the layer with a dotted name, or the last one that returns a feature map."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.core.naming import nearest


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule of ``model`` with a dotted name; the level ``_orig_mod`` of ``torch.compile`` may be omitted.

    Raises:
        ValueError: If there is none; the error lists the nearest names.
    """
    with suppress(AttributeError):
        if name:
            return model.get_submodule(name)
    layers: dict[str, nn.Module] = {_plain(key): module for key, module in model.named_modules() if key}
    if _plain(name) not in layers:
        raise ValueError(f"There is no layer {name!r} in {type(model).__name__}: {nearest(name, layers)}")
    return layers[_plain(name)]


def _plain(name: str) -> str:
    """A dotted name without the level ``_orig_mod`` that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def last_feature_map(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """The dotted name of the last module to return a feature map ``(N, C, h, w)`` with h*w > 1; ``None`` if none does.

    Args:
        model: The module.
        forward: A function that runs the model once.
    """
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        return hook

    # TorchScript modules do not accept hooks.
    named = [(k, v) for k, v in model.named_modules() if k and not isinstance(v, torch.jit.ScriptModule)]
    handles = [module.register_forward_hook(note(_plain(name))) for name, module in named]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None
