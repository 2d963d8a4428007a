"""The path of FeaturePermutation: samples with one feature taken from another sample of the probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import CENTER, Point, value_of
from lightning_explain.core.probe import Samples
from lightning_explain.engine.features import FeatureMask, Features, features_of


@dataclass(frozen=True)
class Permutations:
    """The sample, then the sample with one feature at a time taken from another sample of the probe.

    Args:
        feature_mask: Which elements make up a feature, the same for all samples.
        perm_func: The user's permutation, called as in Captum, or ``None`` for keyed draws.
    """

    feature_mask: FeatureMask
    perm_func: Callable[[Tensor, Tensor], Tensor] | None

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """Yields the points; ``change`` is true inside the feature, and absent at the first point."""
        yield Point(samples, CENTER)
        features, name = features_of(self.feature_mask, explained, samples), value_of(self)
        places = samples.places_in(explained.probe.ids)
        for index in range(features.count):
            chosen = tuple(mask == index for mask in features.masks)
            donors = self._donors(explained, features, places, index)
            inputs = tuple(torch.where(c, d, x) for c, d, x in zip(chosen, donors, samples.inputs, strict=True))
            yield Point(samples.at(inputs), (name, index), change=chosen)

    def _donors(
        self, explained: ExplainedFunction, features: Features, places: Tensor, index: int
    ) -> tuple[Tensor, ...]:
        """Returns the permuted inputs, each ``(N, ...)``, from which only the elements of the feature are used."""
        probe = explained.probe
        if self.perm_func is None:
            sources = _permutations(explained, features.count)[places, index]
            return tuple(x[sources.to(x.device)] for x in probe.inputs)
        order = probe.ids.argsort()
        first, back = probe[int(order[0]) : int(order[0]) + 1], order.argsort()[places]
        with explained.draws.seeded("permutation", first, torch.tensor([index])):
            permuted = [
                self.perm_func(x[order.to(x.device)], mask == index)
                for x, mask in zip(probe.inputs, features.masks, strict=True)
            ]
        return tuple(p[back.to(p.device)] for p in permuted)


def _permutations(explained: ExplainedFunction, count: int) -> Tensor:
    """Returns ``(N, count)``: for each sample of the probe and each feature, the sample to take the feature from."""

    def draw() -> Tensor:
        probe, n = explained.probe, len(explained.probe)
        order = probe.ids.argsort()
        keys = explained.draws.uniform("permutation", probe, torch.zeros(n, dtype=torch.long), torch.empty(n, count))
        shuffled = keys[order].argsort(dim=0, stable=True)
        still = torch.arange(n)[:, None]
        shuffled = torch.where((shuffled == still).all(0), still.roll(1, 0), shuffled)
        return order[shuffled][order.argsort()]

    return explained.remembered(("permutations", count), draw)
