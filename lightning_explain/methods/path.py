"""Methods that sum gradients on paths from a baseline: samples and baselines in, input-shaped maps out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, Evaluation, Reducer
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple, bare
from lightning_explain.engine.noise import Scale, narrowed, wide
from lightning_explain.engine.paths import Line, RandomLine
from lightning_explain.methods._adaptive import FIRST, refined
from lightning_explain.methods._base import OnPath, SumsUp, added, each, sum_of_evaluations


@dataclass(frozen=True)
class IntegratedGradients(SumsUp, OnPath):
    r"""Gradient integrated from a baseline to the input (Sundararajan et al. 2017; ``captum.attr.IntegratedGradients``).

    Formula: \phi_i = (x_i - b_i) \int_0^1 \frac{\partial f(b + \alpha (x - b))}{\partial x_i}\,d\alpha
    Cost: n_steps forward, n_steps backward; with ``"auto"`` from 9 to 1025, as each sample needs.
    Not for: features that equal the baseline, which get zero (black objects on ``"black"``); few ``n_steps`` on a steep
        network: check with Completeness.

    Args:
        n_steps: Points on the path, or ``"auto"``: adds points for each sample by the trapezoidal rule (``method`` is
            ignored) until the map adds up. ``Report.n_steps`` holds the points each sample took.
        method: Quadrature rule: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, or
            ``riemann_trapezoid``.
        baselines: Start of the path: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or ``"blur"``.
        multiply_by_inputs: Multiply by (input - baseline); the map then sums to f(x) - f(baseline).
        tolerance: Largest error of the sum relative to f(x) - f(baseline), with ``n_steps="auto"``.

    Raises:
        ValueError: If ``n_steps``, ``method``, ``baselines`` or ``tolerance`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.IntegratedGradients(n_steps=16)], metrics=[])
        >>> report.attributions["integrated_gradients"].shape
        torch.Size([2, 3, 8, 8])
    """

    n_steps: int | str = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    multiply_by_inputs: bool = True
    tolerance: float = 0.01

    reads = frozenset({(PLAIN, None)})

    @property
    def path(self) -> Line | None:
        """The straight line from the baseline; ``None`` with ``"auto"``, where each sample has its own points."""
        return Line(self.n_steps, self.method, self.baselines) if isinstance(self.n_steps, int) else None

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""
        total: tuple[Tensor, ...] = ()
        for _ in range(int(self.n_steps)):
            evaluation = yield
            total = added(total, tuple(g * evaluation.point.weight for g in evaluation.gradient()))
        return each(torch.mul, total, evaluation.point.change) if self.multiply_by_inputs else total

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Input-shaped, in units of output."""
        if self.path is not None:
            return super().attribute(explained, samples)

        def mean(some: Samples, n_steps: int, rule: str) -> tuple[Tensor, ...]:
            return as_tuple(_WithGap(n_steps, rule, self.baselines).attribute(explained, some))

        starts = explained.baseline(self.baselines, samples)
        change = tuple(wide(x - b) for x, b in zip(samples.inputs, starts, strict=True))
        *first, gap = mean(samples, FIRST + 1, "riemann_trapezoid")
        return bare(narrowed(refined(self, explained, samples, first, change, gap, mean), samples))


class _WithGap(IntegratedGradients):
    """Weighted sum of the gradients on the line, and the difference between the outputs at its last and first points."""

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Returns one gradient sum for each input, then the difference, ``(N,)``."""
        total: tuple[Tensor, ...] = ()
        outputs = []
        for _ in range(int(self.n_steps)):
            evaluation = yield
            total = added(total, tuple(wide(g) * evaluation.point.weight for g in evaluation.gradient()))
            outputs.append(wide(evaluation.output))
        return (*total, outputs[-1] - outputs[0])


@dataclass(frozen=True)
class GradientShap(SumsUp, OnPath):
    r"""Mean gradient between random baselines and the noisy input (Lundberg & Lee 2017; ``captum.attr.GradientShap``).

    Follows Captum's formula with random draws keyed by sample id: every explanation repeats the same draws, so a curve
    moves only when the model changes.

    Formula: \phi_i = \mathbb{E}_{b,\alpha,\varepsilon}\left[(x_i + \varepsilon_i - b_i)\,\frac{\partial f(b + \alpha
        (x + \varepsilon - b))}{\partial x_i}\right]
    Cost: n_samples forward, n_samples backward.
    Not for: single pixels at few ``n_samples``, because the map is a random mean: check with Completeness; baselines
        that are not typical of the data.

    Args:
        n_samples: Random points for each sample.
        stdevs: Standard deviation of the Gaussian noise added to the input, as in :class:`NoiseTunnel`. Default: none.
        baselines: Set of K baselines to draw from, as in :class:`DeepLiftShap`.
        multiply_by_inputs: Multiply by (input - baseline).

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.GradientShap(n_samples=8)], metrics=[])
        >>> report.attributions["gradient_shap"].shape
        torch.Size([2, 3, 8, 8])
    """

    takes_distribution = True

    n_samples: int = 5
    stdevs: Scale = 0.0
    baselines: Baseline = "probe"
    multiply_by_inputs: bool = True

    reads = frozenset({(PLAIN, None)})

    @property
    def path(self) -> RandomLine:
        """Random points between baselines and the noisy input."""
        return RandomLine(self.n_samples, self.stdevs, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Input-shaped, in units of output."""

        def one(evaluation: Evaluation) -> tuple[Tensor, ...]:
            found = each(wide, evaluation.gradient())
            return each(torch.mul, found, evaluation.point.change) if self.multiply_by_inputs else found

        total = yield from sum_of_evaluations(self.n_samples, one)
        return narrowed(tuple(t / self.n_samples for t in total), samples)
