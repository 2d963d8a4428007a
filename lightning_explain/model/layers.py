"""A model in, one of its layers out: the layer with a dotted name, or the default one."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, nn

from lightning_explain.core.naming import nearest
from lightning_explain.core.record import Record, meet


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


def default_layer(model: nn.Module, record: Record) -> str | None:
    """The dotted name of the last module to return a feature map ``(N, C, h, w)`` with h*w > 1 on the way to the output.

    Args:
        model: The module.
        record: The record of a forward pass.

    Returns:
        The name; ``None`` if no module returns one.
    """
    names = {id(module): _plain(name) for name, module in model.named_modules()}
    last = record.chosen.grad_fn
    for key, passed in reversed(record.returned.items()):
        value = passed.value
        if not names.get(key) or not isinstance(value, Tensor) or value.ndim != 4 or len(value) != len(record.samples):
            continue
        if value.shape[2] * value.shape[3] > 1 and (last is None or meet([last], passed.nodes)):
            return names[key]
    return None
