"""Outputs of classifiers in; probabilities out."""

from __future__ import annotations

import torch
from torch import Tensor


def are_shares(outputs: Tensor) -> bool:
    """Whether each sample of ``(N, C)`` is a distribution: not negative, with the sum 1."""
    sums = outputs.double().sum(1)
    return bool((outputs >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)


def shares_of(outputs: Tensor) -> Tensor:
    """Outputs ``(N, C)`` as distributions, float64: themselves if they are some, else their softmax."""
    values = outputs.double()
    return values if are_shares(outputs) else values.softmax(1)


def sigmoids_of(outputs: Tensor) -> Tensor:
    """The outputs, float64, if all of them lie in [0, 1], else their sigmoids."""
    values = outputs.double()
    return values if bool(((values >= 0) & (values <= 1)).all()) else values.sigmoid()
