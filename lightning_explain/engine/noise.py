"""Noisy copies of samples, and means over random draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.deviations import FEWEST, measured, standard_deviations
from lightning_explain.core.probe import Samples
from lightning_explain.core.validation import is_number, one_for_each, refused
from lightning_explain.engine.baselines import fitted

if TYPE_CHECKING:
    Scale: TypeAlias = float | str | Tensor | tuple[float | str | Tensor, ...] | None
else:
    Scale = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.
"""The size of noise as the user writes it.

A number in units of the input; ``"std"``, the standard deviation of each number of the input (``"0.1 std"``: a tenth of it); a
tensor that broadcasts to one sample, ``(1, ...)``; or a tuple with one of these for each input. ``None``: a number, times the
standard deviation where the input is a table or a series.
"""

_BLOCK = 64  # Samples of which a copy is made at a time.
_IN_STD = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)\s*\*?\s*)?std")
_WAYS = 'a number of at least 0, "std", "0.1 std", a tensor of these sizes, or a tuple of one of these for each input'


def check_scale(owner: str, name: str, scale: Any) -> None:
    """Checks the argument ``name``, the size of noise as the user writes it.

    Raises:
        ValueError: If it is not as :data:`Scale` says, or negative.
    """
    values = scale if isinstance(scale, (tuple, list)) and scale else (scale,)
    for value in values:
        number = is_number(value) and value >= 0
        numbers = isinstance(value, Tensor) and not value.is_complex() and bool((value >= 0).all())
        if not (value is None or number or numbers or (isinstance(value, str) and _IN_STD.fullmatch(value))):
            raise refused(owner, name, scale, _WAYS)


def scales(
    explained: ExplainedFunction, samples: Samples, name: str, scale: Scale, default: float = 1.0
) -> tuple[Any, ...]:
    """The size of noise on each input: a number, or a tensor that broadcasts to the input ``(N, ...)``.

    Args:
        explained: The explained function, which knows the standard deviations.
        samples: N samples.
        name: Name of the argument, for errors.
        scale: What the user gave.
        default: The number for ``None``.

    Raises:
        ValueError: If it does not fit the inputs, or no standard deviations are known.
    """
    each = one_for_each(f"{name}={scale!r}", scale, len(samples.inputs))
    return tuple(_scale(explained, samples, name, part, default, i) for i, part in enumerate(each))


def _scale(
    explained: ExplainedFunction, samples: Samples, name: str, part: Any, default: float, index: int
) -> float | Tensor:
    x = samples.inputs[index]
    if isinstance(part, Tensor):
        return fitted(name, part, samples, x, explained.probe.ids).to(x)
    if part is not None and not isinstance(part, str):
        return float(part)
    if not x.is_floating_point() or (part is None and not measured(x)):
        return default
    deviations = _deviations(explained)
    if part is None and not deviations:
        return default
    if not deviations:
        raise ValueError(
            f'{name}="{part}" needs standard deviations, but {len(explained.probe)} samples are too few to take them from; give '
            f"Probe(stds=...), at least {FEWEST} samples, or a number"
        )
    return deviations[index].to(x) * (default if part is None else in_std(part))


def in_std(text: str) -> float:
    """The number of standard deviations: 0.1 for ``"0.1 std"``."""
    found = _IN_STD.fullmatch(text)
    return float((found and found[1]) or 1)


def _deviations(explained: ExplainedFunction) -> tuple[Tensor, ...]:
    """Those that come with the probe, or those of its own samples, in the order of their ids."""
    if explained.stds:
        return explained.stds

    def measure() -> tuple[Tensor, ...]:
        parts = explained.probe.ids.argsort(stable=True).split(_BLOCK)
        return standard_deviations(tuple(x[part.to(x.device)] for x in explained.probe.clean) for part in parts)

    return explained.remembered("standard deviations", measure)


def add_noise(
    explained: ExplainedFunction, samples: Samples, indices: Tensor, stdevs: Scale, antithetic: bool = False
) -> tuple[Tensor, ...]:
    """Returns the inputs plus normal noise; all methods that add noise to their input get the same noise.

    Args:
        explained: The explained function.
        samples: N samples.
        indices: ``(N,)``: the draw of each.
        stdevs: The size of the noise.
        antithetic: Whether draws come in pairs, the second of which has the noise of the first with the opposite sign.

    Raises:
        ValueError: If ``stdevs`` does not fit the inputs.
    """
    each = scales(explained, samples, "stdevs", stdevs)
    keys = indices // 2 if antithetic else indices
    draws = [explained.draws.normal(f"noise/{i}", samples, keys, x) for i, x in enumerate(samples.inputs)]
    if antithetic:
        draws = [n * column(1 - 2 * (indices % 2).to(n), n) for n in draws]
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
