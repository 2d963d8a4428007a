"""Random numbers that belong to a sample: the same whoever asks for them, in whatever order, chunk or process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.probe import Samples
from lightning_explain.core.random_state import seeded_random_state

_Fill = Callable[[np.random.Generator, "NDArray[Any]"], object]


@dataclass(frozen=True)
class KeyedDraws:
    """Draws keyed by (seed, purpose, sample id, branch, draw index), and by nothing else.

    A key is hashed (BLAKE2b) to the 128 bits that start a Philox stream of NumPy, from which the sample's numbers are
    read on the CPU in float32, so that they are the same numbers in every precision, but for its rounding. Global
    generators are neither read nor moved.

    Args:
        seed: The seed of all draws.
    """

    seed: int

    def normal(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers.

        Args:
            purpose: What they are for; different purposes (and different inputs) need different strings.
            samples: N samples.
            indices: ``(N,)`` integers: which draw of its sample each one is.
            like: ``(N, ...)`` in a floating dtype.

        Returns:
            Numbers in the shape, dtype and device of ``like``.
        """
        return self._draw("normal", purpose, samples, indices, like, _fill_normal)

    def uniform(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1); otherwise as ``normal``."""
        found = self._draw("uniform", purpose, samples, indices, like, _fill_uniform)
        # Half precision rounds the largest float32 numbers up to 1.
        return found.clamp_(max=1 - torch.finfo(like.dtype).eps / 2)

    def seeded(self, purpose: str, samples: Samples, indices: Tensor) -> AbstractContextManager[None]:
        """Global generators that start from the key of one draw, and are put back afterwards.

        Args:
            purpose: What the draw is for.
            samples: One sample.
            indices: ``(1,)``: which draw of the sample it is.

        Raises:
            ValueError: If there is not exactly one sample.
        """
        if len(samples) != 1:
            raise ValueError(
                f"Global generators start from one sample's key, got {len(samples)} samples; go sample by sample."
            )
        (key,) = self._keys("seeded", purpose, samples, indices)
        return seeded_random_state(int.from_bytes(key[:8], "little"))

    def _draw(self, kind: str, purpose: str, samples: Samples, indices: Tensor, like: Tensor, fill: _Fill) -> Tensor:
        if not like.is_floating_point():
            raise TypeError(f"Draws are made for floating tensors, got {like.dtype}.")
        values = np.empty(tuple(like.shape), np.float32)
        # Making a Philox asks the system for entropy it will not use; setting the state of one is 6 times as fast.
        bits = np.random.Philox(key=0)
        generator, state = np.random.Generator(bits), bits.state
        keys = self._keys(kind, purpose, samples, indices)
        for value, key in zip(values[:, None], keys, strict=True):
            state["state"]["key"] = np.frombuffer(key, "<u8")
            bits.state = state
            fill(generator, value)
        return torch.from_numpy(values).to(device=like.device, dtype=like.dtype)

    def _keys(self, kind: str, purpose: str, samples: Samples, indices: Tensor) -> list[bytes]:
        names = zip(samples.ids.tolist(), samples.branches.tolist(), indices.tolist(), strict=True)
        # The free text comes last, so that no two keys are written alike.
        return [
            blake2b(f"{self.seed} {sample} {branch} {index} {kind} {purpose}".encode(), digest_size=16).digest()
            for sample, branch, index in names
        ]


def _fill_normal(generator: np.random.Generator, out: NDArray[Any]) -> object:
    return generator.standard_normal(dtype=np.float32, out=out)


def _fill_uniform(generator: np.random.Generator, out: NDArray[Any]) -> object:
    return generator.random(dtype=np.float32, out=out)
