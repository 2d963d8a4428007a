"""Given draws in place of Captum's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from torch import Tensor


@contextmanager
def noise(values: Tensor) -> Iterator[None]:
    """Captum adds these draws ``(N, samples, ...)``, one sample at a time, instead of its own."""
    remaining = iter(values.unbind(1))
    with mock.patch("torch.normal", lambda mean, std: mean + std * next(remaining)):
        yield


def on_draws(attribute: Callable[[], Tensor], draws: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    found = []
    for s in range(draws.shape[1]):
        with (
            noise(draws[:, s : s + 1]),
            mock.patch("numpy.random.choice", lambda k, size, s=s: chosen[:, s].numpy()),
            mock.patch("numpy.random.uniform", lambda a, b, n, s=s: weights[:, s].numpy().astype(np.float32)),
        ):
            found.append(attribute())
    return torch.stack(found).mean(0)
