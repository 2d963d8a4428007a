"""A model and some of its layers in; the same model with those layers untrained, for the duration of a context, out.

The weights stay in the model, where a checkpoint finds them: functions that are called with one compute with a new tensor instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Samples
from lightning_explain.model.hooks import at_modules


def top_down(model: nn.Module, forward: Callable[[], object]) -> list[nn.Module]:
    """The modules of a model that have parameters of their own, in reverse order of execution.

    A module that is never called itself (another module uses its weight) takes the place of the module defined before
    it.

    Args:
        model: The module.
        forward: A function that runs the model once.
    """
    started: dict[nn.Module, int] = {}

    def note(module: nn.Module, arguments: object) -> None:
        started[module] = len(started)

    with at_modules(model, enter=note):
        forward()
    found, latest = [], -1
    for place, module in enumerate(model.modules()):
        latest = started.get(module, latest)
        if any(True for _ in module.parameters(recurse=False)):
            found.append((latest, place, module))
    return [module for _, _, module in sorted(found, key=lambda entry: entry[:2], reverse=True)]


@contextmanager
def randomized(layers: Sequence[nn.Module], draws: KeyedDraws, draw: int) -> Iterator[None]:
    """A context in which these layers have newly initialized parameters (model randomization, Adebayo et al. 2018).

    A layer's ``reset_parameters`` makes them, and resets its buffers (the statistics of a normalization). In a layer
    without that method each parameter is replaced by normal numbers with the parameter's root mean square. Equal
    layers, seed and draw give equal numbers. Modules that share a parameter share the new one.

    Args:
        layers: Modules of a model inside the isolation, in the order of :func:`top_down`; the first k of a longer list get the same
            numbers as a list of k.
        draws: Random numbers keyed by the seed.
        draw: The index of the random model.

    Raises:
        ValueError: If a parameter is sharded over several devices (DTensor), or a layer is compiled (TorchScript).
    """
    fresh: dict[int, tuple[Tensor, Tensor]] = {}
    for place, layer in enumerate(layers):
        key = torch.tensor([place])
        with draws.seeded("randomized", Samples((), (), (), key, torch.zeros_like(key)), torch.tensor([draw])):
            for old, new in _drawn(layer):
                fresh.setdefault(id(old), (old, new))
    with _Instead(fresh):
        yield


class _Instead(TorchFunctionMode):
    """Context in which every function that is called with one of some tensors gets another one instead.

    Args:
        instead: By the id of the one, both; as long as the one lives, its id is no other's.
    """

    def __init__(self, instead: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._instead = instead

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*self._replaced(args), **self._replaced(kwargs or {}))

    def _replaced(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            # Recurrent layers give lists of their weights.
            return type(value)(map(self._replaced, value))
        if type(value) is dict:
            return {key: self._replaced(inner) for key, inner in value.items()}
        return self._instead.get(id(value), (value, value))[1]


def _drawn(layer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each of the layer's own tensors with its replacement; random numbers are drawn on the CPU."""
    kinds = {
        kind: {k: v for k, v in getattr(layer, kind).items() if v is not None} for kind in ("_parameters", "_buffers")
    }
    if any(hasattr(value, "full_tensor") for own in kinds.values() for value in own.values()):
        raise ValueError(
            f"A parameter of {type(layer).__name__} is sharded over several devices (DTensor); only whole parameters can be "
            "randomized. Leave Randomization out of this run, and score a saved checkpoint instead."
        )
    if isinstance(layer, torch.jit.ScriptModule):
        raise ValueError(
            f"The weights of {layer.original_name} are in code that TorchScript has compiled, where they cannot be randomized. Leave "
            "Randomization out of this run, or train the model as it was before torch.jit."
        )
    # Not by copy.copy(), which parametrized modules refuse.
    double: nn.Module = object.__new__(type(layer))
    double.__dict__.update(layer.__dict__)
    for kind, own in kinds.items():
        # Not by setattr: the copy still shares these dictionaries with the layer.
        double.__dict__[kind] = dict(getattr(layer, kind)) | {k: _copied(v, "cpu") for k, v in own.items()}
    _reset(double)
    return [(v, _copied(getattr(double, kind)[k], v.device)) for kind, own in kinds.items() for k, v in own.items()]


def _reset(layer: nn.Module) -> None:
    # A layer with children might reset these too, and they are not copies.
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset) and not any(True for _ in layer.children()):
        reset()
        return
    for value in layer._parameters.values():
        if value is not None and value.is_floating_point():
            value.data.normal_(0, value.data.square().mean().sqrt().item())


def _copied(value: Tensor, device: torch.device | str) -> Tensor:
    copy = value.detach().to(device, copy=True)
    return nn.Parameter(copy, requires_grad=False) if isinstance(value, nn.Parameter) else copy
