"""Localisation: does the map lie where the mask says it should?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.types import Case, Score


def relevance_mass(found: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive part of a map that lies inside the mask (Arras et al. 2022, relevance mass accuracy).

    Args:
        found: ``(N, C, H, W)``; channels are summed first.
        masks: ``(N, H, W)`` boolean.

    Returns:
        ``(N,)`` in 0..1; NaN where the map has no positive part.
    """
    positive = found.sum(1).clamp(min=0).flatten(1)
    return (positive * masks.flatten(1)).sum(1) / positive.sum(1)


@dataclass(frozen=True)
class RelevanceMass:
    """Share of the positive map inside the probe's masks (Arras et al. 2022; Quantus' RelevanceMassAccuracy).

    Needs ``Probe(masks=...)``. Costs no pass. Whether high is good depends on what the mask marks: an object or a shortcut.
    """

    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)
    needs_masks: ClassVar[bool] = True

    def score(self, case: Case) -> Mapping[str, Mapping[str, Score]]:
        """In 0..1; rows without a positive part give NaN.

        Raises:
            ValueError: If the probe has no masks.
        """
        if case.masks is None:
            raise ValueError("RelevanceMass needs Probe(masks=...), a boolean region (N, H, W).")
        masks = case.masks.to(case.outputs.device)
        return {"": {name: (_placed(found, masks), None) for name, found in case.maps.items()}}


def _placed(found: tuple[Tensor, ...], masks: Tensor) -> Tensor:
    images = [m for m in found if m.ndim == 4 and m.shape[2:] == masks.shape[1:]]
    if not images:
        return torch.full((len(masks),), torch.nan, device=masks.device)
    return relevance_mass(images[0], masks)
