"""Embeddings whose ids cannot be perturbed: an explained function with a shift of what they return as further inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import LayerSite, Point
from lightning_explain.core.probe import Baseline, Samples
from lightning_explain.engine.evaluate import forward_backward
from lightning_explain.modalities import Plain


class _Shifted(nn.Module):
    """A function of ``count`` inputs, the shift of each layer's output, and what follows the inputs in the call."""

    def __init__(self, forward: nn.Module, layers: Sequence[nn.Module], count: int) -> None:
        super().__init__()
        self.inner, self._count = forward, count
        # In a tuple, so that the layers are not registered a second time.
        self._layers = tuple(layers)

    def forward(self, *values: Any) -> Any:
        first = self._count + len(self._layers)
        with ExitStack() as stack:
            for layer, shift in zip(self._layers, values[self._count : first], strict=True):
                # Before all other hooks, so that methods see the shifted output.
                stack.enter_context(layer.register_forward_hook(partial(_moved, shift), prepend=True))
            return self.inner(*values[: self._count], *values[first:])


def _moved(shift: Tensor, layer: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output + shift.to(output.dtype)


def shifted(
    explained: ExplainedFunction, samples: Samples, shifts: Mapping[str, Tensor]
) -> tuple[ExplainedFunction, Samples]:
    """The function with the shifts of some layers as its last inputs, which are 0 at every baseline, and the samples there.

    Args:
        explained: The explained function.
        samples: N samples.
        shifts: What is added to the output of each layer, ``(N, ...)``.
    """
    if not shifts:
        return explained, samples
    count, layers = len(samples.inputs), [explained.layer(name) for name in shifts]
    still = tuple(torch.zeros_like(shift) for shift in shifts.values())

    def without(points: Samples) -> Samples:
        return replace(points, inputs=points.inputs[:count], clean=points.clean[:count])

    def baseline(spec: Baseline, points: Samples) -> tuple[Tensor, ...]:
        return (*explained.baseline(spec, without(points)), *map(torch.zeros_like, points.inputs[count:]))

    def distribution(spec: Baseline, points: Samples) -> tuple[Tensor, ...]:
        found = explained.distribution(spec, without(points))
        return (*found, *(x.new_zeros(len(found[0]), *x.shape[1:]) for x in points.inputs[count:]))

    moved = replace(
        explained,
        forward=_Shifted(explained.forward, layers, count),
        baseline=baseline,
        distribution=distribution,
        modalities=(*explained.modalities, *(Plain() for _ in layers)),
        stds=(*explained.stds, *(x.new_zeros(1, *x.shape[1:]) for x in still)) if explained.stds else (),
    )
    return moved, replace(samples, inputs=(*samples.inputs, *shifts.values()), clean=(*samples.clean, *still))


def spread(explained: ExplainedFunction, name: str) -> tuple[torch.Size, Tensor]:
    """The shape of one sample of what an embedding returns, and its standard deviation over the tokens of the probe that are there."""

    def measured() -> tuple[torch.Size, Tensor]:
        site, found, there = LayerSite(name), list[Tensor](), list[Tensor]()
        for part in explained.probe.split(explained.limit):
            (evaluation,) = forward_backward(explained, [Point(part)], frozenset({(None, site)}))
            found += evaluation.activation(site)
            there.append(present(explained, part, name, found[-1].shape[1:]))
        vectors = torch.cat(found)
        return vectors.shape[1:], vectors[torch.cat(there).expand(vectors.shape)].std(correction=0)

    return explained.remembered(("spread", name), measured)


def present(explained: ExplainedFunction, samples: Samples, name: str, shape: torch.Size) -> Tensor:
    """Which vectors ``(N, ..., 1)`` of an embedding stand for units that are there, and not for padding.

    Args:
        explained: The explained function.
        samples: N samples.
        name: The embedding.
        shape: The shape of one sample of what it returns.
    """
    lookup = explained.lookups[name]
    x = samples.clean[lookup.input]
    there = explained.modalities[lookup.input].present(x)
    there = torch.ones_like(x, dtype=torch.bool) if there is None else there
    return there.reshape(len(x), -1)[:, list(lookup.elements or ())].reshape(len(x), *shape[:-1], 1)
