"""Measurements on a few samples: are outputs reproducible, are samples independent, does DeepLIFT's map add up?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain.checks.findings import Finding
from lightning_explain.core.probe import Samples, bare
from lightning_explain.distributed.collectives import raise_if_lost
from lightning_explain.model.function import TargetFunction

_DIFFERENT = 1e-3
_PARTS = 1e-4
_OUTPUT = 1e-5
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
    with torch.no_grad():
        again = _difference(target_function.outputs(*samples.inputs, *samples.extra), outputs)
        alone = float("inf")
        # Some models fail on a single sample, which also answers the question.
        try:
            alone = _difference(
                torch.cat([target_function.outputs(*r.inputs, *r.extra) for r in samples.split(1)]), outputs
            )
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            raise_if_lost(error)
    if again > tolerance:
        return [_finding(f"two forward passes on the same samples in eval mode differ by {again:.1%}", *_RANDOM)]
    if alone > tolerance:
        found = "cannot be computed" if alone == float("inf") else f"differs by {alone:.1%} when computed"
        return [_finding(f"samples influence each other in eval mode: a sample's output {found} alone", *_MIXED)]
    return []


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


def completeness(function: nn.Module, samples: Samples, baselines: Sequence[tuple[Tensor, ...]], coarse: bool) -> float:
    """Measures the largest error of DeepLIFT's sum over samples, relative to f(x) - f(baseline).

    Args:
        function: ``function(*inputs, *extra) -> (N,)``, canonized.
        samples: N samples.
        baselines: Baselines in the shape of the samples' inputs.
        coarse: Whether the model computes in 16 bits.
    """
    return max(_completeness(function, samples, baseline, coarse) for baseline in baselines)


def baselines_of(samples: Samples) -> list[tuple[Tensor, ...]]:
    """Returns two baselines: zero, and the other samples at half their value (integers unchanged)."""
    halved = (x.roll(1, 0) * (0.5 if x.is_floating_point() else 1) for x in samples.inputs)
    return [tuple(torch.zeros_like(x) for x in samples.inputs), tuple(halved)]


def _completeness(function: nn.Module, samples: Samples, baselines: tuple[Tensor, ...], coarse: bool) -> float:
    """Returns the largest error over samples, relative to f(x) - f(baseline), beyond what rounding explains."""
    points = tuple(x.detach().clone() for x in samples.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = captum.DeepLift(function).attribute(
            bare(points), bare(baselines), additional_forward_args=samples.extra
        )
    parts = [p.detach().double().flatten(1) for p in (found if isinstance(found, tuple) else (found,))]
    with torch.no_grad():
        ends = [function(*at.inputs, *at.extra).double() for at in (samples, replace(samples, inputs=baselines))]
    gap = ends[0] - ends[1]
    # Sums of large parts and small differences of large outputs carry the rounding error of their operands.
    sizes = [ends[0].abs() * _OUTPUT, ends[1].abs() * _OUTPUT, *(p.abs().sum(1) * _PARTS for p in parts)]
    rounding = torch.stack(sizes).sum(0) * (_COARSE if coarse else 1)
    error = (torch.stack([p.sum(1) for p in parts]).sum(0) - gap).abs()
    beyond = (error - rounding).clamp(min=0) / gap.abs().clamp(min=torch.finfo(torch.float32).tiny)
    return float(beyond.max())
