"""Layer methods that add up gradients along lines from a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from captum import attr as captum
from torch import Tensor

from lightning_explain.baselines import DISTRIBUTIONS, check_baseline
from lightning_explain.maps import Reshape
from lightning_explain.methods._captum import (
    attribute,
    check_integral,
    check_positive,
    in_pieces,
    needs_gradient,
)
from lightning_explain.methods._cloud import Stdevs, check_stdevs, mean_over_draws, narrowed
from lightning_explain.methods._layer import AtLayer
from lightning_explain.methods.layer import Replaceable
from lightning_explain.methods.path import random_line
from lightning_explain.types import Attribution, Baseline, Reference, Rows, Subject, as_tuple, bare


@dataclass(frozen=True)
class LayerConductance(AtLayer):
    """How much of f(x) - f(baseline) flows through each unit of a layer (Dhamdhere et al. 2018; ``captum.attr.LayerConductance``).

    It takes differences between neighboring points, so that even ``limit=1`` sends two rows at a time.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        n_steps: Steps on the line at the input; cost: about ``n_steps + 1`` forward and backward rows for each row, more where
            few points fit into a pass, for neighboring passes share a point.
        method: Quadrature: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, ``riemann_trapezoid``.
        baselines: Where the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.
    """

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
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return Reference(self.baselines)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        needs_gradient(rows, "LayerConductance")
        explainer = captum.LayerConductance(subject.forward, subject.layer(self.layer))
        return in_pieces(rows, subject.limit // 2, lambda part: _along_line(self, explainer, subject, part, least=2))


@dataclass(frozen=True)
class InternalInfluence(AtLayer):
    """A layer's gradient averaged along the line at the input (Leino et al. 2018; ``captum.attr.InternalInfluence``).

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        n_steps: Points on the line at the input; cost: ``n_steps`` forward and backward rows for each row.
        method: Quadrature: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, ``riemann_trapezoid``.
        baselines: Where the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.
    """

    layer: str | None = None
    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output per unit of activation."""
        needs_gradient(rows, "InternalInfluence")
        explainer = captum.InternalInfluence(subject.forward, subject.layer(self.layer))
        return _along_line(self, explainer, subject, rows)


@dataclass(frozen=True)
class LayerIntegratedGradients(AtLayer):
    """Integrated gradients along a line between activations of a layer (``captum.attr.LayerIntegratedGradients``).

    The line runs in the layer's space, not at the input, from the activation at the baseline to that at the row.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        n_steps: Points on the line; cost: ``n_steps`` forward and backward rows for each row, and two forward rows.
        method: Quadrature: ``gausslegendre``, ``riemann_right``, ``riemann_left``, ``riemann_middle``, ``riemann_trapezoid``.
        baselines: The input at whose activation the line begins: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        multiply_by_inputs: Multiply by the difference of the activations, so that the map sums to f(x) - f(baseline).
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.
    """

    layer: str | None = None
    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to."""
        return Reference(self.baselines) if self.multiply_by_inputs else None

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        layer = Replaceable(subject.layer(self.layer))
        explainer = captum.LayerIntegratedGradients(subject.forward, layer, multiply_by_inputs=self.multiply_by_inputs)
        return _along_line(self, explainer, subject, rows)


@dataclass(frozen=True)
class LayerGradientShap(AtLayer):
    """GradientShap of a layer's activations (Lundberg & Lee 2017; ``captum.attr.LayerGradientShap``).

    Captum's formula with this package's own draws, which belong to the row, so that curves move only because the model did.

    Args:
        layer: Dotted name of the layer; by default the last one with a feature map.
        n_samples: Random points for each row; cost: as many backward and three times as many forward rows.
        stdevs: Standard deviation of the noise added to the input, one number or one for each input.
        baselines: The set baselines are drawn from: a tensor ``(K, ...)``, ``"probe"``, or a tuple such as ``("zero", "probe")``.
        attribute_to_layer_input: Explain what goes into the layer instead of what comes out.
        multiply_by_inputs: Multiply by the difference of the activations at the noisy input and at the baseline.
        reshape: How the map lies on the image (``lightning_explain.maps.Reshape``); by default as its shape says.

    Raises:
        ValueError: If an argument is not allowed.
    """

    layer: str | None = None
    n_samples: int = 5
    stdevs: Stdevs = 0.0
    baselines: Baseline = "probe"
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("LayerGradientShap(n_samples", self.n_samples)
        check_stdevs("LayerGradientShap", self.stdevs)
        check_baseline(self.baselines, DISTRIBUTIONS)

    @property
    def reference(self) -> Reference | None:
        """What the map promises to add up to, in expectation."""
        return Reference(self.baselines, distribution=True) if self.multiply_by_inputs else None

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        needs_gradient(rows, "LayerGradientShap")
        layer, where = subject.layer(self.layer), {"attribute_to_layer_input": self.attribute_to_layer_input}
        slope = captum.LayerGradientXActivation(subject.forward, layer, multiply_by_inputs=False)
        level = captum.LayerActivation(subject.forward, layer)
        references = subject.distribution(self.baselines, rows)

        def at(explainer: Any, part: Rows, points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return as_tuple(attribute(explainer.attribute, part.at(points), **where))

        def one(part: Rows, indices: Tensor) -> tuple[Tensor, ...]:
            line = random_line(subject, part, indices, self.stdevs, references)
            gradients = at(slope, part, line.points)
            if not self.multiply_by_inputs:
                return gradients
            ends = zip(at(level, part, line.noisy), at(level, part, line.chosen), strict=True)
            return tuple(g * (x - b) for g, (x, b) in zip(gradients, ends, strict=True))

        return bare(narrowed(mean_over_draws(subject, rows, self.n_samples, one, powers=(1,))[0], rows))


_Line = LayerConductance | InternalInfluence | LayerIntegratedGradients


def _check(method: _Line) -> None:
    check_integral(type(method).__name__, method.n_steps, method.method)
    check_baseline(method.baselines)


def _along_line(method: _Line, explainer: Any, subject: Subject, rows: Rows, least: int = 1) -> Attribution:
    return attribute(
        explainer.attribute,
        rows,
        baselines=bare(subject.baseline(method.baselines, rows)),
        n_steps=method.n_steps,
        method=method.method,
        internal_batch_size=max(subject.limit, least * len(rows)),
        attribute_to_layer_input=method.attribute_to_layer_input,
    )
