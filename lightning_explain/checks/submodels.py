"""The part of a model that a method goes back through, as a function of its own: from a layer on, or up to a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_explain.core.probe import Samples
from lightning_explain.distributed.fsdp import regather
from lightning_explain.model.function import TargetFunction


class _Submodel(nn.Module):
    """A module around the model, for Captum to hook what is in it.

    Args:
        target_function: The model, inside the guard.
        layer: A module in it that runs once.
        of_input: What goes into the layer instead of what comes out.
    """

    def __init__(self, target_function: TargetFunction, layer: nn.Module, of_input: bool) -> None:
        super().__init__()
        self.target_function = target_function
        # In a tuple, for a layer that were registered twice would be given each of Captum's hooks twice.
        self._layer, self._of_input = (layer,), of_input

    def _hooked(self, see: Callable[[Any], Any]) -> RemovableHandle:
        layer = self._layer[0]
        if self._of_input:
            return layer.register_forward_pre_hook(lambda module, arguments: see(arguments))
        return layer.register_forward_hook(lambda module, arguments, output: see(output))

    def passed(self, *arguments: Any) -> tuple[Tensor, ...]:
        """What passes at the layer when the model is called, each ``(N, ...)``."""
        found: list[tuple[Tensor, ...]] = []
        handle = self._hooked(lambda value: found.append(tuple(t.clone() for t in _tensors(value))))
        try:
            self.target_function(*arguments)
        finally:
            handle.remove()
        return found[-1]


class UpTo(_Submodel):
    """A mixture of all units of the layer: ``f(*inputs, *extra) -> (N,)``, which changes if any of them does."""

    def forward(self, *arguments: Any) -> Tensor:
        """The mixture in each sample, ``(N,)``."""
        units = torch.cat([t.flatten(1) for t in self.passed(*arguments) if t.is_floating_point()], 1)
        if units.requires_grad:
            regather(self.target_function, self._layer[0])
        return (units * torch.arange(units.shape[1]).cos().to(units)).sum(1)


class From(_Submodel):
    """The explained number as a function of what passes at the layer: ``f(*activations, *inputs, *extra) -> (N,)``."""

    _activations: tuple[Tensor, ...] = ()

    def at(self, samples: Samples, inputs: tuple[Tensor, ...]) -> Samples:
        """The samples with the activations at these inputs as what is explained; what goes around the layer stays."""
        with torch.no_grad():
            activations = self.passed(*inputs, *samples.extra)
        self._count = len(activations)
        return replace(samples, inputs=activations, clean=activations, extra=(*samples.inputs, *samples.extra))

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Inside, it can be called, and gone back through: checkpointing runs the layer again in the backward pass."""
        handle = self._hooked(lambda value: _replaced(value, self._activations))
        try:
            yield
        finally:
            handle.remove()

    def forward(self, *arguments: Any) -> Tensor:
        """The explained number of each sample, ``(N,)``."""
        self._activations, others = arguments[: self._count], arguments[self._count :]
        # Captum hooks the gradients of all activations, also of those before the layer.
        found: Tensor = self.target_function(*(_differentiable(x) if isinstance(x, Tensor) else x for x in others))
        return found


def _differentiable(x: Tensor) -> Tensor:
    return x.detach().requires_grad_() if x.is_floating_point() else x


def _tensors(value: Any) -> list[Tensor]:
    return [part for part in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(part, Tensor)]


def _replaced(value: Any, activations: tuple[Tensor, ...]) -> Any:
    """Copies of the activations in the place of the tensors, for what follows may write into them."""
    going_on = iter(activations)
    if isinstance(value, Tensor):
        return next(going_on).clone()
    return tuple(next(going_on).clone() if isinstance(part, Tensor) else part for part in value)
