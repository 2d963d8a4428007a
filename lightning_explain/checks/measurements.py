"""Measurements on a few samples: are outputs reproducible, are samples independent?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isnan
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from lightning_explain.checks.findings import Finding, listed, refused
from lightning_explain.core.probe import Samples
from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.record import Record
from lightning_explain.distributed.collectives import raise_if_lost
from lightning_explain.engine.rules import in_precision
from lightning_explain.model.function import TargetFunction
from lightning_explain.model.inventory import ModuleInventory
from lightning_explain.model.reachable import is_hooks
from lightning_explain.model.targets import Target, choose

_DIFFERENT = 1e-3
# Factor on tolerances in 16 bits, which hold 2 to 3 digits.
_COARSE = 50.0


Outputs: TypeAlias = "Callable[..., Tensor]"


def alike(
    function: TargetFunction, record: Record, outputs: Tensor, target: Target, explained: Tensor
) -> list[Finding]:
    """Checks that samples have the same outputs in the recorded pass, among all samples, and one of them alone.

    Of a detector the explained outputs are compared: which of two detections with nearly equal scores comes first is up to rounding.

    Args:
        function: The model, inside the isolation.
        record: The record of a pass on at least two samples.
        outputs: Outputs ``(N, ...)`` of all samples of the probe from earlier passes, on the CPU.
        target: Which output is explained.
        explained: Their explained outputs ``(N,)``.

    Returns:
        A finding that refuses every method, or none.
    """
    tolerance = _DIFFERENT * (_COARSE if record.low_precision else 1)
    run: Outputs = function.outputs
    samples, seen = record.samples, record.outputs.detach()
    if function.detects:
        run, outputs, seen = partial(_explained, function, target), explained, record.chosen.detach()
        samples = replace(samples, extra=(*samples.extra, record.indices))
    count = min(len(outputs), len(seen))
    # Of three, the one in the middle feels what comes before it and what comes after it.
    alone = slice(1, 2) if len(samples) > 2 else slice(0, 2)

    def in_double() -> float:
        inputs, extra = (tuple(map(_double, part)) for part in (samples.inputs, samples.extra))
        double = replace(samples, inputs=inputs, extra=extra)
        return _alone(run, double, run(*double.inputs, *double.extra), alone)

    with torch.no_grad():
        apart = _measured(lambda: _alone(run, samples, seen, alone))
        worst = max(apart, _difference(outputs[:count].to(seen.device), seen[:count]))
        if worst <= tolerance:
            return []
        again = _measured(lambda: _difference(run(*samples.inputs, *samples.extra), seen))
        if again > tolerance:
            differ = f"differ by {again:.1%}" if again < float("inf") else "do not both succeed"
            why, fix = _cause(function.model, run, samples, tolerance)
            return [refused(f"two forward passes on the same samples in eval mode {differ}; {why}", fix)]
        if worst < float("inf"):
            # Where large numbers cancel, rounding alone differs by as much; not so in float64.
            alone = slice(0, len(samples))
            worst = min(worst, _measured(partial(in_precision, function, in_double, torch.float64)))
    if worst <= tolerance:
        return []
    found = "cannot be computed" if worst == float("inf") else f"differs by {worst:.1%} when computed"
    what = f"samples influence each other in eval mode: a sample's output {found} alone"
    fix = (
        "use the training statistics in eval mode (BatchNorm with track_running_stats=True, LayerNorm, GroupNorm), and set "
        "batch_first=True on layers that expect time or tokens first"
    )
    return [refused(f"{what}; methods perturb one sample and rely on the outputs of the others staying the same", fix)]


def _explained(function: TargetFunction, target: Target, *values: Any) -> Tensor:
    *inputs, indices = values
    return choose(function.outputs(*inputs), indices, target)


def _cause(model: nn.Module, run: Outputs, samples: Samples, tolerance: float) -> tuple[str, str]:
    """Why two forward passes on the same samples differ, and the fix: random numbers, or what the model keeps."""
    before = _state(model)

    def outputs(part: Samples) -> Tensor:
        with preserved_random_state(*ModuleInventory(model).generators):
            return run(*part.inputs, *part.extra)

    try:
        first, second = outputs(samples), outputs(samples)
    except RuntimeError as error:
        raise_if_lost(error)
        # What it keeps is of a pass on a single sample.
        for _ in range(2):
            outputs(samples[:1])
        equal = False
    else:
        equal = _difference(second, first) <= tolerance
    if equal:
        fix = (
            "switch that off in eval mode, or explain a function without it: forward_fn=lambda model, x: ... (of a VAE, one that decodes "
            "the mean)"
        )
        return "the model draws random numbers, as F.dropout(x) does without training=self.training", fix
    after, fix = (
        _state(model),
        "explain a function that starts afresh: forward_fn=lambda model, x: (model.reset(), model(x))[1]",
    )
    changed = [name for name in after if name not in before or not _same(before[name], after[name])]
    if changed:
        return f"the model keeps what it computes for the next pass: {listed(map(repr, changed))} changes", fix
    return (
        "with equal random numbers, and although no attribute of a module changes, so the model keeps something elsewhere",
        fix,
    )


def _state(model: nn.Module) -> dict[str, Any]:
    """A copy of every attribute of every module, by dotted name; without parameters, modules and hooks."""
    return {
        f"{name}.{key}".removeprefix("."): tree_map_only(Tensor, torch.clone, value)
        for name, module in model.named_modules()
        for key, value in {**vars(module), **module._buffers}.items()
        if not (key in ("_parameters", "_modules", "_buffers") or is_hooks(key))
    }


def _same(a: Any, b: Any) -> bool:
    (parts, form), (others, other_form) = tree_flatten(a), tree_flatten(b)
    return form == other_form and all(map(_equal, parts, others))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return a is b or bool(np.array_equal(a, b))


def _alone(run: Outputs, samples: Samples, outputs: Tensor, which: slice) -> float:
    """Returns by how much the outputs of some samples, each alone, differ from those of all samples together."""
    found = [run(*part.inputs, *part.extra) for part in samples[which].split(1)]
    return _difference(torch.cat(found), outputs[which])


def _measured(measure: Callable[[], float]) -> float:
    """Returns what is measured; infinity if the model fails on single samples, which also answers the question.

    Raises:
        RuntimeError: If it fails only the first time, which says nothing of samples.
    """
    failed: Exception | None = None
    for _ in range(2):
        try:
            found = measure()
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:
            raise_if_lost(error)
            failed = error
            continue
        if failed is not None:
            raise RuntimeError(f"the model failed on a single sample, but not again: {failed}") from failed
        return found
    return float("inf")


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _difference(a: Tensor, b: Tensor) -> float:
    scale, largest = b.abs().max().item(), (a - b).abs().max().item()
    # NaN outputs, of which the samples are named elsewhere, say nothing here.
    return 0.0 if isnan(largest) else largest / scale if scale > 0 else largest
