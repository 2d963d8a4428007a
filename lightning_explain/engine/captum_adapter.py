"""Calls Captum's ``attribute`` on our samples, and the checks and conversions that go with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_explain.core.probe import Attribution, Samples, bare

# Captum warns about what the isolation does on purpose: inputs that require gradients, hooks on modules, several layers.
_ANNOUNCEMENTS = (
    "Input Tensor .* (did not already require gradients|had a non-zero gradient)",
    "Setting (forward, )?backward hooks",
    "Setting hooks",
    "Internal batch size cannot be less than the number of input examples",
    "The neuron_selector provided is a callable",
    "Multiple layers provided",
)

RULED_LAYERS = (
    *SUPPORTED_LAYERS_WITH_RULES,
    *(nn.Conv1d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm3d),
    *(nn.AvgPool1d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d),
)
"""The layers that LRP propagates by epsilon: those of Captum, and the same ones of other dimensions, which in eval mode are affine too."""


@contextmanager
def without_announcements() -> Iterator[None]:
    """A context without Captum's warnings of what is done on purpose."""
    with warnings.catch_warnings():
        for announcement in _ANNOUNCEMENTS:
            warnings.filterwarnings("ignore", message=announcement)
        yield


def attribute(call: Callable[..., Attribution], samples: Samples, **arguments: Any) -> Attribution:
    """Calls a Captum ``attribute`` on the samples and returns its map; a single input is a bare tensor, in and out.

    Args:
        call: The bound ``attribute`` of a Captum object built on ``ExplainedFunction.forward``.
        samples: The samples to explain.
        arguments: Further arguments of the call.
    """
    inputs = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in samples.inputs)
    # A baseline that is a parameter of the user's would give the outputs a graph.
    arguments = tree_map_only(Tensor, Tensor.detach, arguments)
    with without_announcements():
        found = call(bare(inputs), additional_forward_args=samples.extra, **arguments)
    return bare(tuple(part.detach() for part in tree_leaves(found)))
