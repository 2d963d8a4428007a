"""Checks of what was asked for, without the model: do methods, metrics, samples, ids and masks fit each other?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric
from lightning_explain.core.naming import nearest
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.warn import warn_or_log
from lightning_explain.modalities import of_probe


def faults(
    methods: Mapping[str, Method], metrics: Mapping[str, Metric], probe: Probe, normalization: Any
) -> Iterator[str]:
    """Says what is wrong with the probe and the names, whatever the model; warns of samples that are not finite."""
    if len(probe.sample_ids.unique()) < len(probe):
        yield "Probe(ids=...) has an id twice, but draws and history are keyed by id; give each sample its own id."
    channels = [x.shape[1] for x, _ in _images(probe)]
    for part in normalization or ():
        count = len(part) if isinstance(part, Sequence) else 1
        if channels and count not in (1, *channels):
            yield (
                f"normalization={normalization!r} has {count} numbers in one of its parts, but the images have {channels[0]} "
                "channel(s); give mean and std one number for each channel, or one for all."
            )
    for name in methods:
        if name in metrics:
            yield f"A method and a metric are both named {name!r}; give one of them another name."
    samples = _odd_samples(probe)
    if samples.any():
        named = probe.sample_ids[samples.to(probe.sample_ids.device)].tolist()
        warn_or_log(f"The probe samples {named} contain NaN or infinite values; choose other samples.")


def fitted(metric: Metric, methods: Mapping[str, Method], probe: Probe) -> Metric:
    """Returns the metric fitted to the inputs.

    Raises:
        ValueError: If it has no score of such inputs, needs masks, or asks for a method that is not there.
    """
    _check_masks(metric, probe)
    for asked in metric.methods or ():
        if asked not in methods:
            raise ValueError(f"it asks for the method {asked!r}: {nearest(asked, methods)}")
    inputs = as_tuple(probe.inputs)
    return metric.named(probe.names).fitted(inputs, of_probe(probe))


def _check_masks(metric: Metric, probe: Probe) -> None:
    """Checks that the probe has masks if a metric needs them, and that they fit an input."""
    if not metric.needs_masks:
        return
    masks = probe.masks
    if masks is None:
        raise ValueError(
            "it needs masks; give Probe(masks=...), boolean regions of an input such as (N, H, W), or leave the metric out."
        )
    columns = list(zip(as_tuple(probe.inputs), of_probe(probe), strict=True))
    if all(modality.inside(masks, x) is None for x, modality in columns):
        allowed = " or ".join(str((len(probe), *(mod.grid(x) or mod.units(x)[1:]))) for x, mod in columns)
        raise ValueError(f"it got Probe(masks=...) of shape {tuple(masks.shape)}; give masks of shape {allowed}.")
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError("it got Probe(masks=...) with values other than 0 and 1; give boolean masks.")


def _images(probe: Probe) -> list[tuple[Tensor, tuple[int, int]]]:
    """The inputs that are images, with their sizes ``(H, W)``."""
    inputs = as_tuple(probe.inputs)
    return [(x, size) for x, modality in zip(inputs, of_probe(probe), strict=True) if (size := modality.pixels(x))]


def scored_by(
    explained: ExplainedFunction, metrics: Mapping[str, Metric], methods: Mapping[str, Method], maps: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns, for each metric, the methods that it will score; warns of metrics and methods without any.

    Args:
        explained: The explained function.
        metrics: Metrics by name, fitted to the inputs.
        methods: Methods by name.
        maps: Names of the methods that have a map in input space.
    """
    references = {name: method.completeness for name, method in methods.items()}
    promising = {name: reference for name, reference in references.items() if reference is not None}
    found: dict[str, tuple[str, ...]] = {}
    for name, metric in metrics.items():
        own = [method for method in maps if metric.methods is None or method in metric.methods]
        able = {n: method for n, method in methods.items() if metric.can_score(method, explained)}
        found[name] = tuple(
            n for n in metric.scored(list(methods), [n for n in own if n in able], promising) if n in able
        )
        if found[name] and (unable := [n for n in own if n not in able]):
            warn_or_log(f"The metric {name!r} leaves out {', '.join(map(repr, unable))}: it needs {metric.needs}.")
        if not found[name]:
            warn_or_log(
                f"The metric {name!r} will score none of the methods; it needs {metric.needs}. Add such a method, or leave the "
                "metric out."
            )
    for name in methods if all(found.values()) else ():
        if metrics and name not in maps and not any(name in scored for scored in found.values()):
            warn_or_log(
                f"No metric will score {name!r}: its map has no place on the image; to score it, name a layer whose map has."
            )
    return found


def check_explained(chosen: Tensor, probe: Probe) -> None:
    """Warns of finite samples whose explained output ``(N,)`` is not finite, which cannot be explained."""
    samples = ~torch.isfinite(chosen).cpu() & ~_odd_samples(probe)
    if samples.any():
        named = probe.sample_ids.cpu()[samples].tolist()
        warn_or_log(
            f"The explained output is NaN or infinite on the probe samples {named}, so their maps and scores will not be finite; "
            "check the model, its weights, output_fn and target."
        )


def check_ordinal(outputs: Tensor, target: Any, probe: Probe) -> None:
    """Warns of labels that are one more than the outputs ``(N, C)`` have indices, as those of ordinal models are."""
    classes = outputs.shape[1] if outputs.ndim == 2 else 0
    if target == "label" and classes > 1 and probe.targets is not None and bool((probe.targets == classes).any()):
        warn_or_log(
            f"The label {classes} is the highest, but the model has only {classes} outputs, as an ordinal model (CORAL) has; its samples "
            f"are explained by the last output, {classes - 1}. If labels begin at 1, subtract 1 (batch_fn=...)."
        )


def _odd_samples(probe: Probe) -> Tensor:
    """Returns ``(N,)``: whether each sample contains a value that is not finite."""
    odd = [~torch.isfinite(x).flatten(1).all(1) for x in as_tuple(probe.inputs) if x.is_floating_point() and x.ndim > 1]
    return torch.stack(odd).any(0).cpu() if odd else torch.zeros(len(probe), dtype=torch.bool)
