"""Methods that add up gradients along lines from a baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.baselines import DISTRIBUTIONS, check_baseline
from lightning_explain.methods._captum import attribute, check_positive, freeze, needs_gradient
from lightning_explain.methods._cloud import Stdevs, add_noise, check_stdevs, mean_over_draws, narrowed
from lightning_explain.types import Attribution, Baseline, Rows, Subject, bare

_RULES = ("riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre")


@dataclass(frozen=True)
class IntegratedGradients:
    """The gradient integrated from a baseline to the input (Sundararajan et al. 2017; ``captum.attr.IntegratedGradients``).

    Args:
        n_steps: Points on the line; cost: ``n_steps`` forward and backward rows for each row.
        method: Quadrature: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, ``riemann_trapezoid``.
        baselines: Where the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline), so that the map sums to f(x) - f(baseline).

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.
    """

    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    multiply_by_inputs: bool = True

    def __post_init__(self) -> None:
        freeze(self)
        check_positive("IntegratedGradients(n_steps", self.n_steps)
        check_baseline(self.baselines)
        if self.method not in _RULES:
            raise ValueError(f"IntegratedGradients(method={self.method!r}); allowed: {', '.join(_RULES)}.")

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "IntegratedGradients")
        explainer = captum.IntegratedGradients(subject.forward, multiply_by_inputs=self.multiply_by_inputs)
        return attribute(
            explainer.attribute,
            rows,
            baselines=bare(subject.baseline(self.baselines, rows)),
            n_steps=self.n_steps,
            method=self.method,
            internal_batch_size=max(subject.limit, len(rows)),
        )


@dataclass(frozen=True)
class GradientShap:
    """Gradients at random points between random baselines and the noisy input (Lundberg & Lee 2017; ``captum.attr.GradientShap``).

    Captum's formula with this package's own draws, which belong to the row, so that curves move only because the model did.

    Args:
        n_samples: Random points for each row; cost: as many forward and backward rows.
        stdevs: Standard deviation of the noise added to the input, one number or one for each input.
        baselines: The set baselines are drawn from: a tensor ``(K, ...)``, ``"probe"``, or a tuple such as ``("zero", "probe")``.
        multiply_by_inputs: Multiply by (input - baseline).

    Raises:
        ValueError: If an argument is not allowed.
    """

    n_samples: int = 5
    stdevs: Stdevs = 0.0
    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True

    def __post_init__(self) -> None:
        freeze(self)
        check_positive("GradientShap(n_samples", self.n_samples)
        check_stdevs("GradientShap", self.stdevs)
        check_baseline(self.baselines, DISTRIBUTIONS)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "GradientShap")
        explainer = captum.Saliency(subject.forward)
        references = subject.distribution(self.baselines, rows)

        def one(part: Rows, indices: Tensor) -> tuple[Tensor, ...]:
            noisy = add_noise(subject, part, indices, self.stdevs)
            u = subject.draws.uniform("baseline", part, indices, part.inputs[0].new_empty(len(part)))
            weight = subject.draws.uniform("coefficient", part, indices, part.inputs[0].new_empty(len(part)))
            chosen = tuple(r[(u * len(r)).long().clamp(max=len(r) - 1)] for r in references)
            points = tuple(torch.lerp(b, x, _column(weight, x)) for b, x in zip(chosen, noisy, strict=True))
            found = attribute(explainer.attribute, part.at(points), abs=False)
            gradients = found if isinstance(found, tuple) else (found,)
            if not self.multiply_by_inputs:
                return gradients
            return tuple(g * (x - b) for g, x, b in zip(gradients, noisy, chosen, strict=True))

        return bare(narrowed(mean_over_draws(subject, rows, self.n_samples, one, powers=(1,))[0], rows))


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
