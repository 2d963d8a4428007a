"""Submodels as functions: the part of a model from a layer on, or up to a layer, to measure backward rules on."""

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
    """A module that contains the model, so that Captum can hook its layers.

    Args:
        target_function: The model, inside the isolation.
        layer: A module of the model that runs once.
        of_input: Whether the input of the layer is meant instead of its output.
    """

    def __init__(self, target_function: TargetFunction, layer: nn.Module, of_input: bool) -> None:
        super().__init__()
        self.target_function = target_function
        # In a tuple: a layer that is registered twice would get each of Captum's hooks twice.
        self._layer, self._of_input = (layer,), of_input

    def _hooked(self, see: Callable[[Any], Any]) -> RemovableHandle:
        layer = self._layer[0]
        if self._of_input:
            return layer.register_forward_pre_hook(lambda module, arguments: see(arguments))
        return layer.register_forward_hook(lambda module, arguments, output: see(output))

    def passed(self, *arguments: Any) -> tuple[Tensor, ...]:
        """Runs the model, and returns the tensors at the layer, each ``(N, ...)``."""
        found: list[tuple[Tensor, ...]] = []
        handle = self._hooked(lambda value: found.append(tuple(t.clone() for t in _tensors(value))))
        try:
            self.target_function(*arguments)
        finally:
            handle.remove()
        return found[-1]


class UpTo(_Submodel):
    """The model up to a layer, ``f(*inputs, *extra) -> (N,)``: a weighted sum of all units of the layer."""

    def forward(self, *arguments: Any) -> Tensor:
        """Returns the weighted sum of the layer's units for each sample, ``(N,)``."""
        units = torch.cat([t.flatten(1) for t in self.passed(*arguments) if t.is_floating_point()], 1)
        if units.requires_grad:
            regather(self.target_function, self._layer[0])
        return (units * torch.arange(units.shape[1]).cos().to(units)).sum(1)


class From(_Submodel):
    """The model from a layer on, ``f(*activations, *inputs, *extra) -> (N,)``: the explained output."""

    _activations: tuple[Tensor, ...] = ()

    def at(self, samples: Samples, inputs: tuple[Tensor, ...]) -> Samples:
        """Returns samples whose inputs are the activations at ``inputs``; the own inputs become further arguments."""
        with torch.no_grad():
            activations = self.passed(*inputs, *samples.extra)
        self._count = len(activations)
        return replace(samples, inputs=activations, clean=activations, extra=(*samples.inputs, *samples.extra))

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Context in which the layer's tensors are replaced.

        It must enclose the backward pass as well, in which activation checkpointing runs the layer again.
        """
        handle = self._hooked(lambda value: _replaced(value, self._activations))
        try:
            yield
        finally:
            handle.remove()

    def forward(self, *arguments: Any) -> Tensor:
        """Returns the explained output of each sample, ``(N,)``."""
        self._activations, others = arguments[: self._count], arguments[self._count :]
        # Captum hooks the gradients of all activations, even of those before the layer.
        found: Tensor = self.target_function(*(_differentiable(x) if isinstance(x, Tensor) else x for x in others))
        return found


def _differentiable(x: Tensor) -> Tensor:
    return x.detach().requires_grad_() if x.is_floating_point() else x


def _tensors(value: Any) -> list[Tensor]:
    return [part for part in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(part, Tensor)]


def _replaced(value: Any, activations: tuple[Tensor, ...]) -> Any:
    """Returns copies of the activations in place of the tensors; copies, because later layers may write into them."""
    going_on = iter(activations)
    if isinstance(value, Tensor):
        return next(going_on).clone()
    return tuple(next(going_on).clone() if isinstance(part, Tensor) else part for part in value)
