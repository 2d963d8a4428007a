"""Metrics, as a user would call Captum by hand."""

from __future__ import annotations

from collections.abc import Callable

import captum.metrics as cm
from torch import Tensor, nn


def infidelity(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    attribution: Tensor,
    perturbations: Tensor,
    normalize: bool,
    divided: bool = False,
) -> Tensor:
    """``captum.metrics.infidelity`` with given perturbations ``(N, draws, ...)``.

    ``divided``: with ``infidelity_perturb_func_decorator``, which divides the perturbations by the input.
    """
    n, count = perturbations.shape[:2]

    @cm.infidelity_perturb_func_decorator(divided)
    def perturb(inputs: Tensor) -> Tensor:
        return inputs - perturbations.reshape(n * count, *x.shape[1:])

    return cm.infidelity(model, perturb, x, attribution, target=y, n_perturb_samples=count, normalize=normalize)


def sensitivity_max(
    explain: Callable[..., Tensor], x: Tensor, y: Tensor, points: Tensor, norm_ord: str | float = "fro"
) -> Tensor:
    """``captum.metrics.sensitivity_max`` with given perturbed samples ``(N, draws, ...)``."""
    n, count = points.shape[:2]

    def explanation(inputs: Tensor | tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, ...]:
        return (explain(inputs[0] if isinstance(inputs, tuple) else inputs, target),)

    return cm.sensitivity_max(
        explanation,
        x,
        perturb_func=lambda inputs, radius: points.reshape(n * count, *x.shape[1:]),
        n_perturb_samples=count,
        norm_ord=norm_ord,
        target=y,
    )
