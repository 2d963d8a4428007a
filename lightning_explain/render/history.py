"""Maps as pages show them in; the few that a picture over epochs needs, small enough for a checkpoint, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The maps of one explanation, as a page shows them.

    Args:
        epoch: Its epoch.
        step: Its optimizer step.
        weights: By method: int8 ``(N, h, w)``, the map over its scale, times 127.
        largest: By method: ``(N,)``, the largest absolute value of each map; NaN if the map is not finite.
        scores: By method: ``(N,)``, NaN where there is none.
    """

    epoch: int | None = None
    step: int | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    largest: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def when(self) -> str:
        """The epoch in words, or else the step."""
        known = [("epoch", self.epoch), ("step", self.step)]
        return next((f"{name} {value}" for name, value in known if value is not None), "")


@dataclass(frozen=True, eq=False)
class PictureHistory:
    """The first, one between and the previous explanation of the same samples.

    Three maps per method and sample, one byte for each pixel of a panel (about 85 x 85): 350 kB for 16 samples of one method.

    Args:
        kept: Up to three explanations, the oldest first.
        count: How many there have been.
        fingerprint: SHA-256 of the probe; samples of another probe have no history.
    """

    kept: tuple[Snapshot, ...] = ()
    count: int = 0
    fingerprint: str = ""

    def followed_by(self, snapshot: Snapshot, fingerprint: str) -> PictureHistory:
        """The history with one more explanation; the one between is the latest whose number is a power of two."""
        if fingerprint != self.fingerprint or not self.count:
            return PictureHistory((snapshot,), 1, fingerprint)
        kept, previous = list(self.kept), self.count - 1
        if previous and previous & (previous - 1):
            # The former previous one makes room, unless its number, counted from 0, is a power of two.
            kept.pop()
        elif len(kept) == 3:
            kept.pop(1)
        return PictureHistory((*kept, snapshot), self.count + 1, fingerprint)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; it loads with ``weights_only=True``."""
        kept = [
            {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(s).items()}
            for s in self.kept
        ]
        return {"kept": kept, "count": self.count, "fingerprint": self.fingerprint}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> PictureHistory:
        """The reverse of :meth:`state`.

        Raises:
            ValueError: If the maps do not belong together.
        """
        kept = tuple(Snapshot(**found) for found in state["kept"])
        for snapshot in kept:
            for name, weights in snapshot.weights.items():
                parts = [snapshot.largest[name], snapshot.scores[name]]
                if (
                    weights.dtype != torch.int8
                    or weights.ndim != 3
                    or any(part.shape != weights.shape[:1] for part in parts)
                ):
                    raise ValueError(f"the maps of {name!r} do not belong together")
        return cls(kept, state["count"], state["fingerprint"])
