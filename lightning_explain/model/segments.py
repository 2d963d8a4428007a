"""Outputs and labels of a segmentation in; which places belong to a class, as predicted and as labelled, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_IGNORED = (255.0, -100.0, -1.0)
"""The labels that losses of segmentations ignore."""


@dataclass(frozen=True, eq=False)
class Segments:
    """The classes of N samples at each of P places.

    Args:
        predicted: ``(N, P)`` the predicted class of each place; or, where each channel of the outputs is a class by itself, ``(N, C, P)``:
            whether the place is predicted as it.
        labelled: The same of the labels; ``None`` if they are unknown.
        classes: How many classes there are.
        first: The class of the first channel of the outputs: 1 where a single one speaks for class 1.
    """

    predicted: Tensor
    labelled: Tensor | None
    classes: int
    first: int = 0

    def counts(self, found: Tensor) -> Tensor:
        """How many places each class has in one of the two tensors, ``(N, classes)``; class 0, the background, has none."""
        if found.ndim == 3:
            return found.sum(2)
        known = (found > 0) & (found < self.classes)
        counts = found.new_zeros(len(found), self.classes)
        return counts.scatter_add_(1, found.where(known, 0), known.to(found.dtype))

    def of_class(self, found: Tensor, chosen: Tensor) -> Tensor:
        """Where one of the two tensors has the class ``(N,)`` of its sample, boolean ``(N, P)``."""
        return found == chosen[:, None] if found.ndim == 2 else found[torch.arange(len(found)), chosen]

    def most_frequent(self) -> Tensor:
        """The class of each sample with the most places among its labels, or, without any, among its predictions; else 0, or the first."""
        counts = self.counts(self.predicted)
        if self.labelled is not None:
            own = self.counts(self.labelled)
            counts = own.where(own.any(1, keepdim=True), counts)
        return counts.argmax(1).clamp(min=self.first)

    def overlap(self, chosen: Tensor) -> Tensor:
        """Intersection over union ``(N,)`` of prediction and label of the class ``(N,)``, without places whose label is ignored."""
        assert self.labelled is not None
        predicted, labelled = self.of_class(self.predicted, chosen), self.of_class(self.labelled, chosen)
        if self.labelled.ndim == 2:
            predicted = predicted & (self.labelled >= 0) & (self.labelled < self.classes)
        return (predicted & labelled).sum(1) / (predicted | labelled).sum(1)

    def instead(self, chosen: Tensor) -> Tensor:
        """The class ``(N,)`` that is predicted most often where the label is a given one ``(N,)``; that one, if this is not known."""
        if self.labelled is None or self.predicted.ndim == 3:
            return chosen
        inside = self.of_class(self.labelled, chosen)
        counts = inside.new_zeros(len(inside), self.classes, dtype=torch.long)
        counts.scatter_add_(1, self.predicted, inside.long())
        return counts.argmax(1).where(inside.any(1), chosen)


def segments_of(outputs: Tensor, labels: Tensor | None) -> Segments | None:
    """What a segmentation predicts, and what it should.

    Args:
        outputs: ``(N, C, *places)``: a score of each class at each place; C = 1: one that speaks for class 1.
        labels: ``(N, *places)`` or ``(N, 1, *places)``, whole numbers, also as floats; they may have another resolution than the outputs.
            Or ``(N, C, *places)`` of 0 and 1, where each channel is a class by itself.

    Returns:
        ``None`` if the labels are none of places.
    """
    if outputs.ndim < 3:
        return None
    channels = outputs.shape[1]
    if labels is None:
        found = _own(outputs) if channels == 1 else outputs.flatten(2).argmax(1)
        return Segments(found, None, max(channels, 2), int(channels == 1))
    if channels > 1 and labels.shape == outputs.shape and _zero_or_one(labels):
        return _of_channels(outputs, labels)
    placed = _placed(outputs, labels)
    if placed is None or not (_zero_or_one(placed) if channels == 1 else _whole(placed, channels)):
        return None
    known = _resized(placed, outputs.shape[2:]).flatten(1)
    predicted = _own(outputs) if channels == 1 else outputs.flatten(2).argmax(1)
    return Segments(predicted, known, max(channels, 2), int(channels == 1))


def without_channel(outputs: Tensor, labels: Tensor | None, inputs: Sequence[Tensor]) -> bool:
    """Whether outputs ``(N, *places)`` are those of a single class, whose dimension was removed: as many labels 0 and 1, behind an image.

    Args:
        outputs: The model's outputs.
        labels: The labels, or ``None``.
        inputs: The model's inputs; an image is ``(N, C, *places)`` or ``(N, *places, C)``, not smaller than the outputs.
    """
    if labels is None or outputs.ndim < 3 or labels.numel() != outputs.numel() or not _zero_or_one(labels):
        return False
    images = [x.shape for x in inputs if x.ndim == outputs.ndim + 1]
    return any(_scaled(size, outputs.shape[1:]) for shape in images for size in (shape[2:], shape[1:-1]))


def _scaled(size: torch.Size, places: torch.Size) -> bool:
    """Whether places are those of a size, as many or fewer in all directions alike."""
    return all(s >= p and s * places[0] == p * size[0] for s, p in zip(size, places, strict=True))


def zero_and_255(labels: Tensor | None) -> bool:
    """Whether labels are 0 and 255 alone."""
    return labels is not None and bool(((labels == 0) | (labels == 255)).all() and (labels == 255).any())


def are_soft_masks(labels: Tensor) -> bool:
    """Whether labels are masks that were resized or compressed: numbers in [0, 1] or whole in 0 to 255, most of them near both ends.

    The rarer end has at least a quarter as many as lie between: unlike the peaks of a heatmap, masks are flat inside.
    """
    values = labels.double()
    whole = bool((values == values.round()).all())
    values = values / 255 if whole else values
    if not bool(((values >= 0) & (values <= 1)).all()):
        return False
    low, high = (values < 0.05).sum(), (values > 0.95).sum()
    between = values.numel() - low - high
    return bool(low + high > between) and bool(4 * low.minimum(high) >= between.clamp(min=1))


def are_masks(labels: Tensor | None, dimensions: int) -> bool:
    """Whether labels ``(..., *places)`` are 0 and 255 alone, of which 255 is a class, as in image files, and not what is ignored.

    It is a class if at least one of 20 places is 255, without rows and columns that are 255 throughout, as padding and borders are.

    Args:
        labels: The labels, or ``None``.
        dimensions: How many dimensions the places have, at least 2.
    """
    if labels is None or labels.ndim <= dimensions or not zero_and_255(labels):
        return False
    found = (labels == 255).flatten(0, -dimensions - 1).byte()
    inside = found
    for axis in range(1, found.ndim):
        others = [other for other in range(1, found.ndim) if other != axis]
        inside = inside * (1 - found.amin(others, keepdim=True))
    return bool(inside.double().mean() >= 0.05)


def _of_channels(outputs: Tensor, labels: Tensor) -> Segments:
    """Segments whose labels are one-hot, or where a place may have several classes."""
    given, scores = labels.flatten(2), outputs.flatten(2)
    known, ignored = given == 1, (given != 0) & (given != 1)
    own = torch.zeros_like(known).scatter(1, scores.argmax(1, keepdim=True), True)
    one_hot = ((known.sum(1) == 1) | ignored.any(1)).all(1)[:, None, None] & known.any(2).any(1)[:, None, None]
    own = torch.where(one_hot, own, scores > _threshold(scores))
    # Of one-hot labels, the first channel is the background.
    foreground = torch.arange(known.shape[1]) > 0
    counted = ~one_hot | foreground[:, None]
    return _Channels(own, known, outputs.shape[1], 0, counted, ignored)


@dataclass(frozen=True, eq=False)
class _Channels(Segments):
    """Segments by channel, with which of them count as foreground, ``(N, C, 1)``, and whose label is ignored, ``(N, C, P)``."""

    counted: Tensor = field(default_factory=lambda: torch.empty(0))
    ignored: Tensor = field(default_factory=lambda: torch.empty(0))

    def counts(self, found: Tensor) -> Tensor:
        return (found & self.counted).sum(2)

    def overlap(self, chosen: Tensor) -> Tensor:
        assert self.labelled is not None
        predicted, labelled, ignored = (
            self.of_class(found, chosen) for found in (self.predicted, self.labelled, self.ignored)
        )
        predicted = predicted & ~ignored
        return (predicted & labelled).sum(1) / (predicted | labelled).sum(1)


def _own(outputs: Tensor) -> Tensor:
    """Which places ``(N, P)`` a single channel of outputs says are class 1."""
    scores = outputs.flatten(2)
    return (scores > _threshold(scores))[:, 0].long()


def _threshold(scores: Tensor) -> Tensor:
    """What scores ``(N, C, P)`` must exceed, ``(N, 1, 1)``: one half where a sample's are probabilities, else 0."""
    probable = ((scores >= 0) & (scores <= 1)).flatten(1).all(1)
    return (0.5 * probable).to(scores.dtype)[:, None, None]


def _placed(outputs: Tensor, labels: Tensor) -> Tensor | None:
    """Labels as ``(N, *places)``; ``None`` if they are none of the places of outputs ``(N, C, *places)``."""
    if labels.ndim == outputs.ndim and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != outputs.ndim - 1 or len(labels) != len(outputs):
        return None
    if labels.shape[1:] == outputs.shape[2:]:
        return labels
    # Classes come last, or what is labelled are the steps of a sequence, whose number is no resolution.
    return None if labels.ndim == 2 or labels.shape == outputs.shape[:-1] else labels


def _resized(labels: Tensor, size: torch.Size) -> Tensor:
    """Labels ``(N, *places)`` at the resolution of the outputs, whole numbers."""
    if labels.shape[1:] == size:
        return labels.long()
    return interpolate(labels[:, None].double(), tuple(size), mode="nearest-exact")[:, 0].long()


def _zero_or_one(labels: Tensor) -> bool:
    return not labels.is_complex() and _all_in(labels, 2)


def _whole(labels: Tensor, classes: int) -> bool:
    """Whether labels are whole numbers; floating ones, which might be a depth, have to be those of classes."""
    return _all_in(labels, classes) if labels.is_floating_point() else not labels.is_complex()


def _all_in(labels: Tensor, classes: int) -> bool:
    """Whether all labels are classes, or ignored."""
    values = labels.double()
    ignored = torch.isin(values, torch.tensor(_IGNORED, dtype=values.dtype))
    return bool((((values >= 0) & (values < classes) & (values == values.round())) | ignored).all())
