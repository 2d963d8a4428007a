"""Data structures of the path engine: points at which a model is evaluated, what is read there, and the results.

A *path* generates the points at which the model is evaluated. A *read* names one thing to be read at each point: a
gradient or an activation. A *reducer* is a generator that receives the evaluation of each point, in order, and returns
the map. Paths and reducers nest with ``yield from``: the path of ``NoiseTunnel(IntegratedGradients())`` is one line of
points per noisy copy of a sample, and its reducer averages the results of the reducer of IntegratedGradients.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Samples
from lightning_explain.core.report import SumCheck
from lightning_explain.core.serialization import bytes_of

PLAIN, GUIDED, DECONVOLUTION = "plain", "guided", "deconvolution"
DEEPLIFT = "deeplift"
"""Prefix of the DeepLIFT rules, ``"deeplift:<eps>"``, which evaluate each sample together with a baseline.

``eps`` is Captum's: differences smaller than it count as zero.
"""
CENTER = ()
"""The key of the point at the unchanged samples."""


class LayerSite(NamedTuple):
    """A place inside the model: the output or the input of one layer.

    Args:
        layer: Dotted name of the layer; ``None`` for the last layer with a feature map.
        of_input: Whether it is the layer's input rather than its output.
    """

    layer: str | None
    of_input: bool = False


Read: TypeAlias = "tuple[str | None, LayerSite | None]"
"""What is read at a point: ``(rule, site)``.

The gradient at the layer site (``None``: at the inputs) under that backward rule; if the rule is ``None``, the
activation there.
"""


@dataclass(frozen=True, eq=False)
class Point:
    """One point of a path: N samples, moved to where the model is to be evaluated.

    Args:
        samples: The N samples at that point.
        key: Identifies the point for the same samples: points with equal keys are equal, so the output computed for one
            is reused for the other. ``CENTER`` for the unchanged samples; ``None`` for a point that is never reused.
        weight: The point's weight in the sum over the path, such as a quadrature weight.
        change: One tensor per input, broadcastable to ``(N, ...)``: the factor of the map (sample minus baseline), or
            for perturbations the elements that were changed.
        against: One baseline tensor per input for samples that are evaluated in pairs (DeepLIFT); empty otherwise.
    """

    samples: Samples
    key: Hashable = None
    weight: float = 1.0
    change: tuple[Tensor, ...] = ()
    against: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of evaluating the model at one point.

    Args:
        point: The point.
        output: The explained output f, ``(N,)``.
        read: Each read to its tensors, with first dimension N.
        checks: For pairs of sample and baseline: each layer site whose multipliers must add up to its check.
    """

    point: Point
    output: Tensor
    read: Mapping[Read, tuple[Tensor, ...]]
    checks: Mapping[LayerSite | None, SumCheck] = field(default_factory=dict)

    def gradient(self, rule: str = PLAIN, site: LayerSite | None = None) -> tuple[Tensor, ...]:
        """The gradient of f at the inputs, or at a layer site: tensors ``(N, ...)`` in float32 or higher."""
        return tuple(widened(g) for g in self.read[rule, site])

    def activation(self, site: LayerSite) -> tuple[Tensor, ...]:
        """The activation at a layer site: tensors ``(N, ...)`` in float32 or higher."""
        return tuple(widened(a) for a in self.read[None, site])


Reducer: TypeAlias = "Generator[None, Evaluation, tuple[Tensor, ...]]"


class Path(Protocol):
    """A sequence of points for given samples; a frozen dataclass, so that methods with equal paths can share them."""

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """The path's points for these samples, generated one at a time."""
        ...


def path_of(method: Method) -> Path | None:
    """The path of a method, or ``None`` if the method has to be run through its own ``attribute``.

    That is so if the method has no ``reduce``, or if a subclass overrides ``attribute`` after ``reduce`` was defined.
    """
    names = [name for cls in type(method).__mro__ for name in ("reduce", "attribute") if name in vars(cls)]
    path: Path | None = method.path if names and names[0] == "reduce" else None
    return path


def widened(value: Tensor) -> Tensor:
    """The tensor in float32 if it is float16 or bfloat16; otherwise unchanged."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def joined_samples(samples: Sequence[Samples]) -> Samples:
    """Several groups of samples concatenated for one forward pass; ``clean`` is replaced by the inputs."""
    if len(samples) == 1:
        return samples[0]
    columns = list(zip(*(r.extra for r in samples), strict=True))
    extra = tuple(torch.cat(c) if isinstance(c[0], Tensor) else c[0] for c in columns)
    inputs = tuple(torch.cat(column) for column in zip(*(r.inputs for r in samples), strict=True))
    return Samples(inputs, inputs, extra, torch.cat([r.ids for r in samples]), torch.cat([r.branches for r in samples]))


def value_of(thing: Any) -> Hashable:
    """A hyperparameter as a hashable value, equal for equal settings.

    Lists become tuples, tensors a digest of their content, dataclasses their fields; functions stay what they are.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        return (type(thing), *(value_of(getattr(thing, part.name)) for part in fields(thing)))
    if isinstance(thing, Tensor):
        return ("tensor", str(thing.dtype), tuple(thing.shape), blake2b(bytes_of(thing), digest_size=16).digest())
    if isinstance(thing, Mapping):
        return ("mapping", *((key, value_of(value)) for key, value in thing.items()))
    if isinstance(thing, (tuple, list)):
        return tuple(value_of(part) for part in thing)
    if isinstance(thing, slice):
        return ("slice", thing.start, thing.stop, thing.step)
    return thing if isinstance(thing, Hashable) else ("object", id(thing))
