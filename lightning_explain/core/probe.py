"""What is explained: samples, and the forms in which tensors come and go.

Shapes are written with N samples, C classes or channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

Attribution: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""What Captum's ``attribute`` returns: a tensor, or a tuple of tensors for several inputs."""

Baseline: TypeAlias = "None | float | str | Tensor | Sequence[Any]"
"""A baseline as the user writes it: ``None`` (zero), a number, a tensor, a name, or a sequence of them.

A tensor broadcasts to one sample, or has a sample for each sample of the probe.
"""


def as_tuple(value: Attribution) -> tuple[Tensor, ...]:
    """A tensor as a tuple of one; a tuple as it is."""
    return value if isinstance(value, tuple) else (value,)


def bare(values: tuple[Tensor, ...]) -> Attribution:
    """A tuple of one as the tensor itself, as Captum takes and returns it."""
    return values if len(values) > 1 else values[0]


@dataclass(frozen=True, eq=False)
class Probe:
    """The fixed samples that are explained every time.

    Args:
        inputs: One tensor ``(N, ...)`` or a tuple of them, as the model's ``forward`` takes them.
        targets: Labels ``(N, ...)``, or ``None`` where there are none.
        ids: ``(N,)`` integers that name the samples (dataset indices); random draws are keyed by them. Default ``0..N-1``.
        masks: ``(N, H, W)`` boolean regions for localisation scores such as ``RelevanceMass``.
        class_names: A name for each class index, used in titles.
        forward_args: Further arguments of ``forward`` that are not explained; tensors with first dimension N are split by
            samples, all others are the same for every sample. One that has N entries by chance and is the same for all goes into
            ``forward_fn``.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If there are no samples, first dimensions differ, or ids are no whole numbers.
    """

    inputs: Attribution
    targets: Tensor | None = None
    ids: Tensor | None = None
    masks: Tensor | None = None
    class_names: Sequence[str] | None = None
    forward_args: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(x, Tensor) and x.ndim > 0 for x in as_tuple(self.inputs)) or not as_tuple(self.inputs):
            raise TypeError(
                f"Probe(inputs=...) takes a tensor of shape (N, ...) or a tuple of them, got {_kind(self.inputs)}."
            )
        if len(self) == 0:
            raise ValueError("Probe(inputs=...) has no samples; give at least one.")
        if self.ids is None:
            object.__setattr__(self, "ids", torch.arange(len(self)))
        for name, value in self._columns():
            if not isinstance(value, Tensor):
                raise TypeError(f"Probe({name}=...) takes a tensor, got {_kind(value)}.")
            if value.layout != torch.strided:
                kind = str(value.layout).removeprefix("torch.")
                raise TypeError(
                    f"Probe({name}=...) is a tensor of the layout {kind}; give it as a dense one: to_dense()."
                )
            if value.ndim == 0 or len(value) != len(self):
                raise ValueError(
                    f"Probe({name}=...) has shape {tuple(value.shape)}, but inputs have {len(self)} samples; "
                    f"its first dimension must be {len(self)}."
                )

        if self.sample_ids.ndim != 1 or self.sample_ids.is_floating_point() or self.sample_ids.is_complex():
            raise ValueError(
                f"Probe(ids=...) is {self.sample_ids.dtype} {tuple(self.sample_ids.shape)}; it must be ({len(self)},) whole numbers."
            )
        if not isinstance(self.forward_args, (tuple, list)):
            raise TypeError(f"Probe(forward_args=...) takes a tuple, got {_kind(self.forward_args)}.")
        names = self.class_names
        if names is not None and (isinstance(names, (str, bytes)) or not isinstance(names, Sequence)):
            raise TypeError(f"Probe(class_names=...) takes a list of names, got {_kind(names)}.")

    def _columns(self) -> Iterator[tuple[str, Any]]:
        yield from ((f"inputs[{i}]", x) for i, x in enumerate(as_tuple(self.inputs)))
        yield from ((k, getattr(self, k)) for k in ("targets", "ids", "masks") if getattr(self, k) is not None)

    def __len__(self) -> int:
        return len(as_tuple(self.inputs)[0])

    @property
    def sample_ids(self) -> Tensor:
        """``(N,)`` integers; never ``None``."""
        assert self.ids is not None
        return self.ids


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {[type(v).__name__ for v in value]}"
    return type(value).__name__


@dataclass(frozen=True, eq=False)
class Shared:
    """A forward argument that is the same for all samples, whatever its shape; only the call of the model looks inside.

    Args:
        value: The argument.
    """

    value: Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """Some samples on their way through the model, on the model's device.

    Args:
        inputs: The point at which the model is evaluated, each ``(N, ...)``.
        clean: The unperturbed probe samples these points come from, each ``(N, ...)``; baselines refer to them.
        extra: What follows the inputs in the call: forward arguments and the sample's target. Tensors have first dimension N, others
            are :class:`Shared`.
        ids: ``(N,)`` sample ids, on the CPU.
        branches: ``(N,)`` which nested random sample the sample is in, on the CPU; 0 outside of any.
    """

    inputs: tuple[Tensor, ...]
    clean: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    ids: Tensor
    branches: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def _map(self, f: Callable[[Tensor], Tensor]) -> Samples:
        return Samples(
            inputs=tuple(f(x) for x in self.inputs),
            clean=tuple(f(x) for x in self.clean),
            extra=tuple(f(x) if isinstance(x, Tensor) else x for x in self.extra),
            ids=f(self.ids),
            branches=f(self.branches),
        )

    def split(self, size: int) -> Iterator[Samples]:
        """The samples in order, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, index: slice | Tensor) -> Samples:
        return self._map(lambda x: x[index])

    def repeat(self, times: int) -> Samples:
        """Each row ``times`` times in a row: ``a a b b``."""
        return self._map(lambda x: x.repeat_interleave(times, dim=0))

    def at(self, inputs: tuple[Tensor, ...]) -> Samples:
        """The same samples evaluated at other points."""
        return replace(self, inputs=inputs)

    def own(self, value: Tensor, like: Tensor, ids: Tensor) -> Tensor | None:
        """Of a tensor with a sample for each sample of the probe those of these samples; itself if it is the same for all.

        Args:
            value: Without samples, with one sample, or with a sample for each sample of the probe.
            like: What it is for, ``(N, ...)``.
            ids: The ids ``(K,)`` of the probe, in its order.

        Returns:
            ``None`` if it has another number of samples.
        """
        if value.ndim != like.ndim or len(value) == 1:
            return value
        return value[self.places_in(ids).to(value.device)] if len(value) == len(ids) else None

    def places_in(self, ids: Tensor) -> Tensor:
        """``(N,)``: where each sample stands among the ids ``(K,)`` of the probe.

        Raises:
            ValueError: If two samples of the probe have one id.
        """
        places = {sample: i for i, sample in enumerate(ids.tolist())}
        if len(places) < len(ids):
            raise ValueError(
                "Samples that are told apart by their ids need distinct ones; give Probe(ids=...) without repeats."
            )
        return torch.tensor([places[sample] for sample in self.ids.tolist()])

    def draw(self, indices: Tensor) -> Samples:
        """The same samples inside random sample ``indices`` ``(N,)``, so that draws nested in it differ from sample to sample."""
        return replace(self, branches=self.branches * 1_000_003 + indices + 1)
