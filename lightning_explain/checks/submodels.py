"""The model up to a layer as a function, to measure backward rules on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.distributed.fsdp import regather
from lightning_explain.model.function import TargetFunction


class UpTo(nn.Module):
    """The model up to a layer, ``f(*inputs, *extra) -> (N,)``: a weighted sum of all units of the layer.


    Args:
        target_function: The model, inside the isolation.
        layer: A module of the model that runs once.
        of_input: Whether the input of the layer is meant instead of its output.
    """

    def __init__(self, target_function: TargetFunction, layer: nn.Module, of_input: bool) -> None:
        super().__init__()
        self.target_function = target_function
        # In a tuple: the layer is registered as a part of the function already.
        self._layer, self._of_input = (layer,), of_input

    def forward(self, *arguments: Any) -> Tensor:
        """Returns the weighted sum of the layer's units for each sample, ``(N,)``."""
        layer, found = self._layer[0], list[list[Tensor]]()
        if self._of_input:
            handle = layer.register_forward_pre_hook(lambda module, inputs: found.append(_copies(inputs)))
        else:
            handle = layer.register_forward_hook(lambda module, inputs, output: found.append(_copies(output)))
        try:
            self.target_function(*arguments)
        finally:
            handle.remove()
        units = torch.cat([t.flatten(1) for t in found[-1] if t.is_floating_point()], 1)
        if units.requires_grad:
            regather(self.target_function, layer)
        return (units * torch.arange(units.shape[1]).cos().to(units)).sum(1)


def _copies(value: Any) -> list[Tensor]:
    parts = value if isinstance(value, (tuple, list)) else [value]
    return [part.clone() for part in parts if isinstance(part, Tensor)]
