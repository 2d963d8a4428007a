"""The results: ``Report``, all numbers of one explanation, and ``Publication``, what loggers write of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.naming import target_of
from lightning_explain.core.png import to_png
from lightning_explain.core.probe import Attribution, Probe, all_finite, as_tuple
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.shares import shares_of

_ONE_CLASS = ("", "other", "multiclass", "binary")
"""The tasks of which each sample may have one class."""
OF_TARGET = ("outputs", "predictions", "targets", "values", "explained")
"""What there is of each of several targets."""
Picture: TypeAlias = "NDArray[np.uint8]"
"""A picture: uint8 ``(H, W, 3)``, RGB in 0..255."""


@dataclass(frozen=True)
class PassCount:
    """A cost: how many samples go through the model, forward and backward.

    Args:
        forward: Samples in forward passes.
        backward: Samples in backward passes.
    """

    forward: int = 0
    backward: int = 0

    def __mul__(self, times: int) -> PassCount:
        return PassCount(self.forward * times, self.backward * times)

    def __add__(self, other: PassCount) -> PassCount:
        return PassCount(self.forward + other.forward, self.backward + other.backward)


class SumCheck(NamedTuple):
    """How far DeepLIFT's sum is from the change of the output; each ``(N,)``, in units of output.

    Args:
        error: The sum of multiplier * (input - baseline), minus ``change``.
        change: f(x) - f(baseline).
        size: The larger of |f(x)| and |f(baseline)|.
    """

    error: Tensor
    change: Tensor
    size: Tensor

    @property
    def missed(self) -> Tensor:
        """``(N,)``: whether the error is larger than rounding explains."""
        return self.error.abs() > torch.maximum(1e-3 * self.change.abs(), 1e-5 * self.size)


class _Results(NamedTuple):
    """What follows from the numbers of a report.

    Args:
        nonfinite: What :meth:`Report.nonfinite` returns.
        undefined: What :meth:`Report.undefined` returns.
        zero: What :meth:`Report.zero` returns.
        means: The means in :meth:`Report.scalars`.
        errors: What :meth:`Report.mean_errors` returns.
    """

    nonfinite: dict[str, list[int]]
    undefined: dict[str, dict[str, list[int]]]
    zero: list[str]
    means: dict[str, float]
    errors: dict[str, float]


@dataclass(frozen=True, eq=False)
class Report:
    """Holds all numbers of one explanation: attributions, scores and the model's outputs, for each probe sample.

    All tensors are on the CPU; the samples are in the probe's order.

    Args:
        attributions: ``attributions[method]`` is what Captum returns: a tensor shaped like the input, or a tuple for
            several inputs; for a layer method, the layer's own shape.
        scores: ``scores[metric][method]`` is ``(N,)``.
        standard_errors: ``standard_errors[metric][method]`` is ``(N,)``; metrics without standard errors are missing.
        outputs: The model's outputs at the samples: ``(N,)``, ``(N, C)`` or larger; ``(N, 0)`` if they have more than two
            dimensions and more than 1,000 numbers for each sample, as segmentations have.
        predictions: ``(N,)`` predicted classes; if the output is one number per sample, 1 where it is positive and 0
            elsewhere.
        targets: ``(N,)`` index of each sample's explained output: 0 if the output is one number per sample, -1 if no
            single index names it (a tuple or a callable chose it).
        ids: ``(N,)`` sample ids; where a sample is there once for each of its labels, an id for each of them (see :attr:`samples`).
        passes: How many samples went through the model.
        seconds: Wall time of the explanation, in seconds; in a monitor's ``last_report``, and as ``explain/seconds``, with drawing
            and writing.
        failures: Each method or metric that failed, and why.
        epoch: Epoch of the training run, if any.
        step: Optimizer step of the training run, if any.
        fingerprint: SHA-256 of the probe.
        maps: Maps at the layer's resolution, ``(N, 1, h, w)``, for methods whose attributions do not show by their
            shape how they lie on the image; an empty tuple if they have no place on it.
        n_steps: For methods with ``n_steps="auto"``: how many points each sample took, ``(N,)``.
        n_draws: ``n_draws[metric][method]`` is ``(N,)``: for metrics with ``n_perturb_samples="auto"``, how many draws each sample took.
        stage: ``"fit"``, ``"validate"`` or ``"test"`` inside a Trainer; ``None`` outside.
        completeness_errors: For each DeepLIFT method, ``(N,)``: the sum of multipliers * (input - baseline), minus
            f(x) - f(baseline); signed, in units of output, averaged over the baselines if there are several. Layers that
            other connections bypass have no entry.
        values: ``(N,)`` the explained output f of each sample; empty in reports that were saved by version 0.1.0.
        undefined_reasons: For each score that may be undefined, which is NaN: why.
        meta: Text about the samples that the batches held, such as file names: N strings for each name.
        stds: The standard deviations that came with the probe (``Probe.stds``).
        explained: What is known of the explained output of each sample, ``(N,)`` each, where several numbers or one of many places are
            explained: the ``position``, ``class``, ``share`` of the pixels and so on, by name (``Selection.facts``). Of a segmentation,
            ``region`` is a byte for each place of the outputs, ``(N, h, w)``: 1, where it is explained, plus 2, where it is predicted, plus
            4, where it is labelled as the explained class.
        task: What the model was trained for, such as ``"multilabel"``; empty if it is not known.
        logged: What the module had logged by then, by name, such as ``val_loss``: the finite numbers of ``trainer.callback_metrics``, but
            for those of monitors. Empty outside of a Trainer, and in older files.
        run: What is true of the whole run; in a monitor's ``last_report`` and after ``load_reports``, else ``None``.
        probe: The samples, where they are known: in a monitor's ``last_report``, and after ``load_reports`` unless the monitor had
            ``save_inputs=False``.
        by_target: Of several targets, what there is of each, by its name: ``outputs``, ``predictions``, ``targets``, ``values``,
            ``explained``; those of the first are also the report's own. Maps and scores are those of ``"<method>@<target>"``.
        tasks: The task of each of several targets.

    Example:
        >>> import torch
        >>> from lightning_explain import Report
        >>> maps, ids = {"ig": torch.ones(2, 3, 8, 8)}, torch.tensor([7, 9])
        >>> scores = {"relevance_mass": {"ig": torch.tensor([0.25, 0.75])}}
        >>> report = Report(maps, scores, {}, outputs=torch.zeros(2, 5), predictions=ids * 0, targets=ids * 0, ids=ids)
        >>> report.scalars()
        {'relevance_mass/ig': 0.5, 'nonfinite/ig': 0.0}
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
    completeness_errors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    undefined_reasons: Mapping[str, str] = field(default_factory=dict)
    meta: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stds: tuple[Tensor, ...] = ()
    explained: Mapping[str, Tensor] = field(default_factory=dict)
    task: str = ""
    logged: Mapping[str, float] = field(default_factory=dict)
    n_draws: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    run: RunInfo | None = None
    probe: Probe | None = None
    by_target: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)

    def of_target(self, name: str) -> Report:
        """The report of one of several targets alone: its maps, scores, outputs and labels.

        Args:
            name: The name of the target, one of ``by_target``.
        """

        def own(by_method: Mapping[str, Any]) -> dict[str, Any]:
            return {method: value for method, value in by_method.items() if target_of(method) == name}

        parts = {kind: own(getattr(self, kind)) for kind in ("attributions", "maps", "n_steps", "completeness_errors")}
        for kind in ("scores", "standard_errors", "n_draws"):
            parts[kind] = {score: own(by_method) for score, by_method in getattr(self, kind).items()}
        of_all: Any = {**parts, **self.by_target[name]}
        outputs, probe, run = of_all["outputs"], self.probe, self.run
        if probe is not None:
            names = fitting_names(probe.class_names, outputs)
            probe = replace(probe, targets=probe.labels.get(name), labels={}, class_names=names)
        if run is not None:
            drawing = {**run.drawing, "class_names": fitting_names(run.drawing.get("class_names"), outputs)}
            run = replace(run, class_names=tuple(fitting_names(run.class_names, outputs) or ()), drawing=drawing)
        return replace(self, **of_all, task=self.tasks.get(name, ""), probe=probe, run=run, by_target={}, tasks={})

    def by_targets(self) -> list[Report]:
        """The report of each of several targets; the report itself if there are not several."""
        return [self.of_target(name) for name in self.by_target] or [self]

    @property
    def samples(self) -> Tensor:
        """``(N,)`` the ids of the samples, the same one for each label of a sample that is explained by itself."""
        return self.explained.get("sample", self.ids)

    def nonfinite(self) -> dict[str, list[int]]:
        """Method name to the ids of the samples whose map or score is NaN or infinite, and not merely undefined."""
        return dict(self._results.nonfinite)

    def undefined(self) -> dict[str, dict[str, list[int]]]:
        """Score and method to the ids of the samples that have no such score, where there are any.

        ``undefined_reasons`` says why: a mask is empty, for example. Samples in :meth:`nonfinite` are left out.
        """
        return dict(self._results.undefined)

    def zero(self) -> list[str]:
        """The methods whose map is zero everywhere, on all samples."""
        return list(self._results.zero)

    @cached_property
    def _results(self) -> _Results:
        """What the methods return, computed once; a report that comes from another process brings it along."""
        methods = dict.fromkeys([*self.attributions, *(name for found in self.scores.values() for name in found)])
        failed = {method: self._failed(method) for method in methods}
        nonfinite = {method: self.samples[failed[method]].tolist() for method in self.attributions}
        undefined: dict[str, dict[str, list[int]]] = {}
        for score in self.undefined_reasons:
            for method, values in self.scores.get(score, {}).items():
                samples = self.samples[values.isnan() & ~failed[method]].tolist()
                if samples:
                    undefined.setdefault(score, {})[method] = samples
        maps = self.attributions.items()
        zero = [name for name, value in maps if not any(bool(part.any()) for part in as_tuple(value))]
        return _Results(nonfinite, undefined, zero, self._means(), self._mean_errors())

    def _failed(self, method: str) -> Tensor:
        """Whether the map or a score of each sample is not finite without a reason, ``(N,)``."""
        parts = list(as_tuple(self.attributions[method])) if method in self.attributions else []
        for score, by_method in self.scores.items():
            values = by_method.get(method, torch.zeros(len(self.ids)))
            parts.append(values.nan_to_num(0.0, torch.inf, -torch.inf) if score in self.undefined_reasons else values)
        return ~all_finite(*parts, torch.zeros(len(self.ids)))

    def mean_errors(self) -> dict[str, float]:
        """Standard error of each mean in :meth:`scalars`, given these samples: sqrt(sum of squared errors) / N."""
        return dict(self._results.errors)

    def _mean_errors(self) -> dict[str, float]:
        found = {}
        for score, by_method in self.standard_errors.items():
            values = self.scores.get(score, {})
            for method in (name for name in by_method if name in values):
                finite = by_method[method][torch.isfinite(values[method])].double()
                if len(finite):
                    found[f"{score}/{method}"] = finite.square().sum().sqrt().item() / len(finite)
        return found

    def scalars(self) -> dict[str, float]:
        """One number per metric and method, by tag.

        ``<metric>/<method>`` is the mean over samples with a finite score, ``nonfinite/<method>`` the number of samples
        with a non-finite map or score, ``undefined/<metric>/<method>`` that of samples for which the score is undefined, where
        there are any, ``n_steps/<method>`` the mean number of points, ``n_draws/<metric>/<method>`` that of draws.
        """
        found = dict(self._results.means)
        found.update({f"nonfinite/{k}": float(len(v)) for k, v in self._results.nonfinite.items()})
        undefined = self._results.undefined.items()
        found.update({f"undefined/{s}/{k}": float(len(v)) for s, by_method in undefined for k, v in by_method.items()})
        return found

    def _means(self) -> dict[str, float]:
        found = {f"n_steps/{method}": steps.double().mean().item() for method, steps in self.n_steps.items()}
        for metric, by_method in self.n_draws.items():
            found |= {f"n_draws/{metric}/{method}": n.double().mean().item() for method, n in by_method.items()}
        for metric, by_method in self.scores.items():
            for method, values in by_method.items():
                finite = values[torch.isfinite(values)]
                if len(finite):
                    found[f"{metric}/{method}"] = finite.double().mean().item()
        return found

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names, and one line per sample and method, tidy: each number in a column of its own, ``None`` where there is none.

        ``epoch``, ``step``, ``sample`` (its id); ``label`` and ``label_name`` if the probe is known and has one class for each sample;
        ``target`` (index of the explained output); ``prediction`` (the class, where the task has one for each sample or for what is
        explained of it; or the output itself if that is one number), ``prediction_name``, ``probability`` (the predicted class's softmax,
        where there are several outputs, or the score of an object); ``value`` (f, the explained output), ``method``, each score, each
        score's standard error as ``<score>_error``, and texts about the samples (``meta``).

        Example:
            >>> import torch
            >>> from lightning_explain import Report
            >>> scores, ids = {"relevance_mass": {"ig": torch.tensor([0.25, 0.75])}}, torch.tensor([7, 9])
            >>> found = Report({"ig": torch.ones(2, 3)}, scores, {}, torch.tensor([[0.0, 2.0], [0.0, 0.0]]), ids * 0, ids * 0, ids)
            >>> columns, lines = found.table()
            >>> [[line[columns.index(name)] for name in ("sample", "probability", "relevance_mass")] for line in lines]
            [[7, 0.11920292202211755, 0.25], [9, 0.5, 0.75]]
        """
        if self.by_target:
            tables = [part.table() for part in self.by_targets()]
            return tables[0][0], [line for _, part in tables for line in part]
        columns = ["epoch", "step", "sample", "label", "label_name", "target", "prediction", "prediction_name"]
        columns += ["probability", "value", "method", *self.scores]
        columns += [*(f"{score}_error" for score in self.standard_errors), *self.meta]
        found = [*self.scores.values(), *self.standard_errors.values()]
        lines = [
            [*about, method, *(_number(by_method.get(method), i) for by_method in found), *texts]
            for i, about in enumerate(self._samples())
            for texts in [[texts[i] for texts in self.meta.values()]]
            for method in self.attributions
        ]
        return columns, lines

    def _samples(self) -> Iterator[list[Any]]:
        """What the table says of each sample, whatever the method."""
        labels = None if self.probe is None else self.probe.targets
        classes = labels is not None and labels.numel() == len(labels) and not labels.is_floating_point()
        predictions, shares = self._predicted()
        for i, output in enumerate(self.outputs):
            predicted, share = (None if found is None else found[i].item() for found in (predictions, shares))
            label = None if labels is None or not classes else int(labels.reshape(-1)[i])
            index = None if predicted is None else int(predicted)
            shown, name = (float(output), None) if output.numel() == 1 else (index, self._class_name(index))
            names = [label, self._class_name(label), int(self.targets[i]), shown, name]
            yield [self.epoch, self.step, int(self.samples[i]), *names, share, _number(self.values, i)]

    def _predicted(self) -> tuple[Tensor | None, Tensor | None]:
        """The predicted class of each sample ``(N,)`` and its probability; ``None`` where the task has no such thing."""
        facts = self.explained
        if self.task == "detection":
            return facts.get("class"), facts.get("probability")
        if self.task not in _ONE_CLASS:
            return facts.get("predicted"), facts.get("probability")
        if self.outputs.ndim != 2 or self.outputs.shape[1] < 2:
            return self.predictions, None
        return self.predictions, shares_of(self.outputs).gather(1, self.predictions[:, None]).squeeze(1)

    def _class_name(self, index: int | None) -> str | None:
        names = (self.run and self.run.class_names) or (self.probe and self.probe.class_names) or ()
        return str(names[index]) if index is not None and 0 <= index < len(names) else None


def fitting_names(names: Sequence[str] | None, outputs: Tensor) -> Sequence[str] | None:
    """The names of classes, if one of several outputs ``(N, ...)`` has so many classes; otherwise ``None``."""
    classes = 1 if outputs.ndim == 1 else outputs.shape[1]
    return names if names and len(names) == (2 if classes == 1 else classes) else None


def _number(values: Tensor | None, i: int) -> float | None:
    return None if values is None or not len(values) else values[i].item()


@dataclass(frozen=True, eq=False)
class Publication:
    """Everything that the sinks write for one explanation.

    Args:
        name: The monitor's name, the prefix of every tag.
        epoch: Epoch of the run.
        step: Optimizer step of the run, the x-axis of the charts.
        scalars: Full tag (``explain/infidelity/ig``) to value.
        pictures: Full tag (``explain_maps/overview``, ``explain_maps/ig``, ``explain_maps/history/ig``) to a picture ``(H, W, 3)``.
        directions: Full tag to ``"min"``, ``"max"`` or ``"last"``: which value summarizes the curve.
        report: The report that the scalars and pictures were made from.
        errors: Full tag to the standard error of a scalar, given these samples, where it is known.
        uncharted: Full tags of scalars that dashboards do not get, because another score says it in a comparable way.
        png: Full tag to the PNG file of a picture, as far as :meth:`files` has made them.
        draw_sample: Called as ``draw_sample(method, index)``, returns a picture of one sample's map alone: the original beside the heat
            map, without words. ``index`` is the sample's place in the report, from 0.
        sample_png: These pictures as PNG files, by method and index, as far as another process has made them.
        alerts: What the alerts that fired at this explanation say.
        texts: Called as ``texts("html")`` or ``texts("markdown")``, returns maps of words as text, by full tag (``explain_words/ig``).
    """

    name: str
    epoch: int
    step: int
    scalars: Mapping[str, float]
    pictures: Mapping[str, Picture]
    directions: Mapping[str, str]
    report: Report
    errors: Mapping[str, float] = field(default_factory=dict)
    uncharted: frozenset[str] = frozenset()
    png: dict[str, bytes] = field(default_factory=dict)
    draw_sample: Callable[[str, int], Picture] | None = None
    sample_png: Mapping[tuple[str, int], bytes] = field(default_factory=dict)
    alerts: Sequence[str] = ()
    texts: Callable[[str], Mapping[str, str]] = lambda form: {}

    def files(self) -> dict[str, bytes]:
        """The pictures as PNG files, in which the epoch is noted; made once for all sinks."""
        missing = [tag for tag in self.pictures if tag not in self.png]
        if missing:
            encode = partial(to_png, texts={"epoch": str(self.epoch)})
            # Compressing releases Python's lock.
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                self.png.update(zip(missing, pool.map(encode, map(self.pictures.__getitem__, missing)), strict=True))
        return {tag: self.png[tag] for tag in self.pictures}

    def sample_file(self, method: str, index: int) -> bytes | None:
        """The picture of one sample's map alone as a PNG file; ``None`` where no pictures are drawn."""
        if (method, index) in self.sample_png or self.draw_sample is None:
            return self.sample_png.get((method, index))
        return to_png(self.draw_sample(method, index), {})

    @property
    def scores(self) -> dict[str, float]:
        """The scores that dashboards get, by full tag."""
        found = self.report.scores.items()
        tags = [f"{self.name}/{score}/{method}" for score, by_method in found for method in by_method]
        return {tag: self.scalars[tag] for tag in tags if tag in self.scalars and tag not in self.uncharted}

    @property
    def charted(self) -> dict[str, float]:
        """The scalars that dashboards get: the scores, and what is none, such as ``seconds``, apart as ``<name>_run/seconds``."""
        scores, start = self.scores, len(self.name)
        others = (tag for tag in self.scalars if tag not in scores and tag not in self.uncharted)
        return scores | {f"{self.name}_run{tag[start:]}": self.scalars[tag] for tag in others}

    @property
    def stage(self) -> str:
        """``"validate"`` or ``"test"``; an empty string in training."""
        return "" if self.report.stage in (None, "fit") else self.report.stage

    @property
    def caption(self) -> str:
        """Epoch and step in words, such as ``epoch 3, step 120``."""
        return f"epoch {self.epoch}, step {self.step}"
