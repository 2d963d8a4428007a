"""What can be seen before the first explanation: whether samples, masks and arguments fit each other and the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, Reference, samples_needed
from lightning_explain.core.naming import nearest
from lightning_explain.core.points import path_of
from lightning_explain.core.probe import Probe, Samples, as_tuple
from lightning_explain.engine.features import features_of

# Points of a path that are made, and evaluated where nothing is differentiated: the first is often the sample itself.
_POINTS = 2


def preflight(name: str, method: Method, explained: ExplainedFunction, sample: Samples) -> None:
    """Makes what a method makes of a sample before it asks the model, and refuses what does not fit.

    Args:
        name: The method's name.
        method: The method, inside all that is around it.
        explained: The explained function.
        sample: One sample, with its target.

    Raises:
        ValueError: If an argument does not fit the sample or the layer.
        TypeError: If it is of a kind that does not.
    """
    try:
        with torch.no_grad():
            _preflight_method(method, explained, sample)
    except (ValueError, TypeError) as error:
        raise type(error)(f"The method {name!r} ({type(method).__name__}): {error}") from error
    except (AssertionError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"{str(error).rstrip('.')}. It is {str(method)[:500]}."
        raise ValueError(f"The method {name!r} does not fit the samples: {reason}") from error


def _preflight_method(method: Any, explained: ExplainedFunction, sample: Samples) -> None:
    if getattr(method, "neuron_selector", None) is not None:
        explained = method.focused(explained)
        explained.evaluate(sample)
    if hasattr(method, "baselines"):
        # Methods of a distribution take the probe by default.
        of_many = type(method).baselines == "probe"
        (explained.distribution if of_many else explained.baseline)(method.baselines, sample)
    if hasattr(method, "feature_mask"):
        features_of(method.feature_mask, explained, sample)
    if hasattr(method, "fits"):
        method.fits(explained, sample)
    path = path_of(method) if hasattr(method, "path") else None
    if path is not None:
        for point in islice(path.points(explained, sample), _POINTS):
            if not method.reads:
                explained.evaluate(point.samples)


def check_requests(methods: Mapping[str, Method], metrics: Mapping[str, Metric], probe: Probe) -> None:
    """Refuses methods and metrics that do not fit each other or the number of samples.

    Raises:
        ValueError: If one does not.
    """
    check_named(methods, metrics)
    for name, metric in metrics.items():
        check_masks(name, metric, probe)
        for asked in getattr(metric, "methods", None) or ():
            if asked not in methods:
                raise ValueError(f"The metric {name!r} asks for the method {asked!r}: {nearest(asked, methods)}")
    for name, method in methods.items():
        if len(probe) < samples_needed(method):
            raise ValueError(
                f"The method {name!r} ({type(method).__name__}) looks at several samples at a time, at least "
                f"{samples_needed(method)}, but the probe has {len(probe)}; choose more samples or leave it out."
            )


def scored_by(
    metrics: Mapping[str, Metric], methods: Mapping[str, Method], maps: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """For each metric the methods that it will score; who is scored by none is told of.

    Args:
        metrics: By name, fitted to the inputs.
        methods: By name.
        maps: Names of the methods that have a map in input space.
    """
    references = {name: getattr(method, "reference", None) for name, method in methods.items()}
    promising = {name: reference for name, reference in references.items() if reference is not None}
    found = {name: _scored(metric, list(methods), maps, promising) for name, metric in metrics.items()}
    for name, scored in found.items():
        if not scored:
            warnings.warn(
                f"The metric {name!r} will score none of the methods; it needs "
                f"{getattr(metrics[name], 'needs', 'a map that has a place on the image')}.",
                stacklevel=2,
            )
    for name in methods if all(found.values()) else ():
        if metrics and name not in maps and not any(name in scored for scored in found.values()):
            warnings.warn(f"No metric will score {name!r}: its map has no place on the image.", stacklevel=2)
    return found


def _scored(
    metric: Metric, methods: Sequence[str], maps: Sequence[str], references: Mapping[str, Reference]
) -> tuple[str, ...]:
    own, wanted = getattr(metric, "scored", None), getattr(metric, "methods", None)
    maps = [name for name in maps if wanted is None or name in wanted]
    return tuple(own(methods, maps, references) if own is not None else maps)


def check_finite(probe: Probe) -> None:
    """Tells of samples that are not finite, for nothing that is found at them will be."""
    samples = _odd_samples(probe)
    if samples.any():
        named = probe.sample_ids[samples.to(probe.sample_ids.device)].tolist()
        warnings.warn(
            f"The probe samples {named} hold numbers that are NaN or infinite; choose other samples.", stacklevel=2
        )


def _odd_samples(probe: Probe) -> Tensor:
    """``(N,)``: whether a sample holds numbers that are not finite."""
    odd = [~torch.isfinite(x).flatten(1).all(1) for x in as_tuple(probe.inputs) if x.is_floating_point() and x.ndim > 1]
    return torch.stack(odd).any(0).cpu() if odd else torch.zeros(len(probe), dtype=torch.bool)


def check_explained(chosen: Tensor, probe: Probe) -> None:
    """Tells of samples whose explained output is not finite though they are: it cannot be explained there."""
    samples = ~torch.isfinite(chosen).cpu() & ~_odd_samples(probe)
    if samples.any():
        named = probe.sample_ids.cpu()[samples].tolist()
        warnings.warn(
            f"The explained output is NaN or infinite on the probe samples {named}, where no map or score will be finite; see to the "
            "model, its weights, output_fn and target.",
            stacklevel=2,
        )


def check_masks(name: str, metric: Metric, probe: Probe) -> None:
    """Refuses a metric that needs masks where there are none that fit.

    Raises:
        ValueError: If there are none, or they do not mark the pixels of an image.
    """
    if not getattr(metric, "needs_masks", False):
        return
    masks = probe.masks
    if masks is None:
        raise ValueError(
            f"The metric {name!r} needs masks: give Probe(masks=...), a boolean region (N, H, W), or leave it out."
        )
    sizes = [tuple(x.shape[2:]) for x in as_tuple(probe.inputs) if x.ndim == 4]
    if not sizes:
        raise ValueError(f"The metric {name!r} needs images (N, C, H, W), of which masks are regions; leave it out.")
    if tuple(masks.shape[1:]) not in sizes:
        allowed = " or ".join(str((len(probe), *size)) for size in sizes)
        raise ValueError(
            f"The metric {name!r} needs Probe(masks=...) of the shape {allowed}; got {tuple(masks.shape)}."
        )
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError(
            f"The metric {name!r} needs Probe(masks=...) of True and False; got other numbers than 0 and 1."
        )


def check_ids(probe: Probe) -> None:
    """Refuses samples of one name, whose draws and history would be one.

    Raises:
        ValueError: If there are such.
    """
    if len(probe.sample_ids.unique()) < len(probe):
        raise ValueError(
            "Probe(ids=...) names a sample twice; draws and history are keyed by ids, so each sample needs its own."
        )


def check_normalization(normalization: Any, probe: Probe) -> None:
    """Refuses a normalization of other channels than the images have.

    Raises:
        ValueError: If their numbers differ.
    """
    channels = [x.shape[1] for x in as_tuple(probe.inputs) if x.ndim == 4]
    for part in normalization or ():
        count = len(part) if isinstance(part, Sequence) else 1
        if channels and count not in (1, *channels):
            raise ValueError(
                f"normalization={normalization!r} has {count} numbers in one of its parts, but the images have {channels[0]} "
                "channel(s); mean and std both need one number for each channel, or one for all."
            )


def check_named(methods: Mapping[str, Method], metrics: Mapping[str, Metric]) -> None:
    """Refuses a method and a metric of one name.

    Raises:
        ValueError: If there are such.
    """
    for name in methods:
        if name in metrics:
            raise ValueError(f"A method and a metric are both named {name!r}; give one of them another name.")


def model_error(error: Exception, probe: Probe) -> Exception:
    """What to say when the model cannot be called on the probe."""
    shapes = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in as_tuple(probe.inputs))
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(
        f"The model cannot be called with the probe's inputs {shapes} and {len(probe.forward_args)} forward_args: "
        f"{str(error).rstrip('.')}. Give Probe(inputs=..., forward_args=...) as its forward takes them, or forward_fn=...; "
        "batch_fn=... for samples that are chosen from a loader."
    )
