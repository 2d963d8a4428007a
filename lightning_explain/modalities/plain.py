"""Inputs and maps of which only the numbers are known, such as tables and units of a layer: each element is a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_explain.core.contracts import Modality
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


def _name(found: tuple[Tensor, ...], unit: int) -> str:
    """The name of a unit: ``7``; ``3,0`` in a tensor of several dimensions; ``1: 7`` in the second of two tensors."""
    i = 0
    while unit >= found[i][0].numel():
        unit, i = unit - found[i][0].numel(), i + 1
    shape = tuple(found[i].shape[1:])
    where = ",".join(map(str, np.unravel_index(unit, shape))) if shape else str(unit)
    return f"{i}: {where}" if len(found) > 1 else where
