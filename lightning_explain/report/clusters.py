"""A report's maps of one class in; groups of samples that share a strategy, found by spectral relevance analysis (SpRAy), out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_explain.core.contracts import Modality
from lightning_explain.core.naming import nearest
from lightning_explain.core.probe import all_finite, as_tuple, flat
from lightning_explain.core.report import Report
from lightning_explain.core.schema import brief
from lightning_explain.core.validation import check_whole
from lightning_explain.modalities import Text, guess, of_probe
from lightning_explain.modalities.placement import arrange

MOST = 8
"""The most clusters that are looked for."""
SIDE = 16
"""The most places along each axis of a map; larger ones are averaged in blocks."""
NEIGHBORS = 5
"""Each sample is connected with at least so many others; with the square root of their number if that is more."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which samples are explained alike. In shapes, N is the number of samples with a map.

    Args:
        method: The method.
        target: The explained output; ``None``: all.
        ids: ``(N,)`` sample ids.
        labels: ``(N,)`` the cluster of each sample, from 0, the largest first.
        eigenvalues: ``(K,)`` the smallest eigenvalues of the graph's normalized Laplacian, ascending: as many are near 0 as there are
            clusters, and behind the last of them is the largest gap of their square roots.
        number: How many clusters there are, 1 to 8.
        left_out: Ids of the samples whose map is zero or not finite.
        entries: ``(N,)`` their ids in ``Report.ids``: where a sample is explained once for each of its labels, one for each of them.
    """

    method: str
    target: int | None
    ids: Tensor
    labels: Tensor
    eigenvalues: Tensor
    number: int
    left_out: tuple[int, ...] = ()
    entries: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def samples(self) -> list[list[int]]:
        """The ids of the samples in each cluster."""
        return [self.ids[self.labels == cluster].tolist() for cluster in range(self.number)]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Column names, and one line per sample: its id and its cluster."""
        return ["sample", "cluster"], [list(line) for line in zip(self.ids.tolist(), self.labels.tolist(), strict=True)]


def clusters(report: Report, method: str, target: int | None = None) -> Clusters:
    """Takes a report, and returns groups of samples whose maps are alike: samples that share a strategy, or a shortcut.

    Spectral relevance analysis (SpRAy, Lapuschkin et al. 2019). Maps, with their signs, are summed within each unit, averaged in blocks
    down to at most 16 places along each axis, and brought to length 1. A graph connects each sample with its nearest neighbors,
    and its normalized Laplacian tells the clusters apart; the largest gap between its smallest eigenvalues (their square roots, which are
    evenly spaced where samples are evenly spread) tells how many there are, at most 8.
    In texts, places mean nothing, so relevance is summed for each different token. Results do not depend on any random state.

    A cluster is a question, not an answer: look at its maps. Take many samples of one class (``ProbeSelection(count=64)``), and a signed
    map such as that of IntegratedGradients.

    Args:
        report: The report; with its probe (``load_reports`` gives it) for texts and groups of columns.
        method: The method.
        target: Only samples of which this output is explained (``Report.targets``); ``None``: all.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If there is no such method, its map has no place on the input, or fewer than 8 samples are left.

    Example:
        >>> from lightning_explain import Probe, Report, clusters
        >>> maps, ids = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(20)
        >>> maps[::2, :, :4], maps[1::2, :, 4:] = 0, 0  # upper half, lower half
        >>> found = clusters(Report({"ig": maps}, {}, {}, torch.zeros(20, 2), ids * 0, ids * 0, ids), "ig", target=0)
        >>> found.number, found.samples()[0][:3]
        (2, [0, 2, 4])
    """
    if method not in report.attributions:
        raise ValueError(f"The report has no map of {method!r}: {nearest(method, report.attributions)}")
    if target is not None:
        check_whole("clusters", "target", target, 0)
    features = _features(report, method)
    chosen = torch.ones_like(report.ids, dtype=torch.bool) if target is None else report.targets == target
    known = all_finite(features) & (features.abs().amax(1) > 0)
    kept = features[chosen & known]
    if len(kept) < MOST:
        among = (
            f" with target {target} (targets: {brief(sorted(set(report.targets.tolist())))})"
            if target is not None
            else ""
        )
        raise ValueError(
            f"Only {len(kept)} samples{among} have a map of {method!r}; clusters need at least {MOST}. Give the monitor more samples, such "
            "as ProbeSelection(count=64), or target=None for those of all classes."
        )
    labels, eigenvalues = _clustered(F.normalize(kept))
    left_out, shown = tuple(report.samples[chosen & ~known].tolist()), chosen & known
    number = int(labels.max()) + 1
    return Clusters(method, target, report.samples[shown], labels, eigenvalues, number, left_out, report.ids[shown])


def _features(report: Report, method: str) -> Tensor:
    """What is compared: ``(N, K)`` numbers for each sample."""
    found = report.maps.get(method, as_tuple(report.attributions[method]))
    inputs = as_tuple(found if report.probe is None else report.probe.inputs)
    kinds = guess(found) if report.probe is None else of_probe(report.probe)
    arranged = arrange(found, inputs, kinds) if found else None
    if arranged is None:
        raise ValueError(
            f"The map of {method!r} has no place on the input, so samples cannot be compared; use another method."
        )
    parts = zip(arranged, inputs, kinds, strict=True)
    return torch.cat([flat(_summarized(part.double(), x, kind)) for part, x, kind in parts], 1)


def _summarized(part: Tensor, x: Tensor, kind: Modality) -> Tensor:
    """The map of one input, ``(N, ...)``, smaller."""
    found = kind.by_unit(part)
    if isinstance(kind, Text) and not x.is_floating_point():
        present = kind.present(x)
        tokens, places = x.unique(return_inverse=True)
        weights = found if present is None else found.where(present, 0)
        return found.new_zeros(len(x), len(tokens)).scatter_add_(1, places, weights)
    for axis in range(2, found.ndim):
        block = math.ceil(found.shape[axis] / SIDE)
        found = torch.stack([piece.mean(axis) for piece in found.split(block, axis)], axis)
    return found


def _clustered(features: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster ``(N,)`` of each of the features ``(N, K)``, and the smallest eigenvalues."""
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ImportError("clusters() needs scikit-learn: pip install 'lightning-explain[clusters]'") from error
    edges = _neighbors(features)
    scale = edges.sum(1).rsqrt()
    values, vectors = torch.linalg.eigh(torch.eye(len(features)) - scale[:, None] * edges * scale)
    # Of samples spread evenly along a line, eigenvalues grow as squares: their plain gaps would find the most clusters.
    number = int(values[: MOST + 1].clamp(0).sqrt().diff().argmax()) + 1
    places = F.normalize(vectors[:, :number]).numpy()
    found = KMeans(number, n_init=10, random_state=0).fit_predict(places).tolist()
    # By size, then by the first sample.
    order = sorted(set(found), key=lambda cluster: (-found.count(cluster), found.index(cluster)))
    return torch.tensor([order.index(cluster) for cluster in found]), values[: MOST + 1]


def _neighbors(features: Tensor) -> Tensor:
    """1 where one of two samples is among the nearest of the other, ``(N, N)``; all that are equally near count."""
    count = len(features)
    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    reach = distances.kthvalue(min(count, 1 + max(NEIGHBORS, math.ceil(count**0.5))), 1, keepdim=True).values
    near = (distances <= reach + 1e-9).double().fill_diagonal_(0)
    return torch.maximum(near, near.T)
