"""Noisy copies of samples, and means over random draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Samples
from lightning_explain.core.validation import is_number, one_for_each, refused

if TYPE_CHECKING:
    Stdevs: TypeAlias = float | tuple[float, ...]
else:
    Stdevs = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.


def check_stdevs(owner: str, stdevs: Any) -> None:
    """Checks standard deviations as the user writes them.

    Raises:
        ValueError: If there is none, or one is not a number of at least 0.
    """
    values = stdevs if isinstance(stdevs, (tuple, list)) else (stdevs,)
    if not values or not all(is_number(s) and s >= 0 for s in values):
        raise refused(owner, "stdevs", stdevs, "a number of at least 0, or one for each input")


def add_noise(explained: ExplainedFunction, samples: Samples, indices: Tensor, stdevs: Stdevs) -> tuple[Tensor, ...]:
    """Returns the inputs plus normal noise; all methods that add noise to their input get the same noise.

    Raises:
        ValueError: If there are several ``stdevs``, but not one for each input.
    """
    each = one_for_each(f"stdevs={stdevs!r}", stdevs, len(samples.inputs))
    draws = [explained.draws.normal(f"noise/{i}", samples, indices, x) for i, x in enumerate(samples.inputs)]
    return tuple(x + n * s for x, n, s in zip(samples.inputs, draws, each, strict=True))


def mean_over_draws(
    explained: ExplainedFunction,
    samples: Samples,
    count: int,
    one: Callable[[Samples, Tensor], tuple[Tensor, ...]],
    powers: Sequence[int],
    at_once: int | None = None,
) -> list[tuple[Tensor, ...]]:
    """Returns, for each power, the mean of ``one(samples, draw indices)`` to that power over all draws.

    Sums are float64 where the device has it, because a variance is a small difference of large numbers.

    Args:
        explained: The explained function; its limit bounds the samples per call of ``one``.
        samples: N samples.
        count: Draws per sample.
        one: Maps K repeated samples and their draw indices ``(K,)`` to one tensor ``(K, ...)`` per input.
        powers: Exponents, such as 1 and 2.
        at_once: At most this many draws per call.

    Returns:
        For each power, one tensor ``(N, ...)`` per input.
    """
    size = max(1, min(explained.limit // max(1, len(samples)), count, at_once or count))
    sums: list[list[Tensor]] = []
    for start in range(0, count, size):
        k = min(size, count - start)
        indices = torch.arange(start, start + k).repeat(len(samples))
        parts = [wide(p).unflatten(0, (len(samples), k)) for p in one(samples.repeat(k), indices)]
        found = [[p.pow(power).sum(1) for p in parts] for power in powers]
        sums = [[s + f for s, f in zip(a, b, strict=True)] for a, b in zip(sums, found, strict=True)] if sums else found
    return [tuple(s / count for s in by_input) for by_input in sums]


def wide(value: Tensor) -> Tensor:
    """Converts to float64, or to float32 on a device without float64."""
    return value.float() if value.device.type == "mps" else value.double()


def narrowed(values: tuple[Tensor, ...], samples: Samples) -> tuple[Tensor, ...]:
    """Converts values to the precision of the inputs, but never below float32."""
    return tuple(v.to(torch.promote_types(samples.inputs[0].dtype, torch.float32)) for v in values)


def column(values: Tensor, like: Tensor) -> Tensor:
    """Reshapes ``(N,)`` to ``(N, 1, ...)``, to broadcast against ``like``."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
