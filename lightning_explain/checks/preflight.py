"""Checks before the first explanation: do arguments, samples and masks fit each other and the model?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, Reference
from lightning_explain.core.naming import nearest
from lightning_explain.core.points import path_of
from lightning_explain.core.probe import Probe, Samples, as_tuple
from lightning_explain.engine.features import features_of
from lightning_explain.modalities import guess

# Points of a path that are generated (and evaluated, if only outputs are read): the first is often the sample itself.
_POINTS = 2


def preflight(name: str, method: Method, explained: ExplainedFunction, sample: Samples) -> None:
    """Checks that a method's arguments fit a sample, by building its baselines, features and first points.

    Args:
        name: The method's name.
        method: The innermost method, without NoiseTunnel.
        explained: The explained function.
        sample: One sample, with its target.

    Raises:
        ValueError: If an argument does not fit the sample or the layer.
        TypeError: If an argument has a type that does not.
    """
    try:
        with torch.no_grad():
            _preflight_method(method, explained, sample)
    except (ValueError, TypeError) as error:
        raise type(error)(f"The method {name!r} ({type(method).__name__}): {error}") from error
    except (AssertionError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"{str(error).rstrip('.')}. Check its arguments: {str(method)[:500]}."
        raise ValueError(f"The method {name!r} does not fit the samples: {reason}") from error


def _preflight_method(method: Any, explained: ExplainedFunction, sample: Samples) -> None:
    if method.neuron_selector is not None:
        explained = method.focused(explained)
        explained.evaluate(sample)
    (explained.distribution if method.takes_distribution else explained.baseline)(method.baselines, sample)
    if method.feature_mask is not None:
        features_of(method.feature_mask, explained, sample)
    method.fits(explained, sample)
    path = path_of(method)
    if path is not None:
        for point in islice(path.points(explained, sample), _POINTS):
            if not method.reads:
                explained.evaluate(point.samples)


def check_requests(methods: Mapping[str, Method], metrics: Mapping[str, Metric], probe: Probe) -> None:
    """Checks that methods and metrics fit each other and the number of samples.

    Raises:
        ValueError: If one of them does not.
    """
    check_named(methods, metrics)
    for name, metric in metrics.items():
        check_masks(name, metric, probe)
        for asked in metric.methods or ():
            if asked not in methods:
                raise ValueError(f"The metric {name!r} asks for the method {asked!r}: {nearest(asked, methods)}")
    for name, method in methods.items():
        if len(probe) < method.innermost.samples_needed:
            raise ValueError(
                f"The method {name!r} ({type(method).__name__}) needs at least {method.innermost.samples_needed} samples at "
                f"a time, but the probe has {len(probe)}; choose more samples or leave the method out."
            )


def scored_by(
    metrics: Mapping[str, Metric], methods: Mapping[str, Method], maps: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns, for each metric, the methods that it will score; warns of metrics and methods without any.

    Args:
        metrics: Metrics by name, fitted to the inputs.
        methods: Methods by name.
        maps: Names of the methods that have a map in input space.
    """
    references = {name: method.completeness for name, method in methods.items()}
    promising = {name: reference for name, reference in references.items() if reference is not None}
    found = {name: _scored(metric, list(methods), maps, promising) for name, metric in metrics.items()}
    for name, scored in found.items():
        if not scored:
            warnings.warn(
                f"The metric {name!r} will score none of the methods; it needs "
                f"{metrics[name].needs}. Add such a method, or leave the metric out.",
                stacklevel=2,
            )
    for name in methods if all(found.values()) else ():
        if metrics and name not in maps and not any(name in scored for scored in found.values()):
            warnings.warn(
                f"No metric will score {name!r}: its map has no place on the image; to score it, name a layer whose map has.",
                stacklevel=2,
            )
    return found


def _scored(
    metric: Metric, methods: Sequence[str], maps: Sequence[str], references: Mapping[str, Reference]
) -> tuple[str, ...]:
    maps = [name for name in maps if metric.methods is None or name in metric.methods]
    return tuple(metric.scored(methods, maps, references))


def check_finite(probe: Probe) -> None:
    """Warns of samples with NaN or infinite values, whose maps and scores would not be finite either."""
    samples = _odd_samples(probe)
    if samples.any():
        named = probe.sample_ids[samples.to(probe.sample_ids.device)].tolist()
        warnings.warn(f"The probe samples {named} contain NaN or infinite values; choose other samples.", stacklevel=2)


def _odd_samples(probe: Probe) -> Tensor:
    """Returns ``(N,)``: whether each sample contains a value that is not finite."""
    odd = [~torch.isfinite(x).flatten(1).all(1) for x in as_tuple(probe.inputs) if x.is_floating_point() and x.ndim > 1]
    return torch.stack(odd).any(0).cpu() if odd else torch.zeros(len(probe), dtype=torch.bool)


def check_explained(chosen: Tensor, probe: Probe) -> None:
    """Warns of finite samples whose explained output is not finite, which cannot be explained."""
    samples = ~torch.isfinite(chosen).cpu() & ~_odd_samples(probe)
    if samples.any():
        named = probe.sample_ids.cpu()[samples].tolist()
        warnings.warn(
            f"The explained output is NaN or infinite on the probe samples {named}, so their maps and scores will not be finite; "
            "check the model, its weights, output_fn and target.",
            stacklevel=2,
        )


def check_masks(name: str, metric: Metric, probe: Probe) -> None:
    """Checks that the probe has masks if a metric needs them, and that they fit the images.

    Raises:
        ValueError: If there are none, or they do not mark the pixels of an image.
    """
    if not metric.needs_masks:
        return
    masks = probe.masks
    if masks is None:
        raise ValueError(
            f"The metric {name!r} needs masks; give Probe(masks=...), boolean regions (N, H, W), or leave the metric out."
        )
    inputs = as_tuple(probe.inputs)
    sizes = [size for x, modality in zip(inputs, guess(inputs), strict=True) if (size := modality.pixels(x))]
    if not sizes:
        raise ValueError(
            f"The metric {name!r} needs images (N, C, H, W), of which masks are regions; leave the metric out."
        )
    if tuple(masks.shape[1:]) not in sizes:
        allowed = " or ".join(str((len(probe), *size)) for size in sizes)
        raise ValueError(
            f"The metric {name!r} got Probe(masks=...) of shape {tuple(masks.shape)}; give masks of shape {allowed}."
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError(
            f"The metric {name!r} got Probe(masks=...) with values other than 0 and 1; give boolean masks."
        )


def check_ids(probe: Probe) -> None:
    """Checks that sample ids are unique, because draws and history are keyed by them.

    Raises:
        ValueError: If two samples have the same id.
    """
    if len(probe.sample_ids.unique()) < len(probe):
        raise ValueError(
            "Probe(ids=...) has an id twice, but draws and history are keyed by id; give each sample its own id."
        )


def check_normalization(normalization: Any, probe: Probe) -> None:
    """Checks that a normalization has as many channels as the images.

    Raises:
        ValueError: If the numbers of channels differ.
    """
    inputs = as_tuple(probe.inputs)
    channels = [x.shape[1] for x, modality in zip(inputs, guess(inputs), strict=True) if modality.pixels(x)]
    for part in normalization or ():
        count = len(part) if isinstance(part, Sequence) else 1
        if channels and count not in (1, *channels):
            raise ValueError(
                f"normalization={normalization!r} has {count} numbers in one of its parts, but the images have {channels[0]} "
                "channel(s); give mean and std one number for each channel, or one for all."
            )


def check_named(methods: Mapping[str, Method], metrics: Mapping[str, Metric]) -> None:
    """Checks that no method and metric have the same name.

    Raises:
        ValueError: If two of them do.
    """
    for name in methods:
        if name in metrics:
            raise ValueError(f"A method and a metric are both named {name!r}; give one of them another name.")


def model_error(error: Exception, probe: Probe) -> Exception:
    """Returns the error to raise when the model fails on the probe, with the shapes that it was given."""
    shapes = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in as_tuple(probe.inputs))
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(
        f"The model cannot be called with the probe's inputs {shapes} and {len(probe.forward_args)} forward_args: "
        f"{str(error).rstrip('.')}. Give Probe(inputs=..., forward_args=...) as its forward takes them, or forward_fn=...; "
        "for samples that are chosen from a loader, give batch_fn=...."
    )
