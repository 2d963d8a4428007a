"""Helpers shared by the metrics: tables over draws, a user's own perturbations, and a check of the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, MetricInputs
from lightning_explain.core.probe import Samples, bare
from lightning_explain.engine.noise import wide

Evaluate: TypeAlias = "Callable[[Samples, Tensor, Tensor], Mapping[str, Tensor]]"


def table(
    metric_inputs: MetricInputs,
    count: int,
    names: Sequence[str],
    evaluate: Evaluate,
    exact: bool = False,
) -> dict[str, Tensor]:
    """What ``evaluate`` returns for each of ``count`` draws of each sample, ``(N, count)`` for each name.

    Args:
        metric_inputs: The samples, and the limit on those in one call.
        count: Number of draws.
        names: The names in what ``evaluate`` returns.
        evaluate: Receives repeated samples, the position of each among all samples, and its draw; returns a number for
            each.
        exact: Keep the numbers in float64, or the most that the device has, instead of the precision of the outputs.
    """
    like = wide(metric_inputs.outputs) if exact else metric_inputs.outputs
    found = {name: like.new_empty(len(metric_inputs.samples), count) for name in names}
    fill(found, metric_inputs, torch.arange(len(metric_inputs.samples)), torch.arange(count), evaluate)
    return found


def fill(
    found: Mapping[str, Tensor], metric_inputs: MetricInputs, places: Tensor, draws: Tensor, evaluate: Evaluate
) -> None:
    """Writes what ``evaluate`` returns for some samples and draws into tables ``(N, count)``; see :func:`table`."""
    samples, limit = metric_inputs.samples, metric_inputs.explained.limit
    # Splitting nothing gives one part that is empty.
    for some in places.split(limit) if len(places) and len(draws) else ():
        for part in draws.split(max(1, limit // len(some))):
            each, own = some.repeat_interleave(len(part)), part.repeat(len(some))
            for name, values in evaluate(samples[each], each, own).items():
                found[name][each, own] = values.to(found[name].dtype)


def by_user(
    purpose: str, function: Callable[[Any], Any], explained: ExplainedFunction, samples: Samples, draws: Tensor
) -> list[Any]:
    """What a user's own random function returns for the inputs of each sample, with the generators seeded for its draw."""
    found = []
    for i, draw in enumerate(draws):
        sample = samples[i : i + 1]
        with explained.draws.seeded(purpose, sample, draw.reshape(1)):
            found.append(function(bare(sample.inputs)))
    return found


def joined(parts: Sequence[Any]) -> tuple[Tensor, ...]:
    """The tensors of all samples, one for each input, from a tensor or several for each sample."""
    columns = zip(*(part if isinstance(part, (tuple, list)) else (part,) for part in parts), strict=True)
    return tuple(map(torch.cat, columns))


def needs_floating(owner: str, inputs: tuple[Tensor, ...]) -> None:
    """Refuses inputs that cannot be perturbed.

    Raises:
        ValueError: If an input is not floating-point.
    """
    for x in inputs:
        if not x.is_floating_point():
            fix = "leave it out, or give perturb_func"
            raise ValueError(f"{owner} perturbs floating-point inputs, but these are {x.dtype}; {fix}.")
