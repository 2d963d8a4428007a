"""Layer methods that sum gradients on paths: samples and baselines in, one value for each unit of a layer out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Reference
from lightning_explain.core.points import PLAIN, Reducer
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple, bare
from lightning_explain.core.validation import check_integral, check_number, check_whole
from lightning_explain.engine.baselines import DISTRIBUTIONS, check_baseline
from lightning_explain.engine.captum_adapter import attribute, needs_gradient
from lightning_explain.engine.noise import Stdevs, check_stdevs, mean_over_draws, narrowed, wide
from lightning_explain.engine.paths import Line, random_line
from lightning_explain.methods._adaptive import AUTO, FIRST, refined
from lightning_explain.methods._base import AtLayer, OnPath, added, each, sum_of_evaluations
from lightning_explain.methods.layer import LayerActivation, Replaceable
from lightning_explain.modalities.image import Reshape
from lightning_explain.model.hooks import at_layer


@dataclass(frozen=True)
class LayerConductance(AtLayer, OnPath):
    """Flow of f(x) - f(baseline) through each unit of a layer (Dhamdhere et al. 2018; ``captum.attr.LayerConductance``).

    Cost: n_steps + 1 forward, n_steps + 1 backward.
    Not for: layers beside a skip connection: the map leaves out what bypasses the layer; few ``n_steps``: check with
        Completeness.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        n_steps: Steps of the path at the input.
        method: Quadrature rule: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, or
            ``riemann_trapezoid``.
        baselines: Start of the path: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or ``"blur"``.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerConductance("conv", n_steps=8)], metrics=[])
        >>> report.attributions["layer_conductance"].shape
        torch.Size([2, 4, 8, 8])
    """

    reaches_input: ClassVar[bool] = True
    multiplies_by_inputs = True

    layer: str | None = None
    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    @property
    def completeness(self) -> Reference | None:
        """What the map promises to sum to; ``None`` if it promises nothing."""
        return Reference(self.baselines)

    @property
    def path(self) -> Line:
        """The straight line at the input, with one point more than ``n_steps``."""
        return Line(self.n_steps + 1, self.method, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped as the layer's output, in units of the explained output."""
        total: tuple[Tensor, ...] | None = None
        former = yield
        for _ in range(self.n_steps):
            evaluation = yield
            steps = each(torch.sub, evaluation.activation(self.site), former.activation(self.site))
            total = added(total, each(torch.mul, steps, former.gradient(PLAIN, self.site)))
            former = evaluation
        assert total is not None
        return total


@dataclass(frozen=True)
class InternalInfluence(AtLayer, OnPath):
    """Gradient of a layer averaged over a path at the input (Leino et al. 2018; ``captum.attr.InternalInfluence``).

    Cost: n_steps forward, n_steps backward.
    Not for: how much a unit contributes: a gradient can be large at an inactive unit; maps that should add up.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        n_steps: Points on the path at the input.
        method: Quadrature rule: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, or
            ``riemann_trapezoid``.
        baselines: Start of the path: ``None`` (zero), a number, a tensor, ``"black"``, ``"mean"``, or ``"blur"``.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.InternalInfluence("conv", n_steps=8)], metrics=[])
        >>> report.attributions["internal_influence"].shape
        torch.Size([2, 4, 8, 8])
    """

    reaches_input: ClassVar[bool] = True

    layer: str | None = None
    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    @property
    def path(self) -> Line:
        """The straight line at the input."""
        return Line(self.n_steps, self.method, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped as the layer's output, in units of the explained output per unit of activation."""
        return sum_of_evaluations(
            self.n_steps,
            lambda evaluation: tuple(g * evaluation.point.weight for g in evaluation.gradient(PLAIN, self.site)),
        )


@dataclass(frozen=True)
class LayerIntegratedGradients(AtLayer):
    """Integrated gradients of a layer's activations (Sundararajan et al. 2017; ``captum.attr.LayerIntegratedGradients``).

    The path runs in the layer's space: from the activation at the baseline to the activation at the sample.

    Cost: n_steps + 2 forward, n_steps backward; with ``"auto"`` from 9 to 1025 points, as each sample needs.
    Not for: comparison with IntegratedGradients: its path passes through activations that no input may produce; layers
        that run more than once (refused).

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        n_steps: Points on the path, or ``"auto"``: adds points for each sample by the trapezoidal rule (``method`` is
            ignored) until the map sums to what the layer changes in f. ``Report.n_steps`` holds the points each sample
            took.
        method: Quadrature rule: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, or
            ``riemann_trapezoid``.
        baselines: Input whose activation is the start of the path: ``None`` (zero), a number, a tensor, ``"black"``,
            ``"mean"``, or ``"blur"``.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        multiply_by_inputs: Multiply by the difference between the activations at the sample and at the baseline; the
            map then sums to f(x) - f(baseline).
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.
        tolerance: Largest relative error of the sum with ``n_steps="auto"``.

    Raises:
        ValueError: If ``n_steps``, ``method``, ``baselines`` or ``tolerance`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerIntegratedGradients("conv", n_steps=8)], metrics=[])
        >>> report.attributions["layer_integrated_gradients"].shape
        torch.Size([2, 4, 8, 8])
    """

    replaces_layer: ClassVar[bool] = True
    tensor_layers_only: ClassVar[bool] = True

    layer: str | None = None
    n_steps: int | str = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None
    tolerance: float = 0.01

    @property
    def multiplies_by_inputs(self) -> bool:
        """As its argument says."""
        return self.multiply_by_inputs

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        check_number("LayerIntegratedGradients", "tolerance", self.tolerance, "0.01")

    @property
    def completeness(self) -> Reference | None:
        """What the map promises to sum to; ``None`` if it promises nothing."""
        return Reference(self.baselines) if self.multiply_by_inputs else None

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        if isinstance(self.n_steps, int):
            return self._along_line(explained, samples, self.n_steps, self.method, self.multiply_by_inputs)
        return bare(self._refined(explained, samples))

    def _along_line(
        self, explained: ExplainedFunction, samples: Samples, n_steps: int, method: str, multiply: bool
    ) -> Attribution:
        layer = Replaceable(explained.layer(self.layer))
        explainer = captum.LayerIntegratedGradients(explained.forward, layer, multiply_by_inputs=multiply)
        return attribute(
            explainer.attribute,
            samples,
            baselines=bare(explained.baseline(self.baselines, samples)),
            n_steps=n_steps,
            method=method,
            internal_batch_size=max(explained.limit, len(samples)),
            attribute_to_layer_input=self.attribute_to_layer_input,
        )

    def _refined(self, explained: ExplainedFunction, samples: Samples) -> tuple[Tensor, ...]:
        def mean(some: Samples, n_steps: int, rule: str) -> tuple[Tensor, ...]:
            return each(wide, as_tuple(self._along_line(explained, some, n_steps, rule, multiply=False)))

        level = LayerActivation(self.layer, self.attribute_to_layer_input)
        begun = samples.at(explained.baseline(self.baselines, samples))
        there, here = (as_tuple(level.attribute(explained, at)) for at in (begun, samples))
        # The weights of Captum's trapezoidal rule sum to (n - 1) / n.
        first = [t * (FIRST + 1) / FIRST for t in mean(samples, FIRST + 1, "riemann_trapezoid")]
        change = tuple(wide(x - b) for x, b in zip(here, there, strict=True))
        gap = wide(explained.evaluate(samples) - self._replaced(explained, samples, there))
        middles = partial(mean, rule="riemann_middle")
        return narrowed(refined(self, explained, samples, first, change, gap, middles), samples)

    def _replaced(self, explained: ExplainedFunction, samples: Samples, values: tuple[Tensor, ...]) -> Tensor:
        """F at the samples with the layer's activation replaced by ``values``, ``(N,)``; what bypasses the layer is unchanged."""

        def replacement(passed: Any) -> Any:
            copies = tuple(value.clone() for value in values)
            return bare(copies) if isinstance(passed, Tensor) else copies

        with at_layer(explained.layer(self.layer), self.attribute_to_layer_input, replacement), torch.no_grad():
            return explained.forward(*explained.in_memory_layout(samples.inputs), *samples.extra)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LayerGradientShap(AtLayer):
    """GradientShap of a layer's activations (Lundberg & Lee 2017; ``captum.attr.LayerGradientShap``).

    Follows Captum's formula with random draws keyed by sample id: every explanation repeats the same draws, so a curve
    moves only when the model changes.

    Cost: 3 * n_samples forward, n_samples backward; without ``multiply_by_inputs`` n_samples forward.
    Not for: sums over a layer that is not linear in the input: they miss f(x) - f(baseline) at any ``n_samples``, use
        LayerConductance; single units at few ``n_samples``.

    Args:
        layer: Dotted name of the layer. Default: the last layer with a feature map.
        n_samples: Random points for each sample.
        stdevs: Standard deviation of the Gaussian noise added to the input: one number, or one for each input.
        baselines: Set of K baselines to draw from: a tensor ``(K, ...)``, ``"probe"`` (the probe samples), or a tuple
            such as ``("zero", "probe")``.
        attribute_to_layer_input: Attribute to the layer's input instead of its output.
        multiply_by_inputs: Multiply by the difference between the activations at the noisy input and at the baseline.
        reshape: How to arrange the layer's map on the image (``lightning_explain.modalities.image.Reshape``). Default:
            inferred from its shape.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerGradientShap("conv")], metrics=[])
        >>> report.attributions["layer_gradient_shap"].shape
        torch.Size([2, 4, 8, 8])
    """

    reaches_input: ClassVar[bool] = True
    takes_distribution: ClassVar[bool] = True
    tensor_layers_only: ClassVar[bool] = True

    layer: str | None = None
    n_samples: int = 5
    stdevs: Stdevs = 0.0
    baselines: Baseline = "probe"
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    @property
    def multiplies_by_inputs(self) -> bool:
        """As its argument says."""
        return self.multiply_by_inputs

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("LayerGradientShap", "n_samples", self.n_samples)
        check_stdevs("LayerGradientShap", self.stdevs)
        check_baseline(self.baselines, DISTRIBUTIONS)

    @property
    def completeness(self) -> Reference | None:
        """What the map promises to sum to in expectation; ``None`` if it promises nothing."""
        return Reference(self.baselines, distribution=True) if self.multiply_by_inputs else None

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        needs_gradient(samples, "LayerGradientShap")
        layer, where = explained.layer(self.layer), {"attribute_to_layer_input": self.attribute_to_layer_input}
        slope = captum.LayerGradientXActivation(explained.forward, layer, multiply_by_inputs=False)
        level = captum.LayerActivation(explained.forward, layer)
        references = explained.distribution(self.baselines, samples)

        def at(explainer: Any, part: Samples, points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return as_tuple(attribute(explainer.attribute, part.at(points), **where))

        def one(part: Samples, indices: Tensor) -> tuple[Tensor, ...]:
            noisy, chosen, points = random_line(explained, part, indices, self.stdevs, references)
            gradients = at(slope, part, points)
            if not self.multiply_by_inputs:
                return gradients
            ends = zip(at(level, part, noisy), at(level, part, chosen), strict=True)
            return tuple(g * (x - b) for g, (x, b) in zip(gradients, ends, strict=True))

        return bare(narrowed(mean_over_draws(explained, samples, self.n_samples, one, powers=(1,))[0], samples))


_Line = LayerConductance | InternalInfluence | LayerIntegratedGradients


def _check(method: _Line) -> None:
    also = (AUTO,) if isinstance(method, LayerIntegratedGradients) else ()
    check_integral(type(method).__name__, method.n_steps, method.method, also)
    check_baseline(method.baselines)
