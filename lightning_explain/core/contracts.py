"""The interfaces that users can extend (method, metric, sink), and the records that the package passes to them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.panels import Panel
from lightning_explain.core.probe import Attribution, Baseline, Samples
from lightning_explain.core.report import PassCount, Publication, SumCheck
from lightning_explain.core.run_info import RunInfo

T = TypeVar("T")

if TYPE_CHECKING:
    Layers: TypeAlias = None | str | tuple[str | int, ...]
else:
    Layers = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.
"""The dotted name of a layer, or several, among which a number is the position of an input; ``None``: the default layer."""


Score: TypeAlias = "tuple[Tensor, Tensor | None]"
"""One score per sample, ``(N,)``, and its standard errors, ``(N,)``, or ``None`` for a metric without them."""


@dataclass(frozen=True, eq=False)
class ExplainedFunction:
    """The explained function f, samples to one number each: all that methods and metrics see of the model.

    Args:
        forward: A module that maps ``(*inputs, *extra)`` to ``(N,)``: the explained output of each sample.
        layer: Returns the layer with a dotted name; for ``None`` the last layer with a feature map.
        baseline: Converts a baseline as the user writes it to tensors shaped like the samples' inputs.
        distribution: Converts such a baseline to K reference samples, one tensor ``(K, ...)`` per input.
        draws: Random numbers keyed by sample.
        limit: The largest number of samples in one call of the model.
        probe: All clean samples of the probe, even while only some of them are being explained.
        execute: Computes the attributions of several path methods (path, reads, reducer) in shared passes.
        channels_last: Whether images go through the model in the channels-last memory format.
        memory: Results cached for the duration of one explanation; see :meth:`remembered`.
        sum_checks: Collects, by method, the check of DeepLIFT's sum for each batch of samples; ``None``: nothing is collected.
        modalities: What the inputs are, one for each.
        stds: Standard deviations of the inputs that came with the probe, one tensor ``(1, ...)`` for each; may be empty.
        lookups: Embedding layers by dotted name, with what each looks up of an input.
        frames: How many tensors a layer has for each sample, one after the other, where the model puts the frames of a video among the
            samples; 1 elsewhere.
    """

    forward: nn.Module
    layer: Callable[[str | None], nn.Module]
    baseline: Callable[[Baseline, Samples], tuple[Tensor, ...]]
    distribution: Callable[[Baseline, Samples], tuple[Tensor, ...]]
    draws: KeyedDraws
    limit: int
    probe: Samples
    execute: Callable[[ExplainedFunction, Mapping[str, Any], Samples], Mapping[str, Attribution]]
    channels_last: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)
    sum_checks: dict[str, list[SumCheck]] | None = None
    modalities: tuple[Modality, ...] = ()
    stds: tuple[Tensor, ...] = ()
    lookups: Mapping[str, Lookup] = field(default_factory=dict)
    frames: int = 1

    def evaluate(self, samples: Samples) -> Tensor:
        """The values of f at the samples, ``(N,)``, computed without gradients, at most ``limit`` samples per call."""
        with torch.no_grad():
            return torch.cat(
                [self.forward(*self.in_memory_layout(p.inputs), *p.extra) for p in samples.split(self.limit)]
            )

    def in_memory_layout(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs ``(N, ...)`` in the memory format in which the model receives them."""
        if not self.channels_last:
            return inputs
        # The memory format belongs to tensors of four dimensions, whatever they are.
        return tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of ``compute()``, which runs only at the first call with this key in an explanation."""
        if key not in self.memory:
            self.memory[key] = compute()
        found: T = self.memory[key]
        return found


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference point of a method; the map of a complete one sums to f(x) - f(baseline).

    Args:
        baselines: The method's ``baselines`` argument.
        distribution: Whether the baselines are a set of samples; f(baseline) is then the mean of f over the set.
    """

    baselines: Baseline = None
    distribution: bool = False


class Method:
    """Base class of attribution methods: frozen dataclasses with Captum's class name and argument names.

    A method takes one of two forms. One *on a path* declares ``path`` and ``reads`` and implements ``reduce``; it shares passes with
    all methods at the same points. Any other implements ``attribute`` and runs by itself.

    A subclass inherits what its class declares here, so the checks treat it as the method it is.

    Example:
        >>> from lightning_explain import Method
        >>> class Input(Method):
        ...     backward_rule = "none"
        ...     def attribute(self, explained, samples):
        ...         return samples.inputs[0]
        >>> explain(model, probe, {"input": Input()}, []).attributions["input"].shape
        torch.Size([2, 3, 8, 8])
    """

    place: ClassVar[str] = "input"
    """``"input"``; ``"layer"``: the map is shaped as a layer; ``"neuron"``: a unit of a layer is explained by the input."""
    backward_rule: ClassVar[str] = "plain"
    """``"plain"``, ``"guided"``, ``"deconvolution"``, ``"deeplift"``, ``"lrp"``, or ``"none"``: it only runs the model forward."""
    reaches_input: ClassVar[bool] = True
    """Whether its gradients or its path reach the inputs; ``False``: they end at the layer."""
    at_sample: ClassVar[bool] = False
    """Whether it takes a single gradient, at the sample itself."""
    averages_places: ClassVar[bool] = False
    """Whether it averages the gradient of a layer over places."""
    through_neuron: ClassVar[bool] = False
    """Whether a neuron method explains the output through the unit, not the unit itself."""
    replaces_layer: ClassVar[bool] = False
    """Whether it runs the model with another output of the layer."""
    tensor_layers_only: ClassVar[bool] = False
    """Whether its layer must return a tensor or a plain tuple of tensors."""
    several_layers: ClassVar[bool] = False
    """Whether ``layer`` may be a tuple; the map then has a tensor for each of its entries."""
    by_frame: ClassVar[bool] = False
    """Whether, without a path, it also explains layers that have a tensor for each frame of a video, ``(N * T, ...)``."""
    reads_attention: ClassVar[bool] = False
    """Whether its map is made of attention weights, which are the same whatever output is explained."""
    samples_needed: ClassVar[int] = 1
    """How many samples it looks at together."""
    takes_distribution: ClassVar[bool] = False
    """Whether ``baselines`` is a set of reference samples."""
    layer: Layers = None
    """Dotted name of the layer; ``None`` in a layer or neuron method: the default one."""
    baselines: Baseline = None
    feature_mask: Any = None
    multiply_by_inputs: bool = False
    """Whether the map is multiplied by input minus baseline, in a method that leaves this to the user."""
    neuron_selector: Any = None
    attribute_to_layer_input: bool = False
    attribute_to_neuron_input: bool = False
    reshape: Any = None
    layer_shaped: ClassVar[bool] = False
    """Whether the map is shaped as the layer; ``arrangement`` says how it lies on the input."""
    attribution_method: Method | None = None
    """The method inside, of a method around another one."""

    @property
    def reads(self) -> frozenset[Any]:
        """What is read at each point of the path; nothing where the output is enough."""
        return frozenset()

    @property
    def path(self) -> Any:
        """Where the model is evaluated; ``None``: the method runs by itself."""
        return None

    @property
    def evaluations(self) -> PassCount | None:
        """What it sends through the model for each sample, if it has no path; ``None``: that is not known beforehand."""
        return None

    @property
    def signed(self) -> bool:
        """Whether the map tells evidence for the output from evidence against it."""
        return self.innermost.signed if self.attribution_method is not None else True

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether the map already contains input minus baseline, or a layer's activation.

        Its sum over a part of the input then predicts what removing that part changes. A map that is like a gradient has to be
        multiplied by input minus baseline first.
        """
        work = self.innermost.applied
        return self.multiply_by_inputs if work is self else work.multiplies_by_inputs

    @property
    def own_baseline(self) -> Reference | None:
        """The point that its map is measured from; ``None``: it has none of its own.

        Its ``baselines``, if it has that argument; zero for other maps of the input that are multiplied by it.
        """
        work = self.innermost.applied
        if work is not self:
            return work.own_baseline
        declared = is_dataclass(self) and any(part.name == "baselines" for part in fields(self))
        times_input = self.multiplies_by_inputs and self.place == "input"
        if declared or times_input or self.baselines is not None:
            return Reference(self.baselines, self.takes_distribution)
        return None

    @property
    def completeness(self) -> Reference | None:
        """What the sum of the map is promised to be; ``None``: nothing is promised."""
        return None if self.applied is self else self.applied.completeness

    @property
    def of_input(self) -> bool:
        """Whether it reads what goes into its layer instead of what comes out."""
        return self.attribute_to_layer_input or self.attribute_to_neuron_input

    @property
    def layers(self) -> tuple[str | int, ...]:
        """The names of its layers, and the positions of inputs among them; empty without a layer."""
        return self.layer if isinstance(self.layer, tuple) else () if self.layer is None else (self.layer,)

    @property
    def needs_layer(self) -> bool:
        """Whether it has yet to be given a layer."""
        return self.place != "input" and self.layer is None

    @property
    def innermost(self) -> Method:
        """The method inside all that is around it; itself, if nothing is."""
        return self if self.attribution_method is None else self.attribution_method.innermost

    @property
    def ends_at(self) -> str:
        """Where its backward rule ends: at the ``"input"``, at a ``"layer"``, or at the input coming from a ``"neuron"``."""
        return "input" if self.place == "layer" and self.reaches_input else self.place

    @property
    def differentiates_input(self) -> bool:
        """Whether it takes gradients at the inputs, or at points around them."""
        return self.backward_rule != "none" and self.reaches_input

    def at(self, layer: str | None) -> Method:
        """This method at a layer, unless it names one or needs none.

        Raises:
            ValueError: If it needs a layer, and there is none.
        """
        if self.attribution_method is not None:
            return replace(self, attribution_method=self.attribution_method.at(layer))  # type: ignore[type-var]
        if not self.needs_layer:
            return self
        if layer is None:
            raise ValueError(
                "it names no layer, and no module of this model returns a map on the input; give layer=... or leave it out."
            )
        return replace(self, layer=layer)  # type: ignore[type-var]

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Any) -> object:
        """Raises ``ValueError`` if it cannot explain these samples; ``activation`` is what its layer has for them."""

    def arrangement(self, explained: ExplainedFunction, found: Attribution) -> Arrangement:
        """How its map ``found`` is to be arranged on the input: as its layer, if it is shaped as one."""
        parts = [self._arranged(explained, name) for name in self.layers] if self.layer_shaped else []
        return parts[0] if len(parts) == 1 else Arrangement(parts=tuple(parts))

    def _arranged(self, explained: ExplainedFunction, name: str | int) -> Arrangement:
        """How its map of one layer, or of an input among its layers, lies on the inputs."""
        if isinstance(name, int):
            return Arrangement(lookup=Lookup(name))
        lookup = None if self.of_input or self.reshape is not None else explained.lookups.get(name)
        return Arrangement(self.reshape, explained.layer(name), self.of_input, explained.forward, lookup)

    def focused(self, explained: ExplainedFunction) -> ExplainedFunction:
        """The function that it explains: a neuron, for a neuron method; otherwise the one that it is given."""
        return explained if self.attribution_method is None else self.attribution_method.focused(explained)

    @property
    def applied(self) -> Method:
        """The method that does the work: for a neuron method the one that explains the neuron."""
        return self

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """The attribution of at most ``explained.limit`` samples, each ``(N, ...)``."""
        return explained.execute(explained, {"": self}, samples)[""]


@dataclass(frozen=True, eq=False)
class MetricInputs:
    """The input of ``Metric.score``: the explained function, the samples, and the map of every method.

    Args:
        explained: The explained function.
        samples: All samples, on the model's device.
        outputs: f at the samples, ``(N,)``.
        maps: Method name to its map in input space: one tensor per input, broadcastable to that input.
        explain: Recomputes the maps of every method at other points of the same samples; a mapping of names of layers to tensors
            ``(N, ...)`` as second argument is added to what these layers return.
        masks: The probe's regions, ``(N, ...)`` boolean; without any, those where a segmentation's label is the explained class; else
            ``None``.
        attributions: Method name to what the method returned, in its own shape; includes methods without a map in input
            space.
        attribute: Recomputes the attributions of every method.
        references: Method name to its :class:`Reference`, for the methods whose map is complete.
        methods: Method name to the method.
        history: ``"previous"`` and ``"first"`` to the maps of the same samples in those explanations, in the form of
            ``maps`` with the channels of an image summed. An explanation or a method that did not exist is missing.
        n_draws: A metric that takes as many draws as each sample needs says here how many these were, by method, ``(N,)`` each.
    """

    explained: ExplainedFunction
    samples: Samples
    outputs: Tensor
    maps: Mapping[str, tuple[Tensor, ...]]
    explain: Callable[..., Mapping[str, tuple[Tensor, ...]]]
    masks: Tensor | None
    attributions: Mapping[str, Attribution]
    attribute: Callable[[Samples], Mapping[str, Attribution]]
    references: Mapping[str, Reference]
    methods: Mapping[str, Method]
    history: Mapping[str, Mapping[str, tuple[Tensor, ...]]] = field(default_factory=dict)
    n_draws: dict[str, Tensor] = field(default_factory=dict)


class Metric(ABC):
    """Base class of metrics, a score per sample and method: frozen dataclasses.

    Example:
        >>> from lightning_explain import Metric
        >>> class Largest(Metric):
        ...     def score(self, metric_inputs):
        ...         return {"": {name: (maps[0].flatten(1).amax(1), None) for name, maps in metric_inputs.maps.items()}}
        >>> explain(model, probe, ["InputXGradient"], {"largest": Largest()}).scores["largest"]["input_x_gradient"].shape
        torch.Size([2])
    """

    higher_is_better: ClassVar[bool | None] = None
    """Which end is the better one; ``None``: neither."""
    bounds: ClassVar[tuple[float | None, float | None]] = (None, None)
    """The lowest and the highest score; ``None``: there is no such bound."""
    undefined: ClassVar[Mapping[str, str]] = {}
    """For each suffix whose score may be undefined, which is NaN for a finite map: why. Such a sample has not failed."""
    maps_only: ClassVar[bool] = False
    """Whether it looks at maps alone, and never runs the model."""
    needs_masks: ClassVar[bool] = False
    needs_history: ClassVar[bool] = False
    """Whether it compares with maps of earlier explanations."""
    needs: ClassVar[str] = "a map that has a place on the image"
    """What a method must have to be scored, in words."""
    methods: tuple[str, ...] | None = None
    """Names of the methods that it scores; ``None``: all that it can."""
    baselines: Baseline = None
    curves: int | None = None
    """Of how many of its scores, the largest, each method has a curve on its chart; ``None``: each score has a chart for all methods."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is appended to the metric's name, one for each score that it returns."""
        return ("",)

    @property
    def comparable(self) -> bool:
        """Whether scores of different epochs and runs can be compared: they have no unit of the output."""
        return True

    @property
    def incomparable(self) -> tuple[str, ...]:
        """The suffixes of scores that cannot be compared; their charts say so."""
        return () if self.comparable else self.suffixes

    @property
    def has_standard_errors(self) -> bool:
        """Whether its scores come with standard errors, which dashboards draw as margins."""
        return False

    @property
    def uncharted(self) -> tuple[str, ...]:
        """The suffixes of scores that are in reports and can be monitored, but have no chart, because another one has."""
        return ()

    def named(self, names: Sequence[str]) -> Metric:
        """The metric for inputs of these names; called before :meth:`fitted`."""
        return self

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> Metric:
        """The metric for these inputs, by what they are.

        Raises:
            ValueError: If it has no score of such inputs.
        """
        return self

    def check_samples(self, explained: ExplainedFunction, samples: Samples) -> None:  # noqa: B027 (optional)
        """Raises ``ValueError`` if it cannot score these samples; called before the first explanation."""

    def can_score(self, method: Method, explained: ExplainedFunction) -> bool:
        """Whether it can score the maps of a method."""
        return True

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: Mapping[str, Reference]) -> Sequence[str]:
        """Names of the methods that it will score: of all, of those with a map in input space, of those that promise a sum."""
        return maps

    def evaluations_for(self, methods: Mapping[str, Method], again: PassCount) -> PassCount | None:
        """What it sends through the model for each sample, at most; ``None``: that is not known beforehand.

        Args:
            methods: The methods that it scores, by name.
            again: What explaining one sample by all of them sends through the model.
        """
        return PassCount() if self.maps_only else None

    @abstractmethod
    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """For each suffix and each method the score of the samples."""


class Lookup(NamedTuple):
    """What of an input an embedding layer looks up.

    Args:
        input: The position of the input.
        elements: The numbers of its elements in a flattened sample, in the order of the vectors that the layer returns; ``None``: the
            input itself, not looked up.
    """

    input: int
    elements: tuple[int, ...] | None = None


class Arrangement(NamedTuple):
    """How a layer's tensor is to be arranged as the units of an input lie.

    Args:
        reshape: The method's argument ``reshape``; ``None``: inferred from the shape.
        layer: The layer that the tensor belongs to; it decides where the shape is ambiguous.
        of_input: Whether the tensor belongs to the layer's input rather than its output.
        model: The module that the layer is in; it says how an image is cut into patches.
        lookup: The elements of an input that the tensor belongs to; ``None``: inferred from its shape.
        parts: For a map of several layers, how each of its tensors is to be arranged.
    """

    reshape: Any = None
    layer: nn.Module | None = None
    of_input: bool = False
    model: nn.Module | None = None
    lookup: Lookup | None = None
    parts: tuple[Arrangement, ...] = ()


class InputFacts(NamedTuple):
    """What preflight saw of one input ``(N, ...)``.

    Args:
        embeddings: The embedding layers that looked it up as a whole, by dotted name.
        by_column: Whether embedding layers looked up single columns of it.
        texts: The texts in the batch: a string for each sample, by name.
        layout: Of five dimensions, how the first convolution takes them, ``"NCTHW"`` or ``"NTCHW"``; ``None`` if that is not known.
        by_frame: Whether that is a 2-D convolution, which takes frame by frame.
        time_axis: Of three dimensions, the one that the layer which takes it runs over; ``None`` if that is not known.
        masked: ``(N, T)``, where a mask that goes with it says that there is nothing; ``None`` if there is none.
        blind: ``(F,)``, the columns of a table ``(N, F)`` that hold whole numbers and get no gradient; ``None`` if that is not known.
        names: The names of its columns, as the data set or its place in the batch says; empty if there are none.
    """

    embeddings: Mapping[str, nn.Module] = {}
    time_axis: int | None = None
    masked: Tensor | None = None
    blind: Tensor | None = None
    names: tuple[str, ...] = ()
    by_column: bool = False
    texts: Mapping[str, Sequence[str]] = {}
    layout: str | None = None
    by_frame: bool = False


class Modality(ABC):
    """Base class of modalities: what one input of the model is. The engine, the metrics and the renderer ask it.

    It answers four questions: which units the input has (``units``, ``present``, ``pixels``, ``named``), where a layer's map lies on them
    (``place``, ``onto``), how they are perturbed (``reference``, ``region``, ``blurred``), and which panels show a map (``panels``). Unless
    a subclass says otherwise, every element is a unit, layers have no place on the input, and there are no regions.

    Example:
        >>> from lightning_explain import Modality
        >>> from lightning_explain.core.panels import Panel
        >>> class Series(Modality):
        ...     def units(self, x):
        ...         return x[:, :1].shape
        ...     def panels(self, found, inputs, asked):
        ...         return (Panel("by time", "bars", Series().by_unit(found[0]).flatten(1)),)
        >>> Series().by_unit(torch.ones(2, 3, 50)).shape
        torch.Size([2, 1, 50])
    """

    on_input: ClassVar[bool] = True
    """Whether the panels show a map on its input; the maps of all other inputs are drawn together."""
    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of its panels, among which ``panels=`` of a monitor chooses; empty: it is asked for whatever the user names."""

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """The modality for the probe's input ``(N, ...)``, made of plain values: what files keep, and pictures are drawn from.

        Raises:
            ValueError: If the input is not of this kind.
        """
        return self

    def units(self, x: Tensor) -> torch.Size:
        """The shape of a map of ``x`` ``(N, ...)`` with one number for each unit; after :meth:`spread` it broadcasts to ``x``."""
        return x.shape

    def features(self, x: Tensor) -> Tensor:
        """The number of the feature that each element belongs to if no ``feature_mask`` is given, ``(1, ...)``."""
        return torch.arange(x[0].numel(), device=x.device).reshape(1, *x.shape[1:])

    def named(self, x: Tensor) -> Sequence[str]:
        """The names of features that all samples ``(N, ...)`` have, such as columns or channels; empty if there are none."""
        return ()

    def by_name(self, values: Tensor, x: Tensor) -> Tensor:
        """Numbers in the shape of ``units`` summed within each named feature, ``(N, F)``."""
        return values.new_empty(len(values), 0)

    def spread(self, values: Tensor, x: Tensor) -> Tensor:
        """Numbers in the shape of ``units`` at the elements of each unit; broadcasts to ``x``."""
        return values

    def present(self, x: Tensor) -> Tensor | None:
        """Which of the units are there in each sample, boolean in the shape of ``units``; ``None``: all. Padding is none."""
        return None

    def reference(self, x: Tensor) -> Tensor | None:
        """What stands for a missing unit where no baseline is given, ``(N, ...)``; ``None``: zero."""
        return None

    def pixels(self, x: Tensor) -> tuple[int, int] | None:
        """Height and width of the input ``(N, ...)`` if its units are pixels."""
        return None

    def grid(self, x: Tensor) -> tuple[int, ...] | None:
        """How many units lie along each axis, if neighbors belong together: ``(H, W)`` of images, ``(D, H, W)`` of volumes."""
        return self.pixels(x)

    def displayed(self, x: Tensor) -> Tensor:
        """The input ``(N, C, H, W)`` as pictures show it, with other channels in [0, 1]; itself, unless its units are pixels."""
        return x

    def inside(self, masks: Tensor, x: Tensor) -> Tensor | None:
        """The probe's masks ``(N, ...)`` in the shape of ``units``; ``None`` if they are no regions of this input.

        They may leave out dimensions of size 1, as masks ``(N, H, W)`` of images do.
        """
        units = self.units(x)
        same = len(masks) == len(x) and [n for n in masks.shape[1:] if n > 1] == [n for n in units[1:] if n > 1]
        return masks.reshape(units) if same else None

    def by_unit(self, found: Tensor) -> Tensor:
        """A map ``(N, ...)`` of the input, or of a layer in its place, summed within each unit."""
        return found.sum_to_size(self.units(found))

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        """A layer's activation, gradient or map ``(N, ...)``, arranged as the units of the input ``(N, ...)`` lie.

        Returns:
            Its channels second, then its places: ``(N, C, ...)``. ``value`` itself if it already lies so; ``None`` if it has
            no place on the input.

        Raises:
            ValueError: If ``how.reshape`` does not fit the tensor.
        """
        return None

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        """A result of ``place``, summed within each unit, at the resolution of the input."""
        return self.by_unit(placed)

    def region(self, x: Tensor, size: int | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """1 inside a random region of units and 0 elsewhere; broadcasts to the input ``(N, ...)``.

        Args:
            x: The input.
            size: The size of the region along each of its axes; ``None`` for the modality's own.
            draw: Returns uniform numbers in [0, 1) in the shape of its argument ``(N, ...)``.

        Raises:
            ValueError: If the input has no such region.
        """
        raise ValueError(f"needs images (N, C, H, W), got {tuple(x.shape)}")

    def blurred(self, x: Tensor) -> Tensor:
        """The input ``(N, ...)`` without its details.

        Raises:
            ValueError: If it has none.
        """
        raise ValueError(f"needs images (N, C, H, W), got {tuple(x.shape)}")

    @abstractmethod
    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """The columns of a method's picture, one panel for each sample.

        Args:
            found: The map in input space ``(N, ...)``, or what the method returned where it is not drawn on its input.
            inputs: The input ``(N, ...)``, or all of them.
            asked: ``(kind, sign)`` of each column, of the modality's own kinds; the sign is that of images. Empty: its own choice.
        """


class Sink(ABC):
    """Base class of sinks, each of which writes explanations to one logger. Only called on global rank zero.

    ``most_pictures`` is the most pictures of an explanation that it takes, 0 for none; no more are drawn than a sink takes. A sink with
    ``further_pages = False`` takes no further samples of a picture, such as ``explain_maps/ig/2``; to one with ``narrow_pages = True`` go
    pages that are 500 instead of 700 pixels wide, with fewer samples side by side.

    Example:
        >>> from lightning_explain import ExplanationMonitor, Sink
        >>> class Printer(Sink):
        ...     def write(self, publication):
        ...         print(publication.step, publication.scalars)
        >>> monitor = ExplanationMonitor(sinks=[Printer()])
    """

    most_pictures: ClassVar[int] = sys.maxsize
    further_pages: ClassVar[bool] = True
    narrow_pages: ClassVar[bool] = False

    @property
    def place(self) -> str:
        """Where it writes, for the line at the start of a run."""
        return type(self).__name__

    def begin(self, run: RunInfo) -> None:  # noqa: B027 (optional)
        """Once, before the first explanation: the settings of the monitor, and what was checked, changed and left out."""

    def layout(self, runs: Sequence[RunInfo]) -> None:  # noqa: B027 (optional)
        """Once, when all monitors of a training have begun: what each of them said, for dashboards that have one page for all."""

    def prepare(self, publication: Publication) -> None:  # noqa: B027 (optional)
        """What takes long before an explanation can be written, such as encoding pictures; ``seconds`` and ``overhead`` are not known yet.

        What fails here is not reported: :meth:`write` must be able to do without, and fail then. The time that :meth:`write` takes
        is counted in the seconds of the next explanation.
        """

    @abstractmethod
    def write(self, publication: Publication) -> None:
        """Writes one explanation."""

    def upload(self, folder: Path) -> None:  # noqa: B027 (optional)
        """At the end, and only with ``log_artifacts=True``: uploads the stored files in ``folder``, which hold the inputs."""


class Target(ABC):
    """Base class of targets: which number of the model's outputs is explained.

    A plain callable ``(outputs)`` does the same; one of two arguments, ``(outputs, sample)``, also knows ``sample.label``, ``sample.id``,
    ``sample.outputs`` and ``sample.prediction``, those of the unperturbed samples.

    Example:
        >>> from lightning_explain import Target
        >>> class First(Target):
        ...     def __call__(self, outputs):
        ...         return outputs[:, 0]
        >>> explain(model, probe, ["Saliency"], [], target=First()).targets.tolist()
        [-1, -1]
    """

    takes_inputs: ClassVar[bool] = False
    """Whether it is called as ``target(outputs, inputs)``, with what the model was called with at the same point."""

    def output(self, returned: Any) -> Tensor | None:
        """The outputs ``(N, ...)`` in what the model returns; ``None``: a tensor, or the first of a tuple, as for other targets."""
        return None

    @abstractmethod
    def __call__(self, outputs: Tensor) -> Tensor:
        """The explained number ``(N,)`` of each sample, from the outputs ``(N, ...)``."""


class Selection(Target):
    """Base class of targets that know the sample: places in its output whose sum is explained.

    They are chosen once for each explanation, by the outputs of the unperturbed samples, and stay the same at every point of a path.

    Example:
        >>> import torch
        >>> from lightning_explain.core.contracts import Selection
        >>> class Largest(Selection):
        ...     def select(self, outputs, labels=None):
        ...         return outputs.flatten(1).argmax(1, keepdim=True)
        >>> explain(model, probe, ["Saliency"], [], target=Largest()).targets.tolist()
        [-1, -1]
    """

    @abstractmethod
    def select(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The places in the flattened output of each sample, ``(N, K)``, on the CPU; -1 for none. K follows from the shape of the outputs.

        Args:
            outputs: The outputs of unperturbed samples, ``(N, ...)``, on the CPU.
            labels: Their labels, ``(N, ...)``, on the CPU; ``None`` if they are unknown.

        Raises:
            ValueError: If it does not fit these.
        """

    def value(self, outputs: Tensor, places: Tensor) -> Tensor:
        """The explained number ``(N,)`` from outputs ``(N, ...)`` at any point, by what :meth:`select` returned; their sum at these places.

        What is chosen of the unperturbed samples may lie elsewhere at other points, as a detection does: :meth:`select` then returns
        whole numbers that say what to look for.
        """
        return selected(outputs, places)

    def facts(self, outputs: Tensor, labels: Tensor | None, places: Tensor) -> Mapping[str, Tensor]:
        """What reports and captions say of the chosen places, ``(N,)`` each, by name; nothing by default.

        Captions know ``position``, ``class``, ``predicted`` (a class), ``probability``, ``pixels``, ``share``, ``overlap``, ``step`` and
        ``true``; pictures know ``region``, the bytes ``(N, *places)`` of ``core.regions``, and the edges of a box, ``left``, ``top``,
        ``right`` and ``bottom``.

        Args:
            outputs: As in :meth:`select`.
            labels: As in :meth:`select`.
            places: What :meth:`select` returned, ``(N, K)``.
        """
        return {}

    def __call__(self, outputs: Tensor) -> Tensor:
        """The explained number ``(N,)`` of unlabelled samples."""
        return self.value(outputs, self.select(outputs.detach().cpu()).to(outputs.device))


def selected(outputs: Tensor, places: Tensor) -> Tensor:
    """The sum ``(N,)`` of the outputs ``(N, ...)`` at places ``(N, K)``, as :meth:`Selection.select` returns them."""
    found: Tensor = outputs.flatten(1).gather(1, places.clamp(min=0))
    return found.where(places >= 0, 0).sum(1)
