"""Inputs and maps of which only the numbers are known, such as tables and units of a layer: each element is a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_explain.core.contracts import Arrangement, Modality
from lightning_explain.core.panels import MOST_BARS, Panel
from lightning_explain.core.probe import flat


@dataclass(frozen=True)
class Plain(Modality):
    """An input ``(N, ...)`` of which nothing is known: each element is a unit, and maps are drawn as bars.

    Example:
        >>> from lightning_explain.modalities import Plain
        >>> Plain().units(torch.zeros(2, 5))
        torch.Size([2, 5])
    """

    on_input: ClassVar[bool] = False

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        """A layer's tensor as ``(N, C, T)`` where the input is ids ``(N, T)``, or a series of T times in either order."""
        if value.ndim != 3 or x.ndim != (3 if x.is_floating_point() else 2) or not _fits(how.reshape):
            return None
        axis = _places(value, x, how)
        count = value.shape[axis]
        if count < 2 or (x.ndim == 2 and count != x.shape[1]) or (x.ndim == 3 and count > max(x.shape[1:])):
            return None
        return value if axis == 2 else value.transpose(1, 2)

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        """A layer's map ``(N, 1, t)`` over the T times of the input: ``(N, T)`` on ids, ``(N, 1, T)`` or ``(N, T, 1)``."""
        if x.ndim == 2:
            return placed.sum(1)
        axis = self._axis(placed, x)
        resampled = interpolate(placed.sum(1, keepdim=True), x.shape[axis], mode="linear")
        return resampled if axis == 2 else resampled.transpose(1, 2)

    def _axis(self, placed: Tensor, x: Tensor) -> int:
        """The dimension of a series that a layer's places run over: the one of that length, else the longer one."""
        same = [axis for axis in (2, 1) if x.shape[axis] == placed.shape[2]]
        return same[0] if same else 2 if x.shape[2] >= x.shape[1] else 1

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """The strongest units of each sample; before them all units, if there are more."""
        values = torch.cat([flat(part).double() for part in found], dim=1)
        units, name = values.shape[1], partial(_name, found)
        if units <= MOST_BARS:
            return (Panel("all units", "bars", values, name=name),)
        strongest = Panel(f"the {MOST_BARS} strongest", "bars", values, name=name)
        return Panel(f"all {units:,} units", "profile", values), strongest


FIRST_CHANNELS = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.InstanceNorm1d,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool1d,
)
"""Layers of series ``(N, C, T)``."""
LAST_CHANNELS = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerEncoder,
    nn.Transformer,
    nn.Embedding,
)
"""Layers of series ``(N, T, C)``, or ``(T, N, C)``."""


ADD_CHANNEL = "batch_fn=lambda b: (b[0][:, None], b[1]), forward_fn=lambda model, x: model(x[:, 0])"
"""What to give where the model adds the dimension of channels, which an input does not have."""


def unlike(x: Tensor, kind: str, shape: str) -> str:
    """The message for an input whose shape is not the one of a kind; it ends with the fix where one dimension is missing."""
    found = f"{kind} needs {shape}, got {tuple(x.shape)}"
    if x.ndim != shape.split(")")[0].count(","):
        return f"{found}."
    return f"{found}; if it has no dimension of channels, because the model adds it, give {ADD_CHANNEL}."


def _fits(reshape: object) -> bool:
    return reshape is None or (isinstance(reshape, str) and reshape != "none")


def _places(value: Tensor, x: Tensor, how: Arrangement) -> int:
    """The dimension of a layer's tensor that runs over the times of the input."""
    if how.reshape is not None:
        return 2 if how.reshape == "channels_first" else 1
    same = [axis for axis in (1, 2) if value.shape[axis] in x.shape[1:]]
    if len(same) == 1 and not (x.ndim == 3 and value.shape[1:].numel() in x.shape[1:]):
        return same[0]
    modules = [] if how.layer is None else list(how.layer.modules())
    declared = [m for m in modules if isinstance(m, (*FIRST_CHANNELS, *LAST_CHANNELS))]
    if declared:
        return 2 if isinstance(declared[0 if how.of_input else -1], FIRST_CHANNELS) else 1
    return 2 if how.layer is None else 1


def _name(found: tuple[Tensor, ...], unit: int) -> str:
    """The name of a unit: ``7``; ``3,0`` in a tensor of several dimensions; ``1: 7`` in the second of two tensors."""
    i = 0
    while unit >= found[i][0].numel():
        unit, i = unit - found[i][0].numel(), i + 1
    shape = tuple(found[i].shape[1:])
    where = ",".join(map(str, np.unravel_index(unit, shape))) if shape else str(unit)
    return f"{i}: {where}" if len(found) > 1 else where
