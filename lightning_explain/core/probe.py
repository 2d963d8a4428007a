"""The samples to be explained: ``Probe``, as the user gives them, and ``Samples``, on their way through the model.

In shapes, N is the number of samples, C of classes or channels, and H x W are pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.call import EACH, SIZES, Place, by_position, divided, leaves
from lightning_explain.core.detections import are_boxes, are_images, inside, largest, padded_boxes, padded_images
from lightning_explain.core.naming import unlike

if TYPE_CHECKING:
    Attribution: TypeAlias = Tensor | tuple[Tensor, ...]
else:
    Attribution = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.
"""What Captum's ``attribute`` returns: one tensor, or a tuple of tensors for several inputs."""

if TYPE_CHECKING:
    Inputs: TypeAlias = Attribution | Any
else:
    Inputs = Any
"""Inputs as the user gives them: a tensor, a tuple of tensors, or a mapping of parameter names to tensors."""

if TYPE_CHECKING:
    Labels: TypeAlias = Tensor | None | Any
else:
    Labels = Any
"""Labels as the user gives them: a tensor, a mapping of the names of outputs to tensors, or the boxes of each image. In a ``Probe`` it is a
tensor or ``None``."""

if TYPE_CHECKING:
    Baseline: TypeAlias = None | float | str | Tensor | Sequence[Any] | Callable[..., Any]
else:
    Baseline = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.
"""A baseline as the user writes it: ``None`` (zero), a number, a tensor, a name, or a sequence of them, one per input.

A tensor either broadcasts to one sample or has one entry for each sample of the probe. Methods that take a set of baselines
also take a function that returns one, called without arguments or with the inputs of the probe.
"""


def as_tuple(value: Attribution) -> tuple[Tensor, ...]:
    """A tensor as a tuple of one tensor; a tuple unchanged."""
    return value if isinstance(value, tuple) else (value,)


def bare(values: tuple[Tensor, ...]) -> Attribution:
    """A tuple of one tensor as that tensor, the form that Captum takes and returns; a longer tuple unchanged."""
    return values if len(values) > 1 else values[0]


def flat(value: Tensor) -> Tensor:
    """A tensor ``(N, ...)`` as ``(N, K)``; samples that are one number, ``(N,)``, as ``(N, 1)``."""
    return value.flatten(1) if value.ndim > 1 else value[:, None]


def all_finite(*parts: Tensor) -> Tensor:
    """Whether all numbers of a sample are finite, ``(N,)``, in tensors ``(N, ...)``."""
    return torch.stack([flat(torch.isfinite(part)).all(1) for part in parts]).all(0)


@dataclass(frozen=True, eq=False)
class Probe:
    """Holds N fixed samples, with labels if there are any; every explanation explains exactly these.

    Args:
        inputs: The model's inputs: one tensor ``(N, ...)`` or a tuple of them, in the order of the model's ``forward``. Or
            everything that the model is called with, as a mapping of parameter names to values: its floating-point tensors are
            explained (the first tensor, if there are none), all others become ``forward_args``. Or a list of N images ``(C, H, W)``,
            which the model gets as such a list: they are kept as one tensor, padded with zeros where their sizes differ.
        targets: Labels ``(N, ...)``, or ``None`` if there are none. Of a model with several outputs, a mapping of their names to labels,
            which becomes ``labels``. Of object detection a list of N mappings with ``boxes`` ``(M, 4)``, ``(x1, y1, x2, y2)`` in pixels,
            and ``labels`` ``(M,)``: they are kept as one tensor ``(N, M, 5)``, and the largest box of each image becomes its mask,
            unless there are ``masks``.
        ids: ``(N,)`` integers that name the samples, such as dataset indices; random draws are keyed by them. Default
            ``0..N-1``.
        masks: Boolean regions of the first input that they fit, for localisation metrics such as ``RelevanceMass``: ``(N, H, W)`` of
            images, ``(N, T)`` of texts, ``(N, F)`` of tables, ``(N, C, T)`` or ``(N, T)`` of series.
        class_names: One name per class index, used in the titles of pictures.
        forward_args: Further arguments of ``forward``, which are passed on but not explained. Tensors with first
            dimension N are split by sample; everything else is the same for all samples. If a tensor has first
            dimension N by coincidence and is the same for all samples, pass it to the model in ``forward_fn`` instead.
        stds: The standard deviation of each number of each input over many samples, one tensor ``(1, ...)`` per input: the
            unit of noise that is given as ``"std"``. A monitor takes them from up to 1,024 samples. Default: those of the
            probe's own samples, if there are at least 16.
        parameters: Where each of the inputs, and then each of the ``forward_args``, goes in the call of the model: ``(0,)`` is
            the first positional argument, ``("mask",)`` the argument ``mask``, ``("batch", "mask")`` an entry of the mapping
            ``batch``. Default: in their order. Set if inputs are a mapping.
        meta: Text about the samples that the model does not see, such as file names: a list of N strings for each name. It
            is kept in reports.
        modalities: What the inputs are: a modality, one for each input, or a mapping of their names or positions to modalities.
            Default: guessed from the inputs, and from what the model does with them.
        entries: ``(N, 2)`` whole numbers, where each sample is there once for each of its labels or steps: the id of the sample, and the
            label or step that is explained, -1 for the largest output. Filled in by what explains several of a sample.
        labels: Labels ``(N, ...)`` of several outputs, by the name of the output or target. Filled in where ``targets`` is a mapping.
        views: Whether inputs are the first of several views of each sample, as in contrastive learning. Filled in by what reads a batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there are no samples, first dimensions differ, or ids are not whole numbers.

    Example:
        >>> import torch
        >>> from lightning_explain import Probe
        >>> probe = Probe(torch.zeros(2, 3, 8, 8), targets=torch.tensor([1, 0]), class_names=["cat", "dog"])
        >>> len(probe), probe.sample_ids.tolist()
        (2, [0, 1])
        >>> text = Probe({"input_ids": torch.ones(2, 5, dtype=torch.long), "attention_mask": torch.ones(2, 5, dtype=torch.long)})
        >>> text.inputs.shape, text.parameters
        (torch.Size([2, 5]), (('input_ids',), ('attention_mask',)))
    """

    inputs: Inputs
    targets: Labels = None
    ids: Tensor | None = None
    masks: Tensor | None = None
    class_names: Sequence[str] | None = None
    forward_args: tuple[Any, ...] = ()
    stds: tuple[Tensor, ...] = ()
    parameters: tuple[Place, ...] = ()
    meta: Mapping[str, Sequence[str]] = field(default_factory=dict)
    modalities: Any = None
    entries: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    views: bool = False

    def __post_init__(self) -> None:
        self._convert()
        if not all(isinstance(x, Tensor) and x.ndim > 0 for x in as_tuple(self.inputs)) or not as_tuple(self.inputs):
            raise TypeError(f"Probe(inputs=...) got {kind(self.inputs)}; give a tensor (N, ...) or a tuple of them.")
        if len(self) == 0:
            raise ValueError("Probe(inputs=...) has no samples; give at least one.")
        for x in as_tuple(self.inputs):
            if x.is_complex():
                fix = "give real ones, such as torch.view_as_real(x), and convert them in the model or in forward_fn"
                raise TypeError(f"Probe(inputs=...) has complex numbers ({x.dtype}); {fix}.")
        if self.ids is None:
            object.__setattr__(self, "ids", torch.arange(len(self)))
        named: dict[str, Any] = {f"inputs[{i}]": x for i, x in enumerate(as_tuple(self.inputs))}
        named |= {k: getattr(self, k) for k in ("targets", "ids", "masks", "entries") if getattr(self, k) is not None}
        named |= {f"targets={{{name!r}: ...}}": value for name, value in self.labels.items()}
        for name, value in named.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"Probe({name}=...) got {kind(value)}; give a tensor.")
            if value.layout != torch.strided:
                layout = str(value.layout).removeprefix("torch.")
                raise TypeError(
                    f"Probe({name}=...) has the layout {layout}; give a dense tensor, made with to_dense()."
                )
            if value.ndim == 0 or len(value) != len(self):
                raise ValueError(
                    f"Probe({name}=...) has shape {tuple(value.shape)}, but inputs have {len(self)} samples; "
                    f"give a tensor whose first dimension is {len(self)}."
                )
        if self.sample_ids.ndim != 1 or self.sample_ids.is_floating_point() or self.sample_ids.is_complex():
            raise ValueError(
                f"Probe(ids=...) is {self.sample_ids.dtype} {tuple(self.sample_ids.shape)}; give ({len(self)},) whole numbers."
            )
        self._check_call()
        names = self.class_names
        if names is not None and (isinstance(names, (str, bytes)) or not isinstance(names, Sequence)):
            raise TypeError(f"Probe(class_names=...) got {kind(names)}; give a list of names.")
        self._check_stds()

    def _convert(self) -> None:
        """Turns mappings and lists into tensors, and notes where they go in the call."""
        if isinstance(self.inputs, Mapping):
            self._divide(self.inputs)
        if isinstance(self.targets, Mapping):
            object.__setattr__(self, "labels", {str(name): value for name, value in self.targets.items()})
            object.__setattr__(self, "targets", None)
        if are_images(self.inputs):
            self._list(self.inputs)
        if are_boxes(self.targets):
            self._box(self.targets)

    def _check_stds(self) -> None:
        object.__setattr__(self, "stds", as_tuple(self.stds))
        shapes = [tuple(x.shape[1:]) for x in as_tuple(self.inputs)]
        if self.stds and [tuple(s.shape[1:]) for s in self.stds if isinstance(s, Tensor) and len(s) == 1] != shapes:
            allowed = ", ".join(str((1, *shape)) for shape in shapes)
            raise ValueError(
                f"Probe(stds=...) got {kind(self.stds)}; give one tensor for each input, of shape {allowed}."
            )

    def _divide(self, given: Mapping[str, Any]) -> None:
        """Divides a mapping into what is explained and what is not."""
        if self.forward_args or self.parameters:
            raise TypeError(
                "Probe(inputs={...}, forward_args=...): give all arguments of the model in the one mapping."
            )
        inputs, forward_args, parameters = divided(dict(leaves(given)))
        if inputs:
            object.__setattr__(self, "inputs", bare(inputs))
            object.__setattr__(self, "forward_args", forward_args)
            object.__setattr__(self, "parameters", parameters)

    def _list(self, images: Any) -> None:
        """Pads a list of images, and notes that the model takes such a list."""
        padded, sizes = padded_images(images)
        places: tuple[Place, ...] = ((0, EACH), *(((0, SIZES),) if sizes is not None else ()))
        if self.forward_args or self.parameters:
            raise TypeError("Probe(inputs=[image, ...], forward_args=...): give the images alone.")
        object.__setattr__(self, "inputs", padded)
        object.__setattr__(self, "forward_args", () if sizes is None else (sizes,))
        object.__setattr__(self, "parameters", places)

    def _box(self, targets: Any) -> None:
        """Pads lists of boxes, and takes the largest of each image as its mask."""
        boxes, x = padded_boxes(targets), as_tuple(self.inputs)[0]
        object.__setattr__(self, "targets", boxes)
        if self.masks is None and isinstance(x, Tensor) and x.ndim == 4:
            object.__setattr__(self, "masks", inside(largest(boxes), x.shape[2], x.shape[3]))

    def _check_call(self) -> None:
        if not isinstance(self.forward_args, (tuple, list)):
            raise TypeError(f"Probe(forward_args=...) got {kind(self.forward_args)}; give a tuple.")
        count = len(self.arguments)
        if self.parameters and len(self.parameters) != count:
            raise ValueError(
                f"Probe(parameters=...) has {len(self.parameters)} places for {count} inputs and forward_args; give one for each."
            )
        for name, texts in self.meta.items():
            if len(texts) != len(self):
                raise ValueError(
                    f"Probe(meta=...) has {len(texts)} texts under {name!r} for {len(self)} samples; give one for each."
                )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the model is called with: the inputs, and then the ``forward_args``."""
        return (*as_tuple(self.inputs), *self.forward_args)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where each of the ``arguments`` goes in the call of the model."""
        return self.parameters or by_position(len(self.arguments))

    @property
    def names(self) -> list[str]:
        """What each of the inputs is called: as the argument or the entry of the batch; ``input 0`` and so on by position."""
        last = [place[-1] for place in self.places[: len(as_tuple(self.inputs))]]
        return unlike(name if isinstance(name, str) else f"input {name}" for name in last)

    def __len__(self) -> int:
        return len(as_tuple(self.inputs)[0])

    @property
    def sample_ids(self) -> Tensor:
        """The ids of the samples, ``(N,)`` integers; never ``None``."""
        assert self.ids is not None
        return self.ids

    @property
    def row_ids(self) -> Tensor:
        """Alias of version 0.1 for :attr:`sample_ids`."""
        return self.sample_ids


def kind(value: object) -> str:
    """What a value is, for an error message: its type, and the types or keys in it."""
    if isinstance(value, Mapping):
        return f"mapping with the keys {list(value)}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {[type(v).__name__ for v in value]}"
    return type(value).__name__


@dataclass(frozen=True, eq=False)
class Shared:
    """Wraps a forward argument that is the same for all samples, so that it is not split by sample.

    Args:
        value: The tensor, of any shape; it is unwrapped only when the model is called.
    """

    value: Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples at one point of evaluation, on the model's device, with all that a call of the model needs.

    Args:
        inputs: The inputs at which the model is evaluated, one tensor ``(N, ...)`` per input.
        clean: The unperturbed probe samples that they come from, in the same form; baselines refer to these.
        extra: What follows the inputs in the call: forward arguments and targets. Tensors have first dimension N;
            tensors that are the same for all samples are :class:`Shared`.
        ids: Sample ids, ``(N,)``, on the CPU.
        branches: ``(N,)`` on the CPU: in which nested random draw each sample is, so that draws inside draws differ; 0
            outside of any draw.
    """

    inputs: tuple[Tensor, ...]
    clean: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    ids: Tensor
    branches: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def _map(self, f: Callable[[Tensor], Tensor]) -> Samples:
        inputs, clean = (tuple(map(f, tensors)) for tensors in (self.inputs, self.clean))
        extra = tuple(f(x) if isinstance(x, Tensor) else x for x in self.extra)
        return Samples(inputs, clean, extra, f(self.ids), f(self.branches))

    def split(self, size: int) -> Iterator[Samples]:
        """The samples in order, in groups of at most ``size``."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, index: slice | Tensor) -> Samples:
        return self if isinstance(index, slice) and index == slice(None) else self._map(lambda x: x[index])

    def repeat(self, times: int) -> Samples:
        """Every sample repeated ``times`` times, copies side by side: ``a a b b``."""
        return self._map(lambda x: x.repeat_interleave(times, dim=0))

    def at(self, inputs: tuple[Tensor, ...]) -> Samples:
        """The same samples, evaluated at other inputs."""
        return replace(self, inputs=inputs)

    def own(self, value: Tensor, like: Tensor, ids: Tensor) -> Tensor | None:
        """The entries of ``value`` that belong to these samples.

        Args:
            value: A tensor with one entry for each of the probe's K samples, with a single entry, or without a sample
                dimension.
            like: The tensor that it is to be combined with, ``(N, ...)``.
            ids: The ids of the probe, ``(K,)``, in its order.

        Returns:
            ``(N, ...)`` if ``value`` has an entry per probe sample; ``value`` itself if it is the same for all samples;
            ``None`` if its number of entries is none of these.
        """
        if value.ndim != like.ndim or len(value) == 1:
            return value
        return value[self.places_in(ids).to(value.device)] if len(value) == len(ids) else None

    def places_in(self, ids: Tensor) -> Tensor:
        """The position of each sample among the ids ``(K,)`` of the probe, ``(N,)``.

        Raises:
            ValueError: If two samples of the probe have the same id.
        """
        places = {sample: i for i, sample in enumerate(ids.tolist())}
        if len(places) < len(ids):
            raise ValueError(
                "Two samples of the probe have the same id, so their entries cannot be found; give distinct Probe(ids=...)."
            )
        return torch.tensor([places[sample] for sample in self.ids.tolist()])

    def draw(self, indices: Tensor) -> Samples:
        """The same samples inside random draws ``indices`` ``(N,)``; draws nested in these get their own numbers."""
        return replace(self, branches=self.branches * 1_000_003 + indices + 1)
