"""A unit of a layer as the explained function, and the base class of the neuron methods."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.points import value_of
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.core.validation import is_whole, refused
from lightning_explain.distributed.fsdp import regather
from lightning_explain.engine.evaluate import found_at
from lightning_explain.engine.noise import wide
from lightning_explain.methods._base import CaptumMethod
from lightning_explain.methods.layer import LayerActivation
from lightning_explain.model.hooks import at_layer

if TYPE_CHECKING:
    Selector: TypeAlias = None | int | tuple[int | slice, ...] | Callable[[Any], Tensor]
else:
    Selector = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.


class Neuron(nn.Module):
    """One unit of a layer as a function ``f(*inputs, *extra) -> (N,)``.

    Args:
        forward: Explained function that runs the layer.
        layer: A module inside it.
        selector: Which unit, as in NeuronGradient.
        of_input: Select from the layer's input instead of its output.
    """

    def __init__(self, forward: nn.Module, layer: nn.Module, selector: Selector, of_input: bool) -> None:
        super().__init__()
        self.inner = forward
        # In a tuple, so that the layer is not registered a second time: Captum would then hook it twice.
        self._watched = (layer,)
        self._selector, self._of_input = selector, of_input

    @property
    def unit(self) -> Hashable:
        """Key of the unit; two objects with equal keys are the same function."""
        return (id(self._watched[0]), value_of(self._selector), self._of_input)

    def forward(self, *arguments: Any) -> Tensor:
        """Value of the unit in each sample, ``(N,)``.

        Raises:
            ValueError: If the layer does not run, or the selector does not choose one number for each sample.
        """
        (layer,), found = self._watched, dict[str, Any]()
        with at_layer(layer, self._of_input, lambda value: found.update({type(layer).__name__: _copied(value)})):
            self.inner(*arguments)
        value = found_at(type(layer).__name__, found)
        return counted(select(value, self._selector), self.inner, layer)


def counted(value: Tensor, forward: nn.Module, layer: nn.Module) -> Tensor:
    """Returns ``value``; counts its backward pass as one of the explained function, and gathers a sharded layer for it."""
    if value.requires_grad:
        regather(forward, layer)
        value.register_hook(getattr(forward, "count_backward", lambda gradient: None))
    return value


def _copied(value: Any) -> Any:
    """Clones the tensors, because later modules may write into an activation in place; unwraps a tuple of one."""
    copies = tree_map_only(Tensor, torch.clone, value)
    return copies[0] if isinstance(copies, (tuple, list)) and len(copies) == 1 else copies


def select(activation: Any, selector: Selector) -> Tensor:
    """Value of the selected unit in each sample, ``(N,)``; slices are summed, as in Captum.

    Raises:
        ValueError: If the selector does not choose one number for each sample.
    """
    if callable(selector):
        value = selector(activation)
    elif not isinstance(activation, Tensor):
        raise ValueError("neuron_selector: the layer has several tensors; give a callable that selects from them.")
    else:
        value = _indexed(activation, selector if isinstance(selector, tuple) else (selector,))
    if not isinstance(value, Tensor) or value.ndim == 0 or value.numel() != len(value):
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in (activation, value)]
        fix = "one number for each sample: give an int, a tuple of ints and slices like (channel, row, column), or a callable"
        raise ValueError(f"neuron_selector={selector!r} chose {shapes[1]} from an activation {shapes[0]}, not {fix}.")
    return value.reshape(len(value))


def _indexed(activation: Tensor, index: tuple[Any, ...]) -> Tensor:
    try:
        value = activation[(slice(None), *index)]
    except IndexError as error:
        fix = f"{tuple(activation.shape)}; give indices within {tuple(activation.shape[1:])}"
        raise ValueError(f"neuron_selector={index!r} does not fit an activation {fix}.") from error
    return value.flatten(1).sum(1) if any(isinstance(i, slice) for i in index) else value


@dataclass(frozen=True)
class OfUnit(CaptumMethod):
    """Base class of methods that are about one unit of a layer."""

    place = "neuron"

    layer: str | None = None
    neuron_selector: Selector = None
    attribute_to_neuron_input: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        unit = self.neuron_selector
        index = unit if isinstance(unit, tuple) else (unit,)
        if not (unit is None or callable(unit) or (index and all(isinstance(i, slice) or is_whole(i) for i in index))):
            what = "None (the strongest unit on the probe), an int, a tuple of ints and slices like (channel, row, column), or a callable"
            raise refused(type(self).__name__, "neuron_selector", unit, what, TypeError)

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Any) -> None:
        """Refuses a selector that does not choose one number for each sample of what the layer has.

        Raises:
            ValueError: If it does not, or the layer has several tensors and no callable selects from them.
        """
        first = (0,) * (activation.ndim - 1) if isinstance(activation, Tensor) else None
        select(activation, self.neuron_selector if self.neuron_selector is not None else first)

    def unit(self, explained: ExplainedFunction) -> Selector:
        """The selector, or the strongest unit if there is none."""
        if self.neuron_selector is not None:
            return self.neuron_selector
        key = ("strongest", explained.layer(self.layer), self.of_input)
        return explained.remembered(key, lambda: self._strongest(explained))

    def _strongest(self, explained: ExplainedFunction) -> tuple[int, ...]:
        """Index of the unit with the largest mean activation over all clean probe samples; the first one on a tie."""
        (found,) = as_tuple(LayerActivation(self.layer, self.of_input).attribute(explained, explained.probe))
        mean = wide(found).mean(0)
        return tuple(int(i) for i in torch.unravel_index(mean.argmax(), mean.shape))


class OfNeuron(OfUnit):
    """Base class of the methods that apply a primary method with the neuron as f."""

    primary: ClassVar[Any]
    """The primary method, with its defaults."""

    @property
    def applied(self) -> Method:
        """The primary method with the arguments of this one."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(self.primary)}
        found: Method = replace(self.primary, **{name: getattr(self, name) for name in shared})
        return found

    def focused(self, explained: ExplainedFunction) -> ExplainedFunction:
        """The explained function with the neuron as f."""
        layer = explained.layer(self.layer)
        neuron = Neuron(explained.forward, layer, self.unit(explained), self.attribute_to_neuron_input)
        return replace(explained, forward=neuron)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in the units of the method without ``Neuron`` in its name, with the neuron as output."""
        return self.applied.attribute(self.focused(explained), samples)
