"""Maps and functions that are known beforehand, to test metrics on, and the doctor's verdicts on methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import Method, Reference
from lightning_explain.core.probe import Probe, Samples
from lightning_explain.core.verdict import Verdict
from lightning_explain.explainer.explainer import Explainer


class Linear(nn.Module):
    """``f(x) = w . x + 2``, over everything in the inputs."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [(x * w).flatten(1).sum(1) for x, w in zip(inputs, self.weights, strict=True)]
        return torch.stack(parts).sum(0) + 2


class Given(Method):
    """A map that does not look at the model: the same for every sample, or one for each sample id."""

    def __init__(self, *values: Tensor, by_sample: bool = False, reference: Reference | None = None) -> None:
        self.values, self.by_sample, self._promised = values, by_sample, reference

    @property
    def completeness(self) -> Reference | None:
        return self._promised

    def attribute(self, explained: object, samples: Samples) -> Tensor | tuple[Tensor, ...]:
        found = tuple(v[samples.ids] if self.by_sample else v.expand(len(samples), *v.shape) for v in self.values)
        return found if len(found) > 1 else found[0]


def doctor(
    model: nn.Module, methods: Mapping[str, Method], probe: Probe, limit: int = 32, **options: Any
) -> list[Verdict]:
    """The verdicts on methods, in their order."""
    return Explainer(methods, {}, limit=limit, **options).verdicts(model, probe)
