"""Random numbers that belong to a sample: the same in every order, chunk and process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from lightning_explain.core.probe import Samples
from lightning_explain.core.random_state import seeded_random_state


@dataclass(frozen=True)
class KeyedDraws:
    """Draws that depend on (seed, purpose, sample id, branch, draw index) and on nothing else.

    Each key is hashed (BLAKE2b) to the 128-bit key of a NumPy Philox stream. The sample's numbers are read from that
    stream on the CPU in float32, so they are the same in every precision, up to rounding. Global generators are
    neither read nor advanced.

    Args:
        seed: The seed of all draws.
    """

    seed: int

    def normal(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Returns standard normal numbers in the shape of ``like``.

        Args:
            purpose: What the numbers are for; different purposes (and different inputs) need different strings.
            samples: N samples.
            indices: ``(N,)`` integers: the draw index within each sample.
            like: ``(N, ...)``, floating point.

        Returns:
            Numbers with the shape, dtype and device of ``like``.
        """
        return self._draw("normal", purpose, samples, indices, like, np.random.Generator.standard_normal)

    def uniform(self, purpose: str, samples: Samples, indices: Tensor, like: Tensor) -> Tensor:
        """Returns uniform numbers in [0, 1); arguments as in ``normal``."""
        found = self._draw("uniform", purpose, samples, indices, like, np.random.Generator.random)
        # Half precision rounds the largest float32 numbers up to 1.
        return found.clamp_(max=1 - torch.finfo(like.dtype).eps / 2)

    def seeded(self, purpose: str, samples: Samples, indices: Tensor) -> AbstractContextManager[None]:
        """Context that seeds the global generators from the key of one draw, and restores their state on exit.

        Args:
            purpose: What the draw is for.
            samples: One sample.
            indices: ``(1,)``: the draw index within the sample.

        Raises:
            ValueError: If there is not exactly one sample.
        """
        if len(samples) != 1:
            raise ValueError(f"seeded() takes the key of one sample, got {len(samples)} samples; pass one at a time.")
        (key,) = self._keys("seeded", purpose, samples, indices)
        return seeded_random_state(int.from_bytes(key[:8], "little"))

    def _draw(
        self, kind: str, purpose: str, samples: Samples, indices: Tensor, like: Tensor, fill: Callable[..., object]
    ) -> Tensor:
        if not like.is_floating_point():
            raise TypeError(f"Draws need a floating-point `like`, got {like.dtype}; pass a floating-point tensor.")
        values = np.empty(tuple(like.shape), np.float32)
        # A new Philox reads system entropy that is not needed; setting the key of an existing one is 6 times as fast.
        bits = np.random.Philox(key=0)
        generator, state = np.random.Generator(bits), bits.state
        keys = self._keys(kind, purpose, samples, indices)
        for value, key in zip(values[:, None], keys, strict=True):
            state["state"]["key"] = np.frombuffer(key, "<u8")
            bits.state = state
            fill(generator, dtype=np.float32, out=value)
        return torch.from_numpy(values).to(device=like.device, dtype=like.dtype)

    def _keys(self, kind: str, purpose: str, samples: Samples, indices: Tensor) -> list[bytes]:
        names = zip(samples.ids.tolist(), samples.branches.tolist(), indices.tolist(), strict=True)
        # The free text goes last, so that two different keys never give the same string.
        return [
            blake2b(f"{self.seed} {sample} {branch} {index} {kind} {purpose}".encode(), digest_size=16).digest()
            for sample, branch, index in names
        ]
