"""The words in which a method says what it needs of the model: a path, what is read on it, and how that adds up.

A *path* is the points at which the model is evaluated, a generator. A *want* is what is read at each of them. A *reducer*
is a generator that is sent the evaluation of each point in order and returns the map. Paths and reducers nest by ``yield from``:
NoiseTunnel of IntegratedGradients is a cloud of lines, and a reducer around a reducer.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Samples

PLAIN, GUIDED, DECONVOLUTION = "plain", "guided", "deconvolution"
DEEPLIFT = "deeplift"
"""Followed by a colon and what counts as no difference: samples that go in pairs."""
CENTER = ()
"""The key of the samples themselves."""


class LayerSite(NamedTuple):
    """A place inside the model.

    Args:
        layer: Dotted name of a layer.
        of_input: What goes into it instead of what comes out.
    """

    layer: str | None
    of_input: bool = False


Read: TypeAlias = "tuple[str | None, LayerSite | None]"
"""(rule, layer site): the gradient by that rule at that layer site, ``None`` for the inputs; without a rule the activation there."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where some samples are evaluated.

    Args:
        samples: N samples at that point.
        key: Names the point among those of the same samples: equal keys are equal points, whose output is known once it was
            found. ``CENTER`` for the samples themselves; ``None``: it is like no other.
        weight: Its share in the sum over the path.
        change: For each input what the map is to be multiplied by, or which elements were changed; broadcasts to ``(N, ...)``.
        against: What the samples are compared with, for samples that go in pairs.
    """

    samples: Samples
    key: Hashable = None
    weight: float = 1.0
    change: tuple[Tensor, ...] = ()
    against: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What the model said at a point.

    Args:
        point: The point.
        output: The explained output, ``(N,)``.
        read: What was read there; tensors have first dimension N.
    """

    point: Point
    output: Tensor
    read: Mapping[Read, tuple[Tensor, ...]]

    def gradient(self, rule: str = PLAIN, site: LayerSite | None = None) -> tuple[Tensor, ...]:
        """The gradient at the inputs or at a layer site, each ``(N, ...)``, in float32 or higher."""
        return tuple(widened(g) for g in self.read[rule, site])

    def activation(self, site: LayerSite) -> tuple[Tensor, ...]:
        """What the layer said, each ``(N, ...)``, in float32 or higher."""
        return tuple(widened(a) for a in self.read[None, site])


Reducer: TypeAlias = "Generator[None, Evaluation, tuple[Tensor, ...]]"


class Path(Protocol):
    """Points in order; a frozen dataclass, so that equal paths can be found."""

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        """The points of the samples, made one at a time."""
        ...


class OnPathMethod(Protocol):
    """A method that is a path, wants and a reducer."""

    @property
    def path(self) -> Path | None:
        """Where the model is evaluated; ``None`` if it cannot be said (a NoiseTunnel around a method without path)."""
        ...

    @property
    def reads(self) -> frozenset[Read]:
        """What is read there; nothing where the output is enough."""
        ...

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """The map of the samples from the evaluations of the path, one for each point."""
        ...


def path_of(method: Any) -> Path | None:
    """The path of a method whose reducer says what it computes.

    A subclass that has its own ``attribute`` is taken at its word, as is a method without a reducer: ``None``.
    """
    names = [name for cls in type(method).__mro__ for name in ("reduce", "attribute") if name in vars(cls)]
    path: Path | None = method.path if names and names[0] == "reduce" else None
    return path


def widened(value: Tensor) -> Tensor:
    """In float32 where it is less."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def joined_samples(samples: Sequence[Samples]) -> Samples:
    """Equally many samples each, one after the other, on their way into the model: where they come from is left behind."""
    if len(samples) == 1:
        return samples[0]
    columns = list(zip(*(r.extra for r in samples), strict=True))
    extra = tuple(torch.cat(c) if isinstance(c[0], Tensor) else c[0] for c in columns)
    inputs = tuple(torch.cat(column) for column in zip(*(r.inputs for r in samples), strict=True))
    return Samples(inputs, inputs, extra, torch.cat([r.ids for r in samples]), torch.cat([r.branches for r in samples]))


def value_of(thing: Any) -> Hashable:
    """What a hyperparameter is worth: lists are tuples, tensors their content, dataclasses their fields, functions themselves."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return (type(thing), *(value_of(getattr(thing, field.name)) for field in fields(thing)))
    if isinstance(thing, Tensor):
        content = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return ("tensor", str(thing.dtype), tuple(thing.shape), blake2b(content, digest_size=16).digest())
    if isinstance(thing, Mapping):
        return ("mapping", *((key, value_of(value)) for key, value in thing.items()))
    if isinstance(thing, (tuple, list)):
        return tuple(value_of(part) for part in thing)
    if isinstance(thing, slice):
        return ("slice", thing.start, thing.stop, thing.step)
    return thing if isinstance(thing, Hashable) else ("object", id(thing))
