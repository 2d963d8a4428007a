"""What structure cannot tell is measured on a few samples: do forwards agree, do samples, does DeepLIFT add up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain.checks.findings import Finding
from lightning_explain.core.probe import Samples, bare
from lightning_explain.model.function import TargetFunction

_DIFFERENT = 1e-3
_PARTS = 1e-4
_OUTPUT = 1e-5
# Numbers of 16 bits have 2 to 3 digits.
_COARSE = 50.0


def agreement(target_function: TargetFunction, samples: Samples, outputs: Tensor, coarse: bool) -> list[Finding]:
    """Whether a second forward, and one of each sample alone, give the outputs again.

    Args:
        target_function: The model, inside the guard.
        samples: At least two.
        outputs: Of a first forward.
        coarse: Whether it computes in 16 bits.
    """
    tolerance = _DIFFERENT * (_COARSE if coarse else 1)
    with torch.no_grad():
        again = _difference(target_function.outputs(*samples.inputs, *samples.extra), outputs)
        alone = float("inf")
        # Some models cannot be given a single sample at all, which is an answer, too.
        with suppress(ValueError, RuntimeError):
            alone = _difference(
                torch.cat([target_function.outputs(*r.inputs, *r.extra) for r in samples.split(1)]), outputs
            )
    if again > tolerance:
        return [_finding(f"two forwards of the same samples in eval mode differ by {again:.1%}", *_RANDOM)]
    if alone > tolerance:
        found = "cannot be computed" if alone == float("inf") else f"differs by {alone:.1%} when computed"
        return [_finding(f"samples influence each other in eval mode: a sample's output {found} alone", *_MIXED)]
    return []


_RANDOM = (
    "something is drawn at random, such as F.dropout(x) without training=self.training",
    "switch it off in eval mode, or explain a function without it: forward_fn=lambda model, x: ...",
)
_MIXED = (
    "methods change samples one by one and expect the others to stay as they are",
    "use statistics of training in eval mode (BatchNorm with track_running_stats=True, LayerNorm, GroupNorm), and give layers "
    "that take time or tokens first batch_first=True",
)


def _finding(fact: str, why: str, fix: str) -> Finding:
    return Finding("refused", f"{fact}; {why}", fix)


def _difference(a: Tensor, b: Tensor) -> float:
    scale = b.abs().max().item()
    return (a - b).abs().max().item() / scale if scale > 0 else (a - b).abs().max().item()


def completeness(function: nn.Module, samples: Samples, baselines: Sequence[tuple[Tensor, ...]], coarse: bool) -> float:
    """By how much DeepLIFT's map misses what the function changes between the samples and the baselines: the worst, relative to it.

    Args:
        function: ``function(*inputs, *extra) -> (N,)``, inside what is canonized.
        samples: N samples.
        baselines: Each of the samples' shape.
        coarse: Whether it computes in 16 bits.
    """
    return max(_completeness(function, samples, baseline, coarse) for baseline in baselines)


def baselines_of(samples: Samples) -> list[tuple[Tensor, ...]]:
    """Two to compare with: zero, and other samples of the probe."""
    halved = (x.roll(1, 0) * (0.5 if x.is_floating_point() else 1) for x in samples.inputs)
    return [tuple(torch.zeros_like(x) for x in samples.inputs), tuple(halved)]


def _completeness(function: nn.Module, samples: Samples, baselines: tuple[Tensor, ...], coarse: bool) -> float:
    """The largest error of a sample, relative to its gap, beyond what rounding explains."""
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
    # A sum of large parts, or a small difference of large outputs, is no more exact than they are.
    sizes = [ends[0].abs() * _OUTPUT, ends[1].abs() * _OUTPUT, *(p.abs().sum(1) * _PARTS for p in parts)]
    rounding = torch.stack(sizes).sum(0) * (_COARSE if coarse else 1)
    error = (torch.stack([p.sum(1) for p in parts]).sum(0) - gap).abs()
    beyond = (error - rounding).clamp(min=0) / gap.abs().clamp(min=torch.finfo(torch.float32).tiny)
    return float(beyond.max())
