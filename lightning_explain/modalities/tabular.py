"""Tables: rows of numbers in; their columns as units out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.core.panels import FeaturesPanel, Panel
from lightning_explain.modalities.plain import Plain


@dataclass(frozen=True)
class Tabular(Plain):
    """A table ``(N, F)``: its units are the columns.

    Args:
        feature_names: A name for each column.

    Raises:
        ValueError: If the input is not ``(N, F)``, or has another number of columns.

    Example:
        >>> from lightning_explain.modalities import Tabular
        >>> Tabular(feature_names=["age", "income"]).units(torch.zeros(4, 2))
        torch.Size([4, 2])
    """

    on_input: ClassVar[bool] = True

    feature_names: Any = None

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """Itself, if the input is a table of as many columns."""
        names: Sequence[str] | None = self.feature_names
        if x.ndim != 2 or (names is not None and len(names) != x.shape[1]):
            has = "" if names is None else f" and has {len(names)} feature_names"
            raise ValueError(f"Tabular needs a table (N, F){has}, got {tuple(x.shape)}.")
        return self

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """A beeswarm of all samples, and bars and a waterfall of each."""
        x = inputs[0].double()
        names = (
            [str(i) for i in range(x.shape[1])] if self.feature_names is None else list(map(str, self.feature_names))
        )
        texts = [[f"{value:.4g}" for value in sample] for sample in x.tolist()]
        levels = (x - x.mean(0)) / x.std(0, correction=0).clamp(min=torch.finfo(x.dtype).tiny)
        values = found[0].reshape(x.shape).double()
        return tuple(
            FeaturesPanel(kind, kind, values, names=names, texts=texts, levels=levels)
            for kind in ("beeswarm", "features", "waterfall")
        )
