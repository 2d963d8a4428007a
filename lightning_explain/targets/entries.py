"""Samples with several labels, or with forecasts, in; the same samples, once for each positive label or step, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_explain.core.contracts import Method
from lightning_explain.core.probe import Probe, as_tuple, bare
from lightning_explain.targets.selections import Horizon, Positive

_LARGEST_ID = 2**62


def by_label(probe: Probe, target: Any, methods: Mapping[str, Method]) -> Probe:
    """The probe with each sample once for each of its positive labels or steps, if the target explains these each by itself.

    Else, and where :func:`summed` says so, it is the given one. The id of an entry depends on the id of its sample and its label
    or step alone, so that draws do not depend on the others.

    Args:
        probe: The samples.
        target: Which output is explained.
        methods: The methods by name.
    """
    explained = _explained(probe, target)
    if explained is None or summed(probe, target, methods):
        return probe
    at, own = zip(*[(i, label) for i, found in enumerate(explained) for label in found or [-1]], strict=True)
    assert probe.targets is not None
    return _entries(probe, torch.tensor(at), torch.tensor(own), probe.targets.shape[1])


def remark(probe: Probe, target: Any, methods: Mapping[str, Method]) -> str:
    """Says what of a sample is not explained by itself, although the target says each, and why; else nothing.

    Args:
        probe: The samples.
        target: Which output is explained.
        methods: The methods by name.
    """
    if (of_all := summed(probe, target, methods)) or not isinstance(target, Horizon):
        return of_all
    explained = _explained(probe, target)
    if explained is None or probe.targets is None or len(explained[0]) == (count := probe.targets.shape[1]):
        return ""
    return (
        f"{len(explained[0])} of {count} steps are explained, evenly spaced; Horizon('each', most={count}) explains all"
    )


def summed(probe: Probe, target: Any, methods: Mapping[str, Method]) -> str:
    """Says that and why labels or steps of a sample are explained by their sum, where the target says each; else nothing."""
    if _explained(probe, target) is None or probe.targets is None:
        return ""
    each, all_of_them = ("step", "steps") if isinstance(target, Horizon) else ("label", "positive labels")
    sum_of = f"the {all_of_them} of a sample are explained by their sum, as one map"
    if held := [name for name, method in methods.items() if _holds(method, len(probe))]:
        names = ", ".join(map(repr, held))
        return f"{sum_of}: {names} has a feature mask or baselines for each sample; to explain each {each} by itself, give the same for all"
    if int(probe.sample_ids.abs().max()) > _LARGEST_ID // probe.targets.shape[1]:
        most = f"2**62 / {'steps' if isinstance(target, Horizon) else 'classes'}"
        return (
            f"{sum_of}: the ids of the samples are too large to number their {each}s; give Probe(ids=...) below {most}"
        )
    return ""


def _explained(probe: Probe, target: Any) -> list[list[int]] | None:
    """The labels or steps of each sample that are explained by themselves; ``None`` if no sample has several."""
    labels = probe.targets
    if probe.entries is not None or labels is None or labels.ndim < 2:
        return None
    if isinstance(target, Horizon) and target.step == "each":
        found = [target.steps(labels.shape[1])] * len(labels)
    elif isinstance(target, Positive) and labels.ndim == 2:
        found = [own.nonzero()[: target.most, 0].tolist() for own in labels.cpu() > 0.5]
    else:
        return None
    return found if max(map(len, found)) > 1 else None


def labels_of(probe: Probe, target: Any) -> Tensor | None:
    """The labels that decide what is explained, on the CPU: of an entry its own alone.

    The other steps of a forecast are -inf, because NaN is what an unknown value of a series is.
    """
    if probe.targets is None:
        return None
    labels = probe.targets.cpu()
    if probe.entries is None:
        return labels
    own = probe.entries[:, 1:]
    if isinstance(target, Horizon):
        labels = labels if labels.is_floating_point() else labels.double()
        others = (torch.arange(labels.shape[1]) != own).reshape(*labels.shape[:2], *(1,) * (labels.ndim - 2))
        return labels.clamp(min=torch.finfo(labels.dtype).min).masked_fill(others, -torch.inf)
    return torch.zeros_like(labels).scatter(1, own.clamp(min=0), (own >= 0).to(labels.dtype))


def _holds(method: Method, count: int) -> bool:
    """Whether a method has a feature mask or baseline for each sample."""
    held = tree_leaves((method.innermost.feature_mask, method.innermost.baselines))
    return any(isinstance(value, Tensor) and value.ndim > 0 and len(value) == count > 1 for value in held)


def _entries(probe: Probe, at: Tensor, own: Tensor, classes: int) -> Probe:
    def taken(value: Any) -> Any:
        by_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(probe)
        return value[at.to(value.device)] if by_sample else value

    samples = probe.sample_ids.cpu()[at].long()
    return replace(
        probe,
        inputs=bare(tuple(map(taken, as_tuple(probe.inputs)))),
        targets=taken(probe.targets),
        ids=samples * classes + own.clamp(min=0),
        masks=taken(probe.masks),
        forward_args=tuple(map(taken, probe.forward_args)),
        meta={name: [texts[i] for i in at.tolist()] for name, texts in probe.meta.items()},
        entries=torch.stack([samples, own], 1),
    )
