"""Drift: maps of this and of earlier explanations in, their similarity for each sample out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_explain.core.contracts import Metric, MetricInputs, Modality, Score
from lightning_explain.core.probe import all_finite, flat
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.engine.noise import wide
from lightning_explain.metrics._ranking import of_present, relevance, scores, spearman

_KINDS = ("cosine", "spearman", "ssim")
_SINCE = ("previous", "first")
# Window size of torchmetrics' default Gaussian (standard deviation 1.5).
_SSIM_PIXELS = 11


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity of two maps of each sample.

    Args:
        first: ``(N, U)``.
        second: ``(N, U)``.

    Returns:
        ``(N,)`` in -1..1; NaN where one of the two is all zero or contains NaN.
    """
    a, b = (F.normalize(_scaled(wide(part)), dim=1) for part in (first, second))
    return (a * b).sum(1).clamp(-1, 1)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of two maps of each sample, each divided by its largest absolute value (torchmetrics).

    Args:
        first: ``(N, 1, H, W)``, both sides at least 11.
        second: ``(N, 1, H, W)``.

    Returns:
        ``(N,)`` in -1..1; NaN where one of the two is all zero or contains NaN.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (_scaled(flat(wide(part))).reshape(part.shape) for part in (first, second))
    known = all_finite(a + b)
    found = torch.full((len(a),), torch.nan, dtype=a.dtype, device=a.device)
    if known.any():
        similar = structural_similarity_index_measure(a[known], b[known], data_range=2.0, reduction="none")
        assert isinstance(similar, Tensor)
        found[known] = similar.reshape(-1)
    return found


def _scaled(values: Tensor) -> Tensor:
    """Each sample ``(N, U)`` divided by its largest absolute value; NaN where all are zero."""
    return values / values.abs().amax(1, keepdim=True)


@dataclass(frozen=True)
class Drift(CheckedArguments, Metric):
    r"""Similarity of each map to the previous and to the first explanation's map of the sample (Adebayo et al. 2018).

    Compares pixels, summed over channels, by cosine similarity, by Spearman's rank correlation and, for images of at
    least 11 pixels a side, by structural similarity (Wang et al. 2004; torchmetrics) of the maps divided by their
    largest absolute value. Suffixes are ``_cosine_previous``, ``_cosine_first`` and so on. The first explanation has no
    score.

    Formula: \frac{\phi_t \cdot \phi_{t'}}{\|\phi_t\|\,\|\phi_{t'}\|},\quad t' \in \{\text{previous}, \text{first}\}
    Cost: 0 forward, 0 backward.
    Not for: judging a method: a map that no longer moves may be wrong, or the network may have stopped learning;
        methods that failed in between: they are compared with their last map; a single explanation.

    Args:
        abs: Compare absolute values.
        ssim: Add structural similarity; it is left out for small images and other inputs.
        methods: Names of the methods to score. Default: all.

    Raises:
        TypeError: If ``abs`` or ``ssim`` is not a bool, or ``methods`` no list of names.

    Example:
        >>> methods = [m.Saliency(abs=False)]
        >>> earlier = explain(model, probe, methods=methods, metrics=[])
        >>> report = explain(model, probe, methods=methods, metrics=[q.Drift()], history=[earlier])
        >>> report.scores["drift_cosine_previous"]["saliency"].shape
        torch.Size([2])
    """

    abs: bool = False
    ssim: bool = True
    methods: tuple[str, ...] | None = None

    comparable = True
    undefined: ClassVar[Mapping[str, str]] = {
        f"{kind}_{since}": "this map or the earlier one is constant"
        for kind in _KINDS
        for since in ("previous", "first")
    }
    needs_history: ClassVar[bool] = True

    maps_only = True

    @property
    def suffixes(self) -> tuple[str, ...]:
        """``cosine_previous``, ``cosine_first`` and so on, one for each similarity and earlier explanation."""
        return tuple(f"{kind}_{since}" for kind in _KINDS if kind != "ssim" or self.ssim for since in _SINCE)

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> Drift:
        """Drops structural similarity for inputs that are not a single image that is large enough."""
        pixels = modalities[0].pixels(inputs[0]) if len(inputs) == 1 else None
        return replace(self, ssim=self.ssim and pixels is not None and min(pixels) >= _SSIM_PIXELS)

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """All in -1..1, without unit; 1 where the map is unchanged. A map of zeros gives NaN."""
        now, found = relevance(metric_inputs.maps, metric_inputs, self.abs), {}
        comparisons: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": cosine, "spearman": spearman}
        if self.ssim:
            shape = metric_inputs.explained.modalities[0].units(metric_inputs.samples.inputs[0])
            comparisons["ssim"] = lambda a, b: ssim(a.reshape(shape), b.reshape(shape))
        for since in _SINCE:
            before = relevance(metric_inputs.history.get(since, {}), metric_inputs, self.abs)
            for kind, compare in comparisons.items():
                values = {
                    name: of_present(compare, metric_inputs, now[name], before[name]) for name in now if name in before
                }
                found[f"{kind}_{since}"] = scores(values, metric_inputs.outputs)
        return found
