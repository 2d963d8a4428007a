"""Calls Captum's ``attribute`` on our samples, and the checks and conversions that go with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from captum.attr import Attribution as Attribution_
from torch import Tensor

from lightning_explain.core.probe import Attribution, Samples, as_tuple, bare

# Captum warns about what the isolation does on purpose: inputs that require gradients, hooks on ReLU modules.
_ANNOUNCEMENTS = (
    "Input Tensor .* (did not already require gradients|had a non-zero gradient)",
    "Setting (forward, )?backward hooks",
    "Setting hooks",
    "Internal batch size cannot be less than the number of input examples",
    "The neuron_selector provided is a callable",
)


def attribute(call: Callable[..., Attribution], samples: Samples, **arguments: Any) -> Attribution:
    """Calls a Captum ``attribute`` on the samples and returns its map; a single input is a bare tensor, in and out.

    Args:
        call: The bound ``attribute`` of a Captum object built on ``ExplainedFunction.forward``.
        samples: The samples to explain.
        arguments: Further arguments of the call.
    """
    inputs = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in samples.inputs)
    with warnings.catch_warnings():
        for announcement in _ANNOUNCEMENTS:
            warnings.filterwarnings("ignore", message=announcement)
        found = call(bare(inputs), additional_forward_args=samples.extra, **arguments)
    return _finished(found)


def _finished(found: Attribution | Sequence[Tensor]) -> Attribution:
    return bare(tuple(part.detach() for part in (found if isinstance(found, (tuple, list)) else (found,))))


def is_captums(thing: object) -> bool:
    """Whether an object is one of Captum's attribution instances, which are bound to a model and lack our interface."""
    return isinstance(thing, Attribution_)


def in_pieces(samples: Samples, size: int, call: Callable[[Samples], Attribution]) -> Attribution:
    """Attributes the samples in batches of at most ``size`` (at least one), and returns the concatenated map."""
    parts = [as_tuple(call(part)) for part in samples.split(max(1, size))]
    return bare(tuple(torch.cat(column) for column in zip(*parts, strict=True)))


def needs_gradient(samples: Samples, name: str) -> None:
    """Checks that every input can carry a gradient.

    Raises:
        TypeError: If an input has an integer dtype.
    """
    for x in samples.inputs:
        if not x.is_floating_point():
            raise TypeError(
                f"{name} takes the gradient of the inputs, but they are {x.dtype}; "
                "give floating-point inputs (convert them in batch_fn), or use a method that only perturbs, such as Occlusion."
            )


def freeze(method: object) -> None:
    """Replaces the lists of YAML by tuples in a method's fields, so that hyperparameters can be hashed and compared."""
    for field in fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        if isinstance(value, list):
            object.__setattr__(method, field.name, _tupled(value))


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value
