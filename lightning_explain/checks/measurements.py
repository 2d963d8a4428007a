"""Measurements on a few samples: are outputs reproducible, are samples independent?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_explain.checks.findings import Finding
from lightning_explain.core.probe import Samples
from lightning_explain.distributed.collectives import raise_if_lost
from lightning_explain.engine.rules import in_precision
from lightning_explain.model.function import TargetFunction

_DIFFERENT = 1e-3
# Factor on tolerances in 16 bits, which hold 2 to 3 digits.
_COARSE = 50.0


def agreement(target_function: TargetFunction, samples: Samples, outputs: Tensor, coarse: bool) -> list[Finding]:
    """Checks that a second forward pass, and one for each sample alone, reproduce the outputs.

    Args:
        target_function: The model, inside the isolation.
        samples: At least two samples.
        outputs: Outputs of a first forward pass, ``(N, ...)``.
        coarse: Whether the model computes in 16 bits.

    Returns:
        A finding that refuses every method, or none.
    """
    tolerance = _DIFFERENT * (_COARSE if coarse else 1)

    def in_double() -> float:
        inputs, extra = (tuple(map(_double, part)) for part in (samples.inputs, samples.extra))
        double = replace(samples, inputs=inputs, extra=extra)
        return _alone(target_function, double, target_function.outputs(*double.inputs, *double.extra))

    with torch.no_grad():
        again = _difference(target_function.outputs(*samples.inputs, *samples.extra), outputs)
        alone = _measured(lambda: _alone(target_function, samples, outputs))
        if tolerance < alone < float("inf"):
            # Where large numbers cancel, rounding alone differs by as much; not so in float64.
            alone = min(alone, _measured(partial(in_precision, target_function, in_double, torch.float64)))
    if again > tolerance:
        return [_finding(f"two forward passes on the same samples in eval mode differ by {again:.1%}", *_RANDOM)]
    if alone > tolerance:
        found = "cannot be computed" if alone == float("inf") else f"differs by {alone:.1%} when computed"
        return [_finding(f"samples influence each other in eval mode: a sample's output {found} alone", *_MIXED)]
    return []


def _alone(target_function: TargetFunction, samples: Samples, outputs: Tensor) -> float:
    """Returns by how much the outputs of each sample alone differ from those of all samples together."""
    return _difference(torch.cat([target_function.outputs(*r.inputs, *r.extra) for r in samples.split(1)]), outputs)


def _measured(measure: Callable[[], float]) -> float:
    """Returns what is measured; infinity if the model fails on a single sample, which also answers the question."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise_if_lost(error)
    return float("inf")


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


_RANDOM = (
    "the model draws random numbers, as F.dropout(x) does without training=self.training",
    "switch that off in eval mode, or explain a function without it: forward_fn=lambda model, x: ...",
)
_MIXED = (
    "methods perturb one sample and rely on the outputs of the others staying the same",
    "use the training statistics in eval mode (BatchNorm with track_running_stats=True, LayerNorm, GroupNorm), and set "
    "batch_first=True on layers that expect time or tokens first",
)


def _finding(fact: str, why: str, fix: str) -> Finding:
    return Finding("refused", f"{fact}; {why}", fix)


def _difference(a: Tensor, b: Tensor) -> float:
    scale = b.abs().max().item()
    return (a - b).abs().max().item() / scale if scale > 0 else (a - b).abs().max().item()


def baselines_of(samples: Samples) -> list[tuple[Tensor, ...]]:
    """Returns two baselines: zero, and the other samples at half their value (integers unchanged)."""
    halved = (x.roll(1, 0) * (0.5 if x.is_floating_point() else 1) for x in samples.inputs)
    return [tuple(torch.zeros_like(x) for x in samples.inputs), tuple(halved)]
