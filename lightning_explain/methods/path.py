"""Methods that add up gradients along lines from a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from captum import attr as captum
from torch import Tensor

from lightning_explain.baselines import DISTRIBUTIONS, check_baseline
from lightning_explain.methods._captum import attribute, check_integral, check_positive, freeze, needs_gradient
from lightning_explain.methods._cloud import Stdevs, add_noise, check_stdevs, column, mean_over_draws, narrowed
from lightning_explain.types import Attribution, Baseline, Reference, Rows, Subject, as_tuple, bare


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
        check_integral("IntegratedGradients", self.n_steps, self.method)
        check_baseline(self.baselines)

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return Reference(self.baselines) if self.multiply_by_inputs else None

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


class Line(NamedTuple):
    """For each row a noisy input, a baseline, and a point between them."""

    noisy: tuple[Tensor, ...]
    chosen: tuple[Tensor, ...]
    points: tuple[Tensor, ...]


def random_line(subject: Subject, rows: Rows, indices: Tensor, stdevs: Stdevs, references: tuple[Tensor, ...]) -> Line:
    """The draws of GradientShap and of its relatives at layers and neurons.

    Args:
        subject: Has the draws.
        rows: N rows.
        indices: ``(N,)``: which draw of its row each one is.
        stdevs: Standard deviation of the noise at the input.
        references: The set baselines are drawn from, each ``(K, ...)``.
    """
    noisy = add_noise(subject, rows, indices, stdevs)
    like = rows.inputs[0].new_empty(len(rows))
    u, weight = (subject.draws.uniform(purpose, rows, indices, like) for purpose in ("baseline", "coefficient"))
    chosen = tuple(r[(u * len(r)).long().clamp(max=len(r) - 1)] for r in references)
    # In the order of Captum's operations, for a point that is rounded otherwise may lie on the other side of a kink.
    coefficients = [column(weight, x) for x in noisy]
    points = tuple(x * c + b * (1 - c) for x, c, b in zip(noisy, coefficients, chosen, strict=True))
    return Line(noisy, chosen, points)


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

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to, in expectation."""
        return Reference(self.baselines, distribution=True) if self.multiply_by_inputs else None

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        needs_gradient(rows, "GradientShap")
        explainer = captum.Saliency(subject.forward)
        references = subject.distribution(self.baselines, rows)

        def one(part: Rows, indices: Tensor) -> tuple[Tensor, ...]:
            line = random_line(subject, part, indices, self.stdevs, references)
            gradients = as_tuple(attribute(explainer.attribute, part.at(line.points), abs=False))
            if not self.multiply_by_inputs:
                return gradients
            return tuple(g * (x - b) for g, x, b in zip(gradients, line.noisy, line.chosen, strict=True))

        return bare(narrowed(mean_over_draws(subject, rows, self.n_samples, one, powers=(1,))[0], rows))
