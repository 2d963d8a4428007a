"""A unit inside the model as a function, and what methods that explain it have in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain.core.contracts import ExplainedFunction, Method, Reference
from lightning_explain.core.points import value_of
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.distributed.fsdp import regather
from lightning_explain.engine.captum_adapter import attribute, freeze

Selector: TypeAlias = "None | int | tuple[int | slice, ...] | Callable[[Any], Tensor]"


class Neuron(nn.Module):
    """A unit of a layer as ``f(*inputs, *extra) -> (N,)``.

    Args:
        forward: The explained function, which runs the layer.
        layer: A module in it.
        selector: Which unit.
        of_input: Look at what goes into the layer.
    """

    def __init__(self, forward: nn.Module, layer: nn.Module, selector: Selector, of_input: bool) -> None:
        super().__init__()
        self.inner = forward
        # In a tuple, for a layer that were registered twice would be given each of Captum's hooks twice.
        self._watched = (layer,)
        self._selector, self._of_input = selector, of_input

    @property
    def unit(self) -> Hashable:
        """Which unit it is; another object of the same unit is the same function."""
        return (id(self._watched[0]), value_of(self._selector), self._of_input)

    def forward(self, *arguments: Any) -> Tensor:
        """The unit's value in each sample, ``(N,)``."""
        found: list[Any] = []
        if self._of_input:
            handle = self._watched[0].register_forward_pre_hook(lambda module, inputs: found.append(_copied(inputs)))
        else:
            handle = self._watched[0].register_forward_hook(lambda module, inputs, out: found.append(_copied(out)))
        try:
            self.inner(*arguments)
        finally:
            handle.remove()
        if not found:
            raise ValueError(
                f"The layer {type(self._watched[0]).__name__} of a neuron method does not run in this model."
            )
        return counted(select(found[-1], self._selector), self.inner, self._watched[0])


def counted(value: Tensor, forward: nn.Module, layer: nn.Module) -> Tensor:
    """A value in the layer, whose gradient can be taken, and is counted as that of an output of the explained function."""
    if value.requires_grad:
        regather(forward, layer)
    count = getattr(forward, "count_backward", None)
    if value.requires_grad and count is not None:
        value.register_hook(count)
    return value


def _copied(value: Any) -> Any:
    """Copies, for what follows may write into an activation; a tuple of one as the tensor itself."""
    if isinstance(value, (tuple, list)):
        parts = tuple(_copied(part) for part in value)
        return parts[0] if len(parts) == 1 else parts
    return value.clone() if isinstance(value, Tensor) else value


def select(activation: Any, selector: Selector) -> Tensor:
    """The unit of each sample, ``(N,)``; slices are summed, as in Captum.

    Raises:
        ValueError: If the selector does not choose one number for each sample.
    """
    if callable(selector):
        value = selector(activation)
    elif not isinstance(activation, Tensor):
        raise ValueError("neuron_selector: the layer gives several tensors; give a callable that chooses from them.")
    else:
        value = _indexed(activation, selector if isinstance(selector, tuple) else (selector,))
    if not isinstance(value, Tensor) or value.ndim != 1:
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in (activation, value)]
        raise ValueError(
            f"neuron_selector={selector!r} chose {shapes[1]} from an activation {shapes[0]}; it must choose one number "
            "for each row: an int or a tuple such as (channel, row, column) of ints or slices, or a callable."
        )
    return value


def _indexed(activation: Tensor, index: tuple[Any, ...]) -> Tensor:
    try:
        value = activation[(slice(None), *index)]
    except IndexError as error:
        shape = tuple(activation.shape)
        raise ValueError(f"neuron_selector={index!r} does not fit an activation {shape}: {error}.") from error
    return value.flatten(1).sum(1) if any(isinstance(i, slice) for i in index) else value


def strongest(explained: ExplainedFunction, layer: nn.Module, of_input: bool) -> tuple[int, ...]:
    """The unit of the layer with the largest mean activation over all clean samples of the probe; the first of equal ones."""

    def find() -> tuple[int, ...]:
        explainer = captum.LayerActivation(explained.forward, layer)
        where = {"attribute_to_layer_input": of_input}
        parts = [attribute(explainer.attribute, part, **where) for part in explained.probe.split(explained.limit)]
        if not all(isinstance(part, Tensor) for part in parts):
            raise ValueError("The layer of a neuron method gives several tensors; give a callable neuron_selector.")
        mean = torch.cat([part for part in parts if isinstance(part, Tensor)]).double().mean(0)
        return tuple(int(i) for i in torch.unravel_index(mean.argmax(), mean.shape))

    return explained.remembered(("strongest", layer, of_input), find)


@dataclass(frozen=True)
class OfNeuron:
    """What all neuron methods have in common."""

    layer: str | None = None
    neuron_selector: Selector = None
    attribute_to_neuron_input: bool = False

    def __post_init__(self) -> None:
        freeze(self)
        if self.neuron_selector is not None and not callable(self.neuron_selector):
            self._check_index()
        self._check_arguments()

    def _check_index(self) -> None:
        index = self.neuron_selector if isinstance(self.neuron_selector, tuple) else (self.neuron_selector,)
        if not index or any(isinstance(i, bool) or not isinstance(i, (int, slice)) for i in index):
            raise TypeError(
                f"{type(self).__name__}(neuron_selector={self.neuron_selector!r}); allowed: None (the strongest unit on the "
                "probe), an int, a tuple of ints and slices such as (channel, row, column), or a callable."
            )

    def _check_arguments(self) -> None:
        try:
            self._primary()
        except (TypeError, ValueError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from None

    def _primary(self) -> Method:
        """The method that explains the neuron."""
        raise NotImplementedError

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to, in units of the neuron."""
        return getattr(self._primary(), "reference", None)

    def unit(self, explained: ExplainedFunction) -> Selector:
        """The selector, or the strongest unit where there is none."""
        if self.neuron_selector is not None:
            return self.neuron_selector
        return strongest(explained, explained.layer(self.layer), self.attribute_to_neuron_input)

    def focused(self, explained: ExplainedFunction) -> ExplainedFunction:
        """The explained whose function is the neuron."""
        layer = explained.layer(self.layer)
        return replace(
            explained, forward=Neuron(explained.forward, layer, self.unit(explained), self.attribute_to_neuron_input)
        )

    def inside(self, explained: ExplainedFunction) -> tuple[Method, ExplainedFunction]:
        """The method that explains the neuron, and the neuron as the function that it explains."""
        return self._primary(), self.focused(explained)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, as the method of that name without ``Neuron``, in units of the neuron."""
        method, neuron = self.inside(explained)
        return method.attribute(neuron, samples)
