"""A model and some of its layers in; the same model with those layers untrained, for the duration of a context, out.

The weights are not overwritten: new tensors take their places, and the originals are put back on exit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

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
def randomized(model: nn.Module, layers: Sequence[nn.Module], draws: KeyedDraws, draw: int) -> Iterator[None]:
    """A context in which these layers have newly initialized parameters (model randomization, Adebayo et al. 2018).

    A layer's ``reset_parameters`` makes them, and resets its buffers (the statistics of a normalization). In a layer
    without that method each parameter is replaced by normal numbers with the parameter's root mean square. Equal
    layers, seed and draw give equal numbers. Modules that share a parameter share the new one.

    Args:
        model: The module, inside the isolation.
        layers: Modules of the model, in the order of :func:`top_down`; the first k of a longer list get the same
            numbers as a list of k.
        draws: Random numbers keyed by the seed.
        draw: The index of the random model.

    Raises:
        ValueError: If a parameter is sharded over several devices (DTensor).
    """
    fresh: dict[int, Tensor] = {}
    for place, layer in enumerate(layers):
        key = torch.tensor([place])
        with draws.seeded("randomized", Samples((), (), (), key, torch.zeros_like(key)), torch.tensor([draw])):
            for old, new in _drawn(layer):
                fresh.setdefault(id(old), new)
    with ExitStack() as stack:
        for module in model.modules():
            # By setattr, because a recurrent layer keeps a second list of its weights and updates it there.
            for name, value in [*module._parameters.items(), *module._buffers.items()]:
                if id(value) in fresh:
                    stack.callback(setattr, module, name, value)
                    setattr(module, name, fresh[id(value)])
        yield


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
