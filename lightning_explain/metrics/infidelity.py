"""Infidelity: maps and perturbed inputs in, how wrong the output changes are that each map predicts out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Modality, Reference, Score
from lightning_explain.core.naming import nearest
from lightning_explain.core.points import value_of
from lightning_explain.core.probe import Baseline, Samples, flat
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_number, check_whole, is_number
from lightning_explain.engine.arguments import AUTO, CheckedArguments
from lightning_explain.engine.baselines import settled
from lightning_explain.engine.noise import Scale, scales, wide
from lightning_explain.metrics._common import Evaluate, by_user, fill, joined, needs_floating, table
from lightning_explain.metrics._perturbed import Perturbed, Tensors, exact, half, origin
from lightning_explain.metrics._ranking import units_present

PerturbFunc = Callable[..., Any]
if TYPE_CHECKING:
    Perturbation: TypeAlias = str | PerturbFunc
else:
    Perturbation = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.
_KINDS = ("remove", "square", "gaussian")
# The fewest draws of which a correlation says more than chance does.
_ENOUGH = 16
# Draws of each sample that are added at once with n_perturb_samples="auto".
_BLOCK = 8
_STDEV = 0.1
# No method has this name.
_CHANGES = ""


def infidelity(products: Tensor, changes: Tensor, normalize: bool = True) -> Tensor:
    """Mean squared difference, over draws, between the output change the map predicts and the actual one.

    The definition of ``captum.metrics.infidelity`` (Yeh et al. 2019). ``normalize`` first scales the map by the
    best-fitting factor, so that only its direction counts.

    Args:
        products: Sum of map times perturbation, ``(N, draws)``.
        changes: f(x) - f(x - perturbation), ``(N, draws)``.
        normalize: Scale the map first.

    Returns:
        ``(N,)``, in squared units of output.
    """
    if normalize:
        squares, crossed = products.square().sum(-1), (products * changes).sum(-1)
        # A map of zeros predicts nothing, whatever its scale.
        factor = torch.where(squares == 0, torch.zeros_like(squares), crossed / squares)
        products = factor.unsqueeze(-1) * products
    return (products - changes).square().mean(-1)


def jackknife(products: Tensor, changes: Tensor, normalize: bool = True) -> Tensor | None:
    """Standard error ``(N,)`` of :func:`infidelity` by leaving out each draw in turn; ``None`` for a single draw."""
    n = products.shape[1]
    if n < 2:
        return None
    # Sums over all draws but one, in float64 because they are differences of sums.
    a, b = wide(products), wide(changes)
    aa, ab, bb = (total.sum(1, keepdim=True) - total for total in (a * a, a * b, b * b))
    factor = torch.where(aa == 0, torch.zeros_like(aa), ab / aa) if normalize else torch.ones_like(aa)
    left_out = (factor.square() * aa - 2 * factor * ab + bb).clamp(min=0) / (n - 1)
    return _spread(left_out).to(products.dtype)


def relative_infidelity(
    products: Tensor, changes: Tensor, resolution: Tensor | float = 0.0, normalize: bool = True
) -> tuple[Tensor, Tensor]:
    """Share of the variance of the output changes that the map does not predict, with its standard error.

    1 - r^2, with r the correlation over the draws between the change that the map predicts and the actual one; 1 if the
    predictions do not vary. A map without information has 1 - 1 / (draws - 1) on average. Without ``normalize``
    :func:`infidelity` divided by the mean square of the changes, which is unbounded.

    Args:
        products: Sum of map times perturbation, ``(N, draws)``.
        changes: f(x) - f(x - perturbation), ``(N, draws)``.
        resolution: The smallest change that is no rounding, ``(N,)``, in units of output.
        normalize: Let the map be scaled and shifted to fit.

    Returns:
        ``(N,)``, without unit; NaN where the changes vary no more (without ``normalize``: are no larger) than
        ``resolution``. Then its standard error, ``(N,)``, by leaving out each draw in turn.
    """
    a, b, n = wide(products), wide(changes), products.shape[1]
    if normalize:
        a, b = (part - part.mean(1, keepdim=True) for part in (a, b))
    # Leaving one draw out of centered sums moves the mean as well.
    moved = n / (n - 1) if normalize else 1.0
    totals = [part.sum(1, keepdim=True) for part in (a * a, a * b, b * b)]
    left_out = [t - moved * part for t, part in zip(totals, (a * a, a * b, b * b), strict=True)]
    rounding = 64 * torch.finfo(a.dtype).eps * wide(products).abs().amax(1, keepdim=True)
    flat_map = n * rounding.square()
    value, others = (_unexplained(aa, ab, bb, flat_map, normalize) for aa, ab, bb in (totals, left_out))
    known = ~(totals[2][:, 0] / n <= wide(torch.as_tensor(resolution, device=b.device)).square())
    found = torch.stack([value[:, 0], _spread(others)])
    return tuple(torch.where(known, part, torch.nan).to(changes.dtype) for part in found)  # type: ignore[return-value]


def _unexplained(aa: Tensor, ab: Tensor, bb: Tensor, least: Tensor, normalize: bool) -> Tensor:
    """What the predictions leave of ``bb``, as a share of it."""
    if not normalize:
        return (aa - 2 * ab + bb).clamp(min=0) / bb
    explained = torch.where((aa <= least) | (bb <= 0), torch.zeros_like(ab), ab.square() / (aa * bb))
    return (1 - explained).clamp(0, 1)


def _spread(left_out: Tensor) -> Tensor:
    """The jackknife's standard error ``(N,)`` from the scores without each draw, ``(N, draws)``."""
    return ((left_out.shape[1] - 1) * left_out.var(1, unbiased=False)).sqrt()


@dataclass(frozen=True)
class Infidelity(CheckedArguments, Metric):
    r"""Error of a map's prediction of output changes under perturbations (Yeh et al. 2019; ``captum.metrics.infidelity``).

    ``_relative`` is the score to watch: 1 - r^2, with r the correlation over the draws of a sample between the change
    that the map predicts and the actual one. It has no unit and does not depend on the scale of the output or the map. It
    is 0 where the map predicts every change, and 1 for a map whose predictions do not vary. It needs at least 16 draws;
    compare only scores with equally many. Without ``normalize`` it is the plain score divided by the mean square of the
    changes, is not bounded, and means something for complete maps only.

    A map like a gradient predicts ``sum(map * (x - perturbed x))``. A map that contains x - baseline already, such as
    IntegratedGradients or Occlusion, is divided by it, as by Captum's ``infidelity_perturb_func_decorator``: where units
    are removed, the prediction is the sum of the map over these units. So are CAMs and other layer maps that contain the
    activation.

    Formula: \text{infidelity} = \mathbb{E}_I\left[\left(\hat{\Delta}_I - \Delta_I\right)^2\right],\quad \Delta_I =
        f(x) - f(x - I),\quad \hat{\Delta}_I = \sum_i I_i \phi_i;\qquad \text{relative} = 1 - r^2(\hat{\Delta},
        \Delta)
    Chance: ``_relative`` is ``1 - 1 / (n_perturb_samples - 1)`` on average for a map without information (0.93 for 16
        draws); for squares, which overlap, 0.85 to 0.9. With ``"auto"`` it depends on where a sample stops.
    Cost: n_perturb_samples * M forward, 0 backward; M methods with different baselines: equal ones count once, and so do
        all methods with noise or a function; with ``"auto"`` at most max_perturb_samples * M.
    Not for: maps without a sign (``Saliency()``); maps of features of many units (``feature_mask``), which repeat the value
        of the feature in each; the plain score as a curve: it is in squared units of output, and grows with the
        confidence of any network; ``"auto"`` where all ranks must call the model equally often, as with FSDP.

    Args:
        perturb_func: ``"remove"`` (replaces units by the baseline: a random square of an image, a random half of the units
            of other inputs), ``"square"`` (the same for images alone, and for modalities with regions of their own),
            ``"gaussian"`` (noise around the input, local), or a function in Captum's form that takes the inputs and returns
            (perturbation, perturbed inputs); the prediction is then ``sum(map * perturbation)`` for every map. The function
            receives one sample at a time, with the global generators seeded for that sample and draw.
        n_perturb_samples: Draws for each sample; or ``"auto"``: 16, then 8 more at a time for each sample and method, until the
            standard error of ``_relative`` is at most ``tolerance``. A score is then the one that this fixed number of draws gives.
        stdevs: Standard deviation of the noise, as in :class:`NoiseTunnel`. Default: ``"0.1 std"`` for tables and series, if
            it is known; otherwise 0.1.
        size: Side of the square in pixels. Default: a quarter of the shorter side of the image.
        baselines: Value that replaces what is removed, for methods without a baseline of their own: ``None`` (zero), a
            number, a tensor, ``"black"``, ``"mean"``, or ``"blur"``. Other maps are compared with their own baseline, or the
            mean of their set of baselines.
        normalize: Scale the map by the best-fitting factor first. Otherwise the score depends on the map's scale.
        methods: Names of the methods to score. Default: all.
        tolerance: Largest standard error, with ``n_perturb_samples="auto"``.
        max_perturb_samples: Most draws for each sample, with ``n_perturb_samples="auto"``.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> report = explain(model, probe, methods=[m.Saliency(abs=False)], metrics=[q.Infidelity()])
        >>> report.scores["infidelity_relative"]["saliency"].shape
        torch.Size([2])
    """

    perturb_func: Perturbation = "remove"
    n_perturb_samples: int | str = 16
    stdevs: Scale = None
    size: int | None = None
    baselines: Baseline = None
    normalize: bool = True
    methods: tuple[str, ...] | None = None
    tolerance: float = 0.05
    max_perturb_samples: int = 128

    higher_is_better: ClassVar[bool | None] = False
    comparable = False
    incomparable = ("",)
    undefined: ClassVar[Mapping[str, str]] = {
        "relative": "the output changes no more than by rounding, or the sample has a single unit"
    }

    needs = "a map that has a place on the image and belongs to the explained output, as attention does not"

    def can_score(self, method: Method, explained: ExplainedFunction) -> bool:
        """Whether its map belongs to the explained output."""
        return not method.innermost.reads_attention

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.perturb_func) and self.perturb_func not in _KINDS:
            raise ValueError(
                f"Infidelity(perturb_func={self.perturb_func!r}): {nearest(str(self.perturb_func), _KINDS)} Or a callable."
            )
        least = 2 if self.normalize else 1
        check_whole("Infidelity", "n_perturb_samples", self.n_perturb_samples, least, also=(AUTO,))
        check_whole("Infidelity", "max_perturb_samples", self.max_perturb_samples, _ENOUGH)
        if is_number(self.stdevs):
            check_number("Infidelity", "stdevs", self.stdevs)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The plain score and, from 16 draws on, ``relative``."""
        return ("", "relative") if self._most >= _ENOUGH else ("",)

    @property
    def has_standard_errors(self) -> bool:
        """From two draws on."""
        return self._most > 1

    @property
    def _most(self) -> int:
        """The most draws for a sample."""
        return self.max_perturb_samples if isinstance(self.n_perturb_samples, str) else self.n_perturb_samples

    @property
    def uncharted(self) -> tuple[str, ...]:
        """The plain score, where ``relative`` is there."""
        return ("",) if "relative" in self.suffixes else ()

    def fitted(self, inputs: Tensors, modalities: tuple[Modality, ...]) -> Infidelity:
        """Itself, if these inputs can be perturbed.

        Raises:
            ValueError: If they cannot.
        """
        if self.perturb_func == "gaussian":
            needs_floating('Infidelity(perturb_func="gaussian")', inputs)
        for x, modality in zip(inputs, modalities, strict=True):
            if self.perturb_func == "square" or (self.perturb_func == "remove" and modality.grid(x)):
                self._square(modality, x, lambda like: torch.zeros_like(like))
        return self

    def evaluations_for(self, methods: Mapping[str, Method], again: PassCount) -> PassCount:
        """The draws, forward; where units are removed, for each baseline."""
        removes = self.perturb_func in ("remove", "square")
        return PassCount(self._most) * (len({self._own(m)[0] for m in methods.values()}) if removes else 1)

    def _own(self, method: Method) -> tuple[Any, Reference]:
        """The baseline that a method is compared with, and a key for it."""
        # A function decides alone what it perturbs, for all methods at once.
        own = (None if callable(self.perturb_func) else method.own_baseline) or Reference(self.baselines)
        return value_of((settled(own.baselines), own.distribution)), own

    def check_samples(self, explained: ExplainedFunction, samples: Samples) -> None:
        """Refuses noise whose size does not fit the inputs.

        Raises:
            ValueError: If it does not.
        """
        if self.perturb_func == "gaussian":
            scales(explained, samples, "stdevs", self.stdevs)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """In squared units of output; ``_relative`` in 0..1, without unit. Lower is better.

        Both have the jackknife over draws as standard error. ``_relative`` is NaN where no more than rounding changes, or
        the sample has a single unit.
        """
        found: dict[str, dict[str, Score]] = {s: {} for s in self.suffixes}
        for name, products, changes, taken in self._collected(metric_inputs):
            if self.n_perturb_samples == AUTO:
                metric_inputs.n_draws[name] = taken
            parts = []
            for count in taken.unique().tolist():
                some = (taken == count).nonzero().squeeze(1)
                parts.append((some, self._scores(metric_inputs, some, products[some, :count], changes[some, :count])))
            order = torch.cat([some for some, _ in parts]).argsort()
            for suffix in found:
                values, errors = zip(*(scores[suffix] for _, scores in parts), strict=True)
                error = None if errors[0] is None else torch.cat(errors)[order]
                found[suffix][name] = torch.cat(values)[order], error
        return found

    def _scores(
        self, metric_inputs: MetricInputs, places: Tensor, products: Tensor, changes: Tensor
    ) -> dict[str, Score]:
        """The scores by suffix of some samples that have equally many draws."""
        outputs, error = metric_inputs.outputs, jackknife(products, changes, self.normalize)
        plain = infidelity(products, changes, self.normalize).to(outputs)
        found: dict[str, Score] = {"": (plain, None if error is None else error.to(outputs))}
        if "relative" in self.suffixes:
            value, error = self._relative(metric_inputs, places, products, changes)
            found["relative"] = value.to(outputs), error.to(outputs)
        return found

    def _relative(
        self, metric_inputs: MetricInputs, places: Tensor, products: Tensor, changes: Tensor
    ) -> tuple[Tensor, Tensor]:
        resolution = _resolution(metric_inputs, places, changes)
        return relative_infidelity(products, changes, resolution, self.normalize)

    def _collected(self, metric_inputs: MetricInputs) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """For each method the changes that its map predicts, the actual ones, ``(N, draws)``, and how many draws count, ``(N,)``."""
        by_baseline: dict[Any, tuple[Reference, list[str]]] = {}
        columns = zip(metric_inputs.samples.inputs, metric_inputs.explained.modalities, strict=True)
        # No baseline is then not the same as zero.
        referred = any(modality.reference(x) is not None for x, modality in columns)
        for name in metric_inputs.maps:
            key, own = self._own(metric_inputs.methods[name])
            by_baseline.setdefault((key, referred and own.baselines is None), (own, []))[1].append(name)
        for key, (reference, names) in by_baseline.items():
            found, taken = self._compared(metric_inputs, key, reference, names)
            yield from ((name, found[name], found[_CHANGES], taken[name]) for name in names)

    def _compared(
        self, metric_inputs: MetricInputs, baseline: Any, reference: Reference, names: list[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The tables ``(N, draws)`` of all methods and of the actual changes, and how many draws of each sample count."""
        explained, methods = metric_inputs.explained, metric_inputs.methods
        # Metrics with equal perturbations, normalized or not, share the outputs there.
        removes = self.perturb_func in ("remove", "square")
        arguments = (baseline, self.size) if removes else (self.stdevs,)
        key = ("infidelity", value_of((self.perturb_func, self.n_perturb_samples, arguments)), explained.forward)
        known: dict[str, Tensor] = {} if self.n_perturb_samples == AUTO else explained.memory.get(key, {})

        def evaluate(samples: Samples, places: Tensor, draws: Tensor) -> dict[str, Tensor]:
            perturbed = self._perturb(explained, samples, draws, reference)
            found = {}
            for name in names:
                factors = perturbed.share if methods[name].multiplies_by_inputs else perturbed.change
                found[name] = _dot([part[places] for part in metric_inputs.maps[name]], factors)
            if not known:
                found[_CHANGES] = wide(metric_inputs.outputs[places]) - wide(
                    explained.evaluate(samples.at(perturbed.points))
                )
            return found

        wanted = [*names, *{_CHANGES} - known.keys()]
        if self.n_perturb_samples == AUTO:
            return self._as_needed(metric_inputs, names, evaluate)
        found = known | table(metric_inputs, self._most, wanted, evaluate, exact=True)
        explained.memory[key] = {_CHANGES: found[_CHANGES]}
        return found, dict.fromkeys(names, torch.full((len(metric_inputs.samples),), self._most))

    def _as_needed(
        self, metric_inputs: MetricInputs, names: list[str], evaluate: Evaluate
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same with draws in blocks, for each sample until the standard errors of all methods are small enough."""
        count, like = len(metric_inputs.samples), wide(metric_inputs.outputs)
        found = {name: like.new_empty(count, self._most) for name in (*names, _CHANGES)}
        taken = {name: torch.zeros(count, dtype=torch.long) for name in names}
        first, stop = 0, _ENOUGH
        while first < self._most:
            left = torch.stack([done == 0 for done in taken.values()]).any(0).nonzero().squeeze(1)
            if not len(left):
                break
            fill(found, metric_inputs, left, torch.arange(first, stop), evaluate)
            for name, done in taken.items():
                if len(own := left[done[left] == 0]):
                    products, changes = found[name][own, :stop], found[_CHANGES][own, :stop]
                    errors = self._relative(metric_inputs, own, products, changes)[1].cpu()
                    # Where the score is undefined, there is no error to lower.
                    done[own[~(errors > self.tolerance) | (stop == self._most)]] = stop
            first, stop = stop, min(stop + _BLOCK, self._most)
        return found, taken

    def _perturb(
        self, explained: ExplainedFunction, samples: Samples, indices: Tensor, reference: Reference
    ) -> Perturbed:
        if callable(self.perturb_func):
            change, points = self._by_function(explained, samples, indices)
            return Perturbed(change, change, points)
        baselines = origin(explained, reference, samples)
        gap = tuple(exact(x) - exact(b) for x, b in zip(samples.inputs, baselines, strict=True))
        if self.perturb_func == "gaussian":
            noise = self._noise(explained, samples, indices)
            # As Captum divides: by 1 where there is no difference.
            share = tuple(n / torch.where(g == 0, torch.ones_like(g), g) for n, g in zip(noise, gap, strict=True))
            return Perturbed(noise, share, tuple(x - n for x, n in zip(samples.inputs, noise, strict=True)))
        removed = self._removed(explained, samples, indices)
        columns = zip(removed, baselines, samples.inputs, strict=True)
        points = tuple(torch.where(one, b, x) for one, b, x in columns)
        # Between ids there are no differences.
        units = (g if x.is_floating_point() else torch.ones_like(g) for g, x in zip(gap, samples.inputs, strict=True))
        return Perturbed(tuple(u * one for u, one in zip(units, removed, strict=True)), removed, points)

    def _by_function(self, explained: ExplainedFunction, samples: Samples, indices: Tensor) -> tuple[Tensors, Tensors]:
        assert callable(self.perturb_func)
        pairs = by_user("infidelity", self.perturb_func, explained, samples, indices)
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise TypeError(
                "Infidelity(perturb_func=...) must return two values: return a tuple (perturbation, perturbed inputs)."
            )
        return joined([pair[0] for pair in pairs]), joined([pair[1] for pair in pairs])

    def _noise(self, explained: ExplainedFunction, samples: Samples, indices: Tensor) -> Tensors:
        draws = [explained.draws.normal(f"infidelity/{i}", samples, indices, x) for i, x in enumerate(samples.inputs)]
        sizes = scales(explained, samples, "stdevs", self.stdevs, _STDEV)
        return tuple(noise * size for noise, size in zip(draws, sizes, strict=True))

    def _removed(self, explained: ExplainedFunction, samples: Samples, indices: Tensor) -> Tensors:
        """Whether each unit is removed, one boolean tensor for each input, which it broadcasts to."""
        columns = list(zip(samples.inputs, explained.modalities, strict=True))
        regional = [self.perturb_func == "square" or modality.grid(x) is not None for x, modality in columns]
        draw = partial(explained.draws.uniform, "square", samples, indices)
        squares = [
            self._square(mod, exact(x), draw).bool() for (x, mod), has in zip(columns, regional, strict=True) if has
        ]
        others = [column for column, has in zip(columns, regional, strict=True) if not has]
        halves = list(half(explained, samples, indices, others)) if others else []
        return tuple((squares if has else halves).pop(0) for has in regional)

    def _square(self, modality: Modality, x: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """1 inside a random square and 0 elsewhere, broadcastable to the input."""
        try:
            return modality.region(x, self.size, draw)
        except ValueError as error:
            owner = f'Infidelity(perturb_func="{self.perturb_func}", size={self.size})'
            raise ValueError(f"{owner} {error}; give those, or a perturb_func of your own.") from None


def _resolution(metric_inputs: MetricInputs, places: Tensor, changes: Tensor) -> Tensor:
    """The smallest change ``(N,)`` that is no rounding of f at some samples; infinite for those of a single unit."""
    explained, outputs = metric_inputs.explained, wide(metric_inputs.outputs[places])
    dtypes = (metric_inputs.outputs.dtype, getattr(explained.forward, "dtype", torch.float32))
    eps = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
    largest = torch.maximum(outputs.abs(), (outputs[:, None] - changes).abs().amax(1))
    alone = units_present(metric_inputs.samples[places].inputs, explained.modalities).sum(1) < 2
    return torch.where(alone, torch.inf, 4 * eps * largest)


def _dot(maps: list[Tensor], factors: Tensors) -> Tensor:
    products = [flat(m * f) for m, f in zip(maps, factors, strict=True)]
    return torch.stack([p.sum(1, dtype=wide(p[:0]).dtype) for p in products]).sum(0)
