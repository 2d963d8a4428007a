"""The data that flows through the house: frozen dataclasses and the protocols of a method and a metric.

Shapes are written with N rows, C classes or channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

T = TypeVar("T")

Attribution: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""What Captum's ``attribute`` returns: a tensor, or a tuple of tensors for several inputs."""

Baseline: TypeAlias = "None | float | str | Tensor | Sequence[Any]"
"""A baseline as the user writes it: ``None`` (zero), a number, a tensor, a name, or a sequence of them."""

Score: TypeAlias = "tuple[Tensor, Tensor | None]"
"""Values ``(N,)`` and their standard errors ``(N,)``, ``None`` where there are none."""

Image: TypeAlias = "NDArray[np.uint8]"
"""A picture: ``(H, W, 3)`` in 0..255."""


def as_tuple(value: Attribution) -> tuple[Tensor, ...]:
    """A tensor as a tuple of one; a tuple as it is."""
    return value if isinstance(value, tuple) else (value,)


def bare(values: tuple[Tensor, ...]) -> Attribution:
    """A tuple of one as the tensor itself, as Captum takes and returns it."""
    return values if len(values) > 1 else values[0]


@dataclass(frozen=True, eq=False)
class Probe:
    """The fixed rows that are explained every time.

    Args:
        inputs: One tensor ``(N, ...)`` or a tuple of them, as the model's ``forward`` takes them.
        targets: Labels ``(N, ...)``, or ``None`` where there are none.
        ids: ``(N,)`` integers that name the rows (dataset indices); random draws are keyed by them. Default ``0..N-1``.
        masks: ``(N, H, W)`` boolean regions for localisation scores such as ``RelevanceMass``.
        class_names: A name for each class index, used in titles.
        forward_args: Further arguments of ``forward`` that are not explained; tensors with first dimension N are split by rows.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If there are no rows, first dimensions differ, or ids are no whole numbers.
    """

    inputs: Attribution
    targets: Tensor | None = None
    ids: Tensor | None = None
    masks: Tensor | None = None
    class_names: Sequence[str] | None = None
    forward_args: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(x, Tensor) and x.ndim > 0 for x in as_tuple(self.inputs)) or not as_tuple(self.inputs):
            raise TypeError(
                f"Probe(inputs=...) takes a tensor of shape (N, ...) or a tuple of them, got {_kind(self.inputs)}."
            )
        if len(self) == 0:
            raise ValueError("Probe(inputs=...) has no rows; give at least one.")
        if self.ids is None:
            object.__setattr__(self, "ids", torch.arange(len(self)))
        for name, value in self._columns():
            if not isinstance(value, Tensor):
                raise TypeError(f"Probe({name}=...) takes a tensor, got {_kind(value)}.")
            if value.ndim == 0 or len(value) != len(self):
                raise ValueError(
                    f"Probe({name}=...) has shape {tuple(value.shape)}, but inputs have {len(self)} rows; "
                    f"its first dimension must be {len(self)}."
                )

        if self.row_ids.ndim != 1 or self.row_ids.is_floating_point() or self.row_ids.is_complex():
            raise ValueError(
                f"Probe(ids=...) is {self.row_ids.dtype} {tuple(self.row_ids.shape)}; it must be ({len(self)},) whole numbers."
            )
        if not isinstance(self.forward_args, (tuple, list)):
            raise TypeError(f"Probe(forward_args=...) takes a tuple, got {_kind(self.forward_args)}.")
        names = self.class_names
        if names is not None and (isinstance(names, (str, bytes)) or not isinstance(names, Sequence)):
            raise TypeError(f"Probe(class_names=...) takes a list of names, got {_kind(names)}.")

    def _columns(self) -> Iterator[tuple[str, Any]]:
        yield from ((f"inputs[{i}]", x) for i, x in enumerate(as_tuple(self.inputs)))
        yield from ((k, getattr(self, k)) for k in ("targets", "ids", "masks") if getattr(self, k) is not None)

    def __len__(self) -> int:
        return len(as_tuple(self.inputs)[0])

    @property
    def row_ids(self) -> Tensor:
        """``(N,)`` integers; never ``None``."""
        assert self.ids is not None
        return self.ids


def _kind(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {[type(v).__name__ for v in value]}"
    return type(value).__name__


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows on their way through the model, on the model's device.

    Args:
        inputs: The point at which the model is evaluated, each ``(N, ...)``.
        clean: The unperturbed probe rows these points come from, each ``(N, ...)``; baselines refer to them.
        extra: What follows the inputs in the call: forward arguments and the row's target. Tensors have first dimension N.
        ids: ``(N,)`` row ids, on the CPU.
        branches: ``(N,)`` which nested random sample the row is in, on the CPU; 0 outside of any.
    """

    inputs: tuple[Tensor, ...]
    clean: tuple[Tensor, ...]
    extra: tuple[Any, ...]
    ids: Tensor
    branches: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def _map(self, f: Callable[[Tensor], Tensor]) -> Rows:
        n = len(self)
        return Rows(
            inputs=tuple(f(x) for x in self.inputs),
            clean=tuple(f(x) for x in self.clean),
            extra=tuple(f(x) if isinstance(x, Tensor) and x.ndim > 0 and len(x) == n else x for x in self.extra),
            ids=f(self.ids),
            branches=f(self.branches),
        )

    def split(self, size: int) -> Iterator[Rows]:
        """The rows in order, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, index: slice | Tensor) -> Rows:
        return self._map(lambda x: x[index])

    def repeat(self, times: int) -> Rows:
        """Each row ``times`` times in a row: ``a a b b``."""
        return self._map(lambda x: x.repeat_interleave(times, dim=0))

    def at(self, inputs: tuple[Tensor, ...]) -> Rows:
        """The same rows evaluated at other points."""
        return replace(self, inputs=inputs)

    def draw(self, indices: Tensor) -> Rows:
        """The same rows inside random sample ``indices`` ``(N,)``, so that draws nested in it differ from sample to sample."""
        return replace(self, branches=self.branches * 1_000_003 + indices + 1)


class Draws(Protocol):
    """Random numbers that depend on (seed, purpose, row id, branch, draw index) alone."""

    def normal(self, purpose: str, rows: Rows, indices: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape, dtype and device of ``like`` ``(N, ...)``."""
        ...

    def uniform(self, purpose: str, rows: Rows, indices: Tensor, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) in the shape, dtype and device of ``like`` ``(N, ...)``."""
        ...

    def seeded(self, purpose: str, rows: Rows, indices: Tensor) -> AbstractContextManager[None]:
        """Seeds the global generators for one row and draw while a user's own random function runs."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """The function that is explained, as methods and metrics see it.

    Args:
        forward: A module that maps ``(*inputs, *extra)`` to ``(N,)``: the explained output of each row.
        layer: Finds a layer by its dotted name; ``None`` asks for the last layer with a feature map.
        baseline: Turns a baseline as the user writes it into tensors shaped like the rows' inputs.
        distribution: Turns it into a set of K reference rows, each ``(K, ...)``.
        draws: Random numbers keyed by row.
        limit: Rows the model may see in one call.
        probe: All clean rows of the probe, whichever of them are being explained.
        sweep: Explains rows by several methods that are each a path, wants and a reducer, in shared passes.
        mended: In here methods of these names see the model with what is mended for them.
        channels_last: Images go through the model in that memory layout.
        memory: What need not be computed twice within one explanation.
    """

    forward: nn.Module
    layer: Callable[[str | None], nn.Module]
    baseline: Callable[[Baseline, Rows], tuple[Tensor, ...]]
    distribution: Callable[[Baseline, Rows], tuple[Tensor, ...]]
    draws: Draws
    limit: int
    probe: Rows
    sweep: Callable[[Subject, Mapping[str, Any], Rows], Mapping[str, Attribution]]
    mended: Callable[[Sequence[str]], AbstractContextManager[Any]] = lambda names: nullcontext()
    channels_last: bool = False
    memory: dict[Any, Any] = field(default_factory=dict)

    def swept(self, method: Any, rows: Rows) -> Attribution:
        """The attribution by one method that is a path, wants and a reducer."""
        return self.sweep(self, {"": method}, rows)[""]

    def evaluate(self, rows: Rows) -> Tensor:
        """F at the rows, ``(N,)``, without gradients, at most ``limit`` rows a call."""
        with torch.no_grad():
            return torch.cat([self.forward(*self.laid_out(p.inputs), *p.extra) for p in rows.split(self.limit)])

    def laid_out(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs in the memory layout in which they go through the model, each ``(N, ...)``."""
        if not self.channels_last:
            return inputs
        return tuple(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)

    def remembered(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` gave the first time within this explanation."""
        if key not in self.memory:
            self.memory[key] = compute()
        found: T = self.memory[key]
        return found


@dataclass(frozen=True, eq=False)
class Reference:
    """What the sum of a map is promised to be: f(x) - f(baseline).

    Args:
        baselines: As the method takes it.
        distribution: They are a set of rows; f(baseline) is the mean of f over it.
    """

    baselines: Baseline = None
    distribution: bool = False


@runtime_checkable
class Method(Protocol):
    """An attribution method: a frozen dataclass with Captum's class name and argument names.

    A method whose maps promise to add up has a property ``reference``, a :class:`Reference`; ``None`` where its arguments break
    the promise. One that can see for itself whether it fits some rows has ``fits(subject, rows)``, which raises if not. A
    method that knows how its maps lie on the image has ``arranged(subject, found, inputs)``, which returns what
    ``maps.arrange`` does.
    """

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """The attribution of at most ``subject.limit`` rows, each ``(N, ...)``."""
        ...


@dataclass(frozen=True, eq=False)
class Case:
    """What a metric is given: the function, the rows, and the map of every method.

    Args:
        subject: The explained function.
        rows: All rows, on the model's device.
        outputs: f at the rows, ``(N,)``.
        maps: For each method its map in input space, one tensor per input, broadcastable to it.
        explain: Computes the maps of every method again, at other points of the same rows.
        masks: ``(N, H, W)`` boolean, or ``None``.
        attributions: For each method what it returned, in its own shape; also methods that have no map in input space.
        attribute: Computes the attributions of every method again.
        references: For each method that promises that its map adds up, to what.
        history: ``"previous"`` and ``"first"``: the maps of the same rows in those explanations, as ``maps``; the channels of an
            image are summed, and what there was not is missing.
    """

    subject: Subject
    rows: Rows
    outputs: Tensor
    maps: Mapping[str, tuple[Tensor, ...]]
    explain: Callable[[Rows], Mapping[str, tuple[Tensor, ...]]]
    masks: Tensor | None
    attributions: Mapping[str, Attribution]
    attribute: Callable[[Rows], Mapping[str, Attribution]]
    references: Mapping[str, Reference]
    history: Mapping[str, Mapping[str, tuple[Tensor, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PassCount:
    """Rows sent through the model, counted."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: PassCount) -> PassCount:
        return PassCount(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> PassCount:
        return PassCount(self.forward * times, self.backward * times)


@dataclass(frozen=True, eq=False)
class Prospect:
    """What a metric is told so that it can say what it will cost.

    Args:
        subject: The explained function.
        rows: All rows, with their targets.
        maps: Names of the methods that will have a map in input space.
        explain: What it costs to compute those maps again for all rows; ``None`` where that cannot be said.
        attribute: What it costs to compute the attributions of every method again.
        references: For each method that promises that its map adds up, to what.
    """

    subject: Subject
    rows: Rows
    maps: tuple[str, ...]
    explain: PassCount | None
    attribute: PassCount | None
    references: Mapping[str, Reference]


@runtime_checkable
class Metric(Protocol):
    """A score per row and method: a frozen dataclass.

    ``higher_is_better`` says where the better end is (``None``: neither). ``suffixes`` names what ``score`` returns;
    ``("",)`` for a metric of one score. A metric that can say beforehand what it costs has ``passes(prospect)``, which returns a
    :class:`PassCount` for all rows together, or ``None`` if it depends on something that cannot.
    Scores of some inputs only are left out by ``fitted(inputs)``, if there is such a method,
    which returns the metric for these inputs. A metric with ``needs_history`` is given the maps of earlier explanations.
    """

    @property
    def higher_is_better(self) -> bool | None:
        """Which end is the better one; ``None``: neither."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is appended to the metric's name, one for each score it returns."""
        ...

    def score(self, case: Case) -> Mapping[str, Mapping[str, Score]]:
        """For each suffix and each method the score of the rows."""
        ...


@dataclass(frozen=True, eq=False)
class Report:
    """What one explanation found. Tensors are on the CPU; rows are in the probe's order.

    Args:
        attributions: For each method what Captum returns: input-shaped, a tuple for several inputs; layer methods: the layer's own shape.
        scores: ``scores[metric][method]`` is ``(N,)``.
        standard_errors: ``standard_errors[metric][method]`` is ``(N,)``; a score that has none has no entry.
        outputs: The model's outputs at the rows, ``(N,)`` or ``(N, C)`` or larger.
        predictions: ``(N,)`` predicted classes; for one-number outputs whether the output is positive.
        targets: ``(N,)`` index of the explained output of each row; 0 where the output is one number, -1 where no single index names it.
        ids: ``(N,)`` row ids.
        passes: Rows sent through the model.
        seconds: Wall time of the explanation.
        failures: For each method or metric that failed, why.
        epoch: Epoch of the training run, if any.
        step: Optimiser step of the training run, if any.
        fingerprint: SHA-256 of the probe.
        maps: For methods whose attribution's shape does not tell how it lies on the image: the map ``(N, 1, h, w)`` that does, at
            the layer's resolution; an empty tuple if there is none.
        n_steps: For methods with ``n_steps="auto"``: points that each row took, ``(N,)``.
        stage: ``"fit"``, ``"validate"`` or ``"test"``, inside a Trainer.
    """

    attributions: Mapping[str, Attribution]
    scores: Mapping[str, Mapping[str, Tensor]]
    standard_errors: Mapping[str, Mapping[str, Tensor]]
    outputs: Tensor
    predictions: Tensor
    targets: Tensor
    ids: Tensor
    passes: PassCount = PassCount()
    seconds: float = 0.0
    failures: Mapping[str, str] = field(default_factory=dict)
    epoch: int | None = None
    step: int | None = None
    fingerprint: str = ""
    maps: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    n_steps: Mapping[str, Tensor] = field(default_factory=dict)
    stage: str | None = None

    def nonfinite(self) -> dict[str, list[int]]:
        """For each method the ids of the rows whose map or score is NaN or infinite."""
        return {name: self.ids[~self._finite(name)].tolist() for name in self.attributions}

    def _finite(self, method: str) -> Tensor:
        parts = [*as_tuple(self.attributions[method]), *(s[method] for s in self.scores.values() if method in s)]
        finite = [torch.isfinite(p).flatten(1).all(1) if p.ndim > 1 else torch.isfinite(p) for p in parts]
        return torch.stack(finite).all(0)

    def scalars(self) -> dict[str, float]:
        """``<metric>/<method>``: mean over finite rows; ``nonfinite/<method>``: number of the others; ``n_steps/<method>``: mean."""
        found = {f"n_steps/{method}": steps.double().mean().item() for method, steps in self.n_steps.items()}
        for metric, by_method in self.scores.items():
            for method, values in by_method.items():
                finite = values[torch.isfinite(values)]
                if len(finite):
                    found[f"{metric}/{method}"] = finite.double().mean().item()
        found.update({f"nonfinite/{k}": float(len(v)) for k, v in self.nonfinite().items()})
        return found

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and one line per row and method: epoch, row, target, prediction, method, then every metric."""
        metrics = list(self.scores)
        lines = []
        for i, row in enumerate(self.ids.tolist()):
            head = [self.epoch, row, int(self.targets[i]), int(self.predictions[i])]
            for method in self.attributions:
                values = [self.scores[m][method][i].item() if method in self.scores[m] else None for m in metrics]
                lines.append([*head, method, *values])
        return ["epoch", "row", "target", "prediction", "method", *metrics], lines


@dataclass(frozen=True, eq=False)
class Publication:
    """What the sinks write for one explanation.

    Args:
        name: The monitor's name: prefix of every tag.
        epoch: Epoch of the run.
        step: Optimiser step of the run: the x-axis.
        scalars: Full tag (``explain/infidelity/ig``) to value.
        pictures: Full tag (``explain/ig``) to a picture ``(H, W, 3)``.
        directions: Full tag to ``"min"``, ``"max"`` or ``"last"``: which value summarises the curve.
        report: The numbers behind it.
    """

    name: str
    epoch: int
    step: int
    scalars: Mapping[str, float]
    pictures: Mapping[str, Image]
    directions: Mapping[str, str]
    report: Report

    @property
    def stage(self) -> str:
        """``"validate"`` or ``"test"``; empty in training, whose steps are explained once each."""
        return "" if self.report.stage in (None, "fit") else self.report.stage

    @property
    def caption(self) -> str:
        """``epoch 3, step 120``."""
        return f"epoch {self.epoch}, step {self.step}"


@dataclass(frozen=True)
class Mend:
    """What the guard changes about a model while a method explains it.

    Args:
        kind: ``"deeplift"`` or ``"guided"``: every activation call gets a module of its own, with that rule. Others are what the guard
            does in every explanation: ``"inplace"``, ``"recurrent"``.
        relu: ReLU calls in one forward.
        elementwise: Calls of other elementwise functions.
        pool: Calls of maxima over windows.
    """

    kind: str
    relu: int = 0
    elementwise: int = 0
    pool: int = 0

    @property
    def calls(self) -> dict[str, int]:
        """How many modules each family of calls needs."""
        return {"relu": self.relu, "elementwise": self.elementwise, "pool": self.pool}


@dataclass(frozen=True)
class Verdict:
    """What the doctor says about one method on one model.

    Args:
        method: The method's name.
        state: ``"fine"``; ``"mended"``: right, because the guard changes something; ``"warned"``: right, but of little use;
            ``"refused"``: it would be wrong.
        reason: Why.
        way_out: What the user can do about it.
        mends: What the guard does about it.
    """

    method: str
    state: str
    reason: str = ""
    way_out: str = ""
    mends: tuple[Mend, ...] = ()


class Sink(Protocol):
    """Writes explanations to one logger. Only called on global rank zero."""

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Once, before the first explanation: ``charts[monitor name][metric]`` lists the tags that belong on one chart."""
        ...

    def write(self, publication: Publication) -> None:
        """Writes one explanation."""
        ...
