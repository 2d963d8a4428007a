"""Rows that take a feature from another row of the probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import Subject
from lightning_explain.core.points import CENTER, Point, value_of
from lightning_explain.core.probe import Rows
from lightning_explain.engine.features import FeatureMask, Features, features_of


@dataclass(frozen=True)
class Permutations:
    """The row, and then the row with one feature after the other taken from another row of the probe.

    Args:
        feature_mask: Which elements make up a feature, the same for all rows.
        perm_func: The user's permutation, or ``None``.
    """

    feature_mask: FeatureMask
    perm_func: Callable[[Tensor, Tensor], Tensor] | None

    def points(self, subject: Subject, rows: Rows) -> Iterator[Point]:
        """``change`` is true inside the feature; only the first point has none."""
        yield Point(rows, CENTER)
        features, name = features_of(self.feature_mask, subject, rows), value_of(self)
        places = rows.places_in(subject.probe.ids)
        for index in range(features.count):
            chosen = tuple(mask == index for mask in features.masks)
            donors = self._donors(subject, features, places, index)
            inputs = tuple(torch.where(c, d, x) for c, d, x in zip(chosen, donors, rows.inputs, strict=True))
            yield Point(rows.at(inputs), (name, index), change=chosen)

    def _donors(self, subject: Subject, features: Features, places: Tensor, index: int) -> tuple[Tensor, ...]:
        """For each row what its elements become, each ``(N, ...)``; only those of its feature count."""
        if self.perm_func is None:
            sources = _permutations(subject, features.count)[places, index]
            return tuple(x[sources.to(x.device)] for x in subject.probe.inputs)
        permuted = self._by_user(self.perm_func, subject, features, index)
        return tuple(x[places.to(x.device)] for x in permuted)

    def _by_user(
        self, function: Callable[[Tensor, Tensor], Tensor], subject: Subject, features: Features, index: int
    ) -> tuple[Tensor, ...]:
        order = subject.probe.ids.argsort()
        first = subject.probe[int(order[0]) : int(order[0]) + 1]
        with subject.draws.seeded("permutation", first, torch.tensor([index])):
            permuted = [
                function(x[order.to(x.device)], mask == index)
                for x, mask in zip(subject.probe.inputs, features.masks, strict=True)
            ]
        return tuple(p[order.argsort().to(p.device)] for p in permuted)


def _permutations(subject: Subject, count: int) -> Tensor:
    """``(N, count)``: for each row of the probe the row whose feature it takes."""

    def draw() -> Tensor:
        probe, n = subject.probe, len(subject.probe)
        order = probe.ids.argsort()
        keys = subject.draws.uniform("permutation", probe, torch.zeros(n, dtype=torch.long), torch.empty(n, count))
        shuffled = keys[order].argsort(dim=0, stable=True)
        still = torch.arange(n)[:, None]
        shuffled = torch.where((shuffled == still).all(0), still.roll(1, 0), shuffled)
        return order[shuffled][order.argsort()]

    return subject.remembered(("permutations", count), draw)
