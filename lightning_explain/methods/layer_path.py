"""Layer methods that sum gradients on paths: samples and baselines in, one value for each unit of a layer out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from captum import attr as captum
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import PLAIN, LayerSite, Reducer
from lightning_explain.core.probe import Attribution, Baseline, Samples, as_tuple, bare
from lightning_explain.core.report import PassCount
from lightning_explain.engine.captum_adapter import attribute, without_announcements
from lightning_explain.engine.evaluate import by_sample, intercept
from lightning_explain.engine.noise import Scale, mean_over_draws, narrowed, wide
from lightning_explain.engine.paths import Line, random_line
from lightning_explain.methods._adaptive import FIRST, refined
from lightning_explain.methods._base import AtLayer, OnPath, SumsUp, added, each, sum_of_evaluations
from lightning_explain.methods.layer import LayerActivation, LayerGradientXActivation, replaceable_together
from lightning_explain.modalities.image import Reshape


@dataclass(frozen=True)
class LayerOnLine(AtLayer, OnPath):
    """Base class of methods that read a layer on a straight line at the input."""

    reaches_input = True

    n_steps: int = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    reshape: Reshape = None

    @property
    def path(self) -> Line:
        """The straight line at the input."""
        return Line(self.n_steps, self.method, self.baselines)


@dataclass(frozen=True)
class InternalInfluence(LayerOnLine):
    r"""Gradient of a layer averaged over a path at the input (Leino et al. 2018; ``captum.attr.InternalInfluence``).

    Formula: \phi_j = \int_0^1 \frac{\partial f(b + \alpha (x - b))}{\partial a_j}\,d\alpha
    Cost: n_steps forward, n_steps backward.
    Not for: how much a unit contributes: a gradient can be large at an inactive unit; maps that should add up.

    Args:
        n_steps: Points on the path at the input.

    Further arguments: :class:`IntegratedGradients`, :class:`LayerActivation`.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.InternalInfluence("conv", n_steps=8)], metrics=[])
        >>> report.attributions["internal_influence"].shape
        torch.Size([2, 4, 8, 8])
    """

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped as the layer's output, in units of the explained output per unit of activation."""
        return sum_of_evaluations(
            self.n_steps,
            lambda evaluation: tuple(g * evaluation.point.weight for g in evaluation.gradient(PLAIN, self.site)),
        )


@dataclass(frozen=True)
class LayerConductance(LayerOnLine, SumsUp):
    r"""Flow of f(x) - f(baseline) through each unit of a layer (Dhamdhere et al. 2018; ``captum.attr.LayerConductance``).

    Formula: \phi_j = \sum_i (x_i - b_i) \int_0^1 \frac{\partial f(b + \alpha (x - b))}{\partial a_j}\,\frac{\partial
        a_j}{\partial x_i}\,d\alpha
    Cost: n_steps + 1 forward, n_steps + 1 backward.
    Not for: layers beside a skip connection: the map leaves out what bypasses the layer; few ``n_steps``: check with
        Completeness.

    Args:
        n_steps: Steps of the path at the input.

    Further arguments: :class:`IntegratedGradients`, :class:`LayerActivation`.

    Raises:
        ValueError: If ``n_steps``, ``method`` or ``baselines`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerConductance("conv", n_steps=8)], metrics=[])
        >>> report.attributions["layer_conductance"].shape
        torch.Size([2, 4, 8, 8])
    """

    @property
    def path(self) -> Line:
        """The straight line at the input, with one point more than ``n_steps``."""
        return Line(self.n_steps + 1, self.method, self.baselines)

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped as the layer's output, in units of the explained output."""
        total: tuple[Tensor, ...] = ()
        former = yield
        for _ in range(self.n_steps):
            evaluation = yield
            steps = each(torch.sub, evaluation.activation(self.site), former.activation(self.site))
            total = added(total, each(torch.mul, steps, former.gradient(PLAIN, self.site)))
            former = evaluation
        return total


@dataclass(frozen=True)
class LayerIntegratedGradients(AtLayer, SumsUp):
    r"""Integrated gradients of a layer's activations (Sundararajan et al. 2017; ``captum.attr.LayerIntegratedGradients``).

    The path runs in the layer's space: from the activation at the baseline to the activation at the sample.

    Formula: \phi_j = (a_j(x) - a_j(b)) \int_0^1 \frac{\partial f}{\partial a_j}\left(a(b) + \alpha (a(x) -
        a(b))\right) d\alpha
    Cost: n_steps + 2 forward, n_steps backward; with ``"auto"`` from 9 to 1025 points, as each sample needs.
    Not for: comparison with IntegratedGradients: its path passes through activations that no input may produce; layers
        that run more than once (refused).

    Args:
        layer: Dotted name of the layer, or several that move together, as the embeddings that look up the same ids do: the map then has
            a tensor for each. A number among them is the position of a floating-point input that moves with them, as a layer
            of Captum's ``ModelInputWrapper`` does. Default: the last layer with a feature map.
        n_steps: Points on the path, or ``"auto"``: adds points for each sample by the trapezoidal rule (``method`` is
            ignored) until the map sums to what the layer changes in f. ``Report.n_steps`` holds the points each sample
            took.
        baselines: Input whose activation is the start of the path: ``None`` (zero), a number, a tensor, ``"black"``,
            ``"mean"``, or ``"blur"``.
        multiply_by_inputs: Multiply by the difference between the activations at the sample and at the baseline; the
            map then sums to f(x) - f(baseline).
        tolerance: Largest relative error of the sum with ``n_steps="auto"``.

    Further arguments: :class:`IntegratedGradients`, :class:`LayerActivation`.

    Raises:
        ValueError: If ``n_steps``, ``method``, ``baselines`` or ``tolerance`` is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerIntegratedGradients("conv", n_steps=8)], metrics=[])
        >>> report.attributions["layer_integrated_gradients"].shape
        torch.Size([2, 4, 8, 8])
    """

    replaces_layer = True
    tensor_layers_only = True
    several_layers = True
    by_frame = True

    n_steps: int | str = 50
    method: str = "gausslegendre"
    baselines: Baseline = None
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None
    tolerance: float = 0.01

    @property
    def evaluations(self) -> PassCount | None:
        """The path and its ends; not known with ``n_steps="auto"``."""
        return PassCount(self.n_steps + 2, self.n_steps) if isinstance(self.n_steps, int) else None

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        if not isinstance(self.n_steps, int):
            return bare(self._refined(explained, samples))
        with replaceable_together(explained, self) as (forward, layers):
            layer: Any = layers if len(layers) > 1 else layers[0]
            with without_announcements():
                method = captum.LayerIntegratedGradients(forward, layer, multiply_by_inputs=self.multiply_by_inputs)
            found = attribute(
                method.attribute,
                samples,
                baselines=bare(explained.baseline(self.baselines, samples)),
                n_steps=self.n_steps,
                method=self.method,
                internal_batch_size=max(explained.limit, len(samples)),
            )
        return bare(each(lambda part: by_sample(part, len(samples), explained.frames), as_tuple(found)))

    def _refined(self, explained: ExplainedFunction, samples: Samples) -> tuple[Tensor, ...]:
        def mean(some: Samples, n_steps: int, rule: str) -> tuple[Tensor, ...]:
            fixed = replace(self, n_steps=n_steps, method=rule, multiply_by_inputs=False)
            return each(wide, as_tuple(LayerIntegratedGradients.attribute(fixed, explained, some)))

        begun = samples.at(explained.baseline(self.baselines, samples))
        there, here = (self._levels(explained, at) for at in (begun, samples))
        change = tuple(wide(x - b) for name in self.layers for x, b in zip(here[name], there[name], strict=True))
        with torch.no_grad(), ExitStack() as stack:
            # What bypasses the layers is unchanged.
            for site in self._sites:
                stack.enter_context(intercept(explained.layer(site.layer), site, partial(_instead, there[site.layer])))
            inputs = tuple(there[i][0] if i in there else x for i, x in enumerate(samples.inputs))
            replaced = explained.forward(*explained.in_memory_layout(inputs), *samples.extra)
        first, gap = mean(samples, FIRST + 1, "riemann_trapezoid"), wide(explained.evaluate(samples) - replaced)
        return narrowed(refined(self, explained, samples, first, change, gap, mean), samples)

    @property
    def _sites(self) -> list[LayerSite]:
        return [LayerSite(name, self.of_input) for name in self.layers if isinstance(name, str)]

    def _levels(self, explained: ExplainedFunction, samples: Samples) -> dict[str | int | None, tuple[Tensor, ...]]:
        """What the layers return or receive, and the inputs among them."""
        reads = {str(site.layer): LayerActivation(site.layer, self.of_input) for site in self._sites}
        found = explained.execute(explained, reads, samples)
        return {
            name: as_tuple(found[name]) if isinstance(name, str) else (samples.inputs[name],) for name in self.layers
        }


def _instead(tensors: tuple[Tensor, ...], returned: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Where a layer has a tensor for each frame, they were read with the samples first.
    return tuple(tensor.reshape(there.shape) for tensor, there in zip(tensors, returned, strict=True))


@dataclass(frozen=True)
class LayerGradientShap(AtLayer, SumsUp):
    r"""GradientShap of a layer's activations (Lundberg & Lee 2017; ``captum.attr.LayerGradientShap``).

    Follows Captum's formula with random draws keyed by sample id: every explanation repeats the same draws, so a curve
    moves only when the model changes.

    Formula: \phi_j = \mathbb{E}_{b,\alpha,\varepsilon}\left[(a_j(x + \varepsilon) - a_j(b))\,\frac{\partial
        f}{\partial a_j}\right]
    Cost: 3 * n_samples forward, n_samples backward; without ``multiply_by_inputs`` n_samples forward.
    Not for: sums over a layer that is not linear in the input: they miss f(x) - f(baseline) at any ``n_samples``, use
        LayerConductance; single units at few ``n_samples``.

    Args:
        multiply_by_inputs: Multiply by the difference between the activations at the noisy input and at the baseline.

    Further arguments: :class:`GradientShap`, :class:`LayerActivation`.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerGradientShap("conv")], metrics=[])
        >>> report.attributions["layer_gradient_shap"].shape
        torch.Size([2, 4, 8, 8])
    """

    reaches_input = True
    takes_distribution = True
    tensor_layers_only = True

    n_samples: int = 5
    stdevs: Scale = 0.0
    baselines: Baseline = "probe"
    attribute_to_layer_input: bool = False
    multiply_by_inputs: bool = True
    reshape: Reshape = None

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped as the layer's output, in units of the explained output."""
        slope = LayerGradientXActivation(self.layer, self.attribute_to_layer_input, multiply_by_inputs=False)
        level = LayerActivation(self.layer, self.attribute_to_layer_input)
        references = explained.distribution(self.baselines, samples)

        def one(part: Samples, indices: Tensor) -> tuple[Tensor, ...]:
            noisy, chosen, points = random_line(explained, part, indices, self.stdevs, references)
            gradients = as_tuple(slope.attribute(explained, part.at(points)))
            if not self.multiply_by_inputs:
                return gradients
            ends = (as_tuple(level.attribute(explained, part.at(end))) for end in (noisy, chosen))
            return each(lambda g, x, b: g * (x - b), gradients, *ends)

        return bare(narrowed(mean_over_draws(explained, samples, self.n_samples, one, powers=(1,))[0], samples))
