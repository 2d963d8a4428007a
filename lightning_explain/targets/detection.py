"""Detections and labelled boxes of clean samples in; which object is explained, and its score at any other point, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import Selection
from lightning_explain.core.detections import NONE, area, largest, overlaps
from lightning_explain.core.validation import is_whole, refused

_EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Detection(Selection):
    """The score of one detected object, which is found again in every perturbed image.

    The object is chosen once, in the unperturbed image. Elsewhere its score is that of the detection of the same class which has the
    largest product of score and overlap (IoU) with it, as the similarity of D-RISE (Petsiuk et al. 2021) does, among those that
    overlap by at least ``iou``; 0 if there is none. What is explained is the score alone, without the overlap: a number between 0 and
    1, whose gradient does not depend on rounding where the box is the same. Boxes without an area, which nothing overlaps, are not chosen.

    Args:
        class_: Only objects of this class; ``None``: of any.
        box: ``"label"``: the detection that finds the largest labelled object, and, if none does, the one with the highest score;
            ``"best"``: the latter; a whole number: that with so many higher scores.
        iou: The least overlap with which an object is found; the usual 0.5, as in the benchmarks of VOC and COCO.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> outputs = torch.tensor([[[0.0, 0, 9, 9, 0.8, 1], [20, 20, 30, 30, 0.6, 2]]])  # Box, score and label of two detections.
        >>> t.Detection()(outputs).tolist(), t.Detection(class_=2)(outputs).tolist()
        ([0.800000011920929], [0.6000000238418579])
    """

    class_: int | None = None
    box: str | int = "label"
    iou: float = 0.5

    def __post_init__(self) -> None:
        if self.class_ is not None and (not is_whole(self.class_) or self.class_ < 0):
            raise refused("Detection", "class_", self.class_, "a whole number of at least 0, or None", TypeError)
        if self.box not in ("label", "best") and (not is_whole(self.box) or int(self.box) < 0):
            raise refused("Detection", "box", self.box, '"label", "best" or a whole number of at least 0', TypeError)
        if isinstance(self.iou, bool) or not isinstance(self.iou, (int, float)) or not 0 < self.iou <= 1:
            raise refused("Detection", "iou", self.iou, "a number above 0 and at most 1", ValueError)

    def select(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The class of each object and the bits of its box in float32, ``(N, 5)``; of outputs ``(N, D, 6)`` and labels ``(N, M, 5)``."""
        self._check(outputs, labels)
        scores, classes = outputs[..., 4], outputs[..., 5].round()
        known = ((classes >= 0) if self.class_ is None else (classes == self.class_)) & (area(outputs[..., :4]) > 0)
        chosen = self._ranked(scores, known)
        if self.box == "label" and labels is not None:
            wanted = largest(labels.float(), self.class_)
            found = (classes == wanted[:, 4:]) & (overlaps(outputs[..., :4], wanted[:, :4].to(outputs)) >= self.iou)
            hits = scores.masked_fill(~found, NONE).argmax(1)
            chosen = torch.where((found & known).any(1), hits, chosen)
        detected = outputs[torch.arange(len(outputs)), chosen.clamp(min=0)]
        detected = detected.where((chosen >= 0)[:, None], NONE)
        return torch.cat([detected[:, 5:].round().long(), _bits(detected[:, :4])], 1)

    def _check(self, outputs: Tensor, labels: Tensor | None) -> None:
        fits = labels is None or (labels.ndim == 3 and labels.shape[2] == 5 and len(labels) == len(outputs))
        if outputs.ndim != 3 or outputs.shape[2] != 6 or not fits:
            came = "no labels" if labels is None else f"labels {tuple(labels.shape)}"
            raise ValueError(
                f"{self} needs a detector, which returns boxes, labels and scores for each image, and labels (N, M, 5) or none; got "
                f"outputs {tuple(outputs.shape)} and {came}. Give Probe(images, targets) with a list of mappings of boxes and labels."
            )

    def _ranked(self, scores: Tensor, known: Tensor) -> Tensor:
        """The detection ``(N,)`` that is the wanted one by its score; -1 where there are not so many."""
        rank = int(self.box) if is_whole(self.box) else 0
        if rank >= scores.shape[1]:
            raise ValueError(f"{self} is outside of the detections; use 0 to {scores.shape[1] - 1}.")
        order = scores.masked_fill(~known, NONE).argsort(dim=1, descending=True, stable=True)[:, rank]
        return order.where(known.sum(1) > rank, -1)

    def value(self, outputs: Tensor, places: Tensor) -> Tensor:
        """The scores ``(N,)`` of the objects in outputs ``(N, D, 6)`` at any point; 0 where they are not found."""
        scores, overlap = outputs[..., 4], overlaps(outputs[..., :4].detach(), _boxes(places).to(outputs))
        same = (outputs[..., 5].round() == places[:, :1]) & (places[:, :1] >= 0) & (overlap >= self.iou)
        match = (overlap * scores.detach()).masked_fill(~same, NONE).argmax(1, keepdim=True)
        return scores.gather(1, match).squeeze(1).where(same.any(1), 0)

    def facts(self, outputs: Tensor, labels: Tensor | None, places: Tensor) -> Mapping[str, Tensor]:
        """``class``, ``probability`` (the score), the edges of the box, and its largest ``overlap`` with a label of the class."""
        boxes = _boxes(places)
        found = {"class": places[:, 0], "probability": self.value(outputs, places)}
        found |= {name: boxes[:, i] for i, name in enumerate(_EDGES)}
        if labels is None:
            return found
        overlap = overlaps(labels[..., :4].float(), boxes) * (labels[..., 4] == places[:, :1])
        return {**found, "overlap": overlap.amax(1) * (area(boxes) > 0)}


def _bits(boxes: Tensor) -> Tensor:
    """Boxes ``(N, 4)`` as whole numbers, which go through chunks, copies and ranks as target indices do."""
    return boxes.float().contiguous().view(torch.int32).long()


def _boxes(places: Tensor) -> Tensor:
    return places[:, 1:].int().contiguous().view(torch.float32)
