"""Images, boxes and detections, lists with one entry for each sample, in; tensors ``(N, ...)``, padded where they are uneven, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 100
"""How many detections of an image are kept, those of the highest scores: as many as COCO's evaluation counts."""
NONE = -1.0
"""All numbers of a line that stands for no box."""


def _has(value: Any, keys: Sequence[str]) -> bool:
    """Whether it is a list or tuple of mappings that all have these keys."""
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    return listed and all(isinstance(part, Mapping) and all(key in part for key in keys) for part in value)


def are_boxes(targets: Any) -> bool:
    """Whether these are the labels of object detection: for each image a mapping with ``boxes`` and ``labels``."""
    return _has(targets, ("boxes", "labels"))


def are_detections(output: Any) -> bool:
    """Whether a model returned, for each image, a mapping with ``boxes``, ``labels`` and ``scores``, as torchvision's detectors do."""
    return _has(output, ("boxes", "labels", "scores"))


def are_images(inputs: Any) -> bool:
    """Whether this is a list of images ``(C, H, W)``."""
    return isinstance(inputs, list) and bool(inputs) and all(isinstance(x, Tensor) and x.ndim == 3 for x in inputs)


def padded_images(images: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Images ``(C, H, W)`` in one tensor ``(N, C, H, W)``, padded with zeros at the right and the bottom.

    Returns:
        The images, and their own sizes, ``(N, 2)`` whole numbers; ``None`` instead if they have one size.
    """
    sizes = torch.tensor([image.shape[1:] for image in images], device=images[0].device)
    height, width = sizes.amax(0).tolist()
    same = bool((sizes == sizes[:1]).all())
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return torch.stack(padded), None if same else sizes


def padded_boxes(targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The boxes ``(x1, y1, x2, y2)`` and the label of every object of each image, ``(N, M, 5)``; lines of -1 where there are fewer."""
    columns = [(part["boxes"].reshape(-1, 4), part["labels"].reshape(-1, 1)) for part in targets]
    return _stacked([torch.cat([boxes.float(), labels.float()], 1) for boxes, labels in columns])


def padded_detections(output: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Detections in one tensor ``(N, 100, 6)``: ``(x1, y1, x2, y2, score, label)``, the highest scores first; lines of -1 follow."""
    found = []
    for part in output:
        boxes, scores = part["boxes"], part["scores"]
        columns = torch.cat([boxes, scores[:, None], part["labels"][:, None].to(boxes.dtype)], 1)
        found.append(columns[scores.argsort(descending=True, stable=True)[:MOST]])
    return _stacked(found, MOST)


def _stacked(lines: Sequence[Tensor], least: int = 1) -> Tensor:
    most = max(least, *map(len, lines))
    return torch.stack([F.pad(part, (0, 0, 0, most - len(part)), value=NONE) for part in lines])


def overlaps(boxes: Tensor, other: Tensor) -> Tensor:
    """Intersection over union ``(N, D)`` of boxes ``(N, D, 4)`` with one box of each sample, ``(N, 4)``; 0 where that is none."""
    other = other[:, None]
    low, high = torch.maximum(boxes[..., :2], other[..., :2]), torch.minimum(boxes[..., 2:], other[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    return inside / (area(boxes) + area(other) - inside).clamp(min=torch.finfo(boxes.dtype).tiny)


def area(boxes: Tensor) -> Tensor:
    """The areas ``(...)`` of boxes ``(..., 4)``."""
    return (boxes[..., 2:4] - boxes[..., :2]).prod(-1)


def largest(labels: Tensor, class_: int | None = None) -> Tensor:
    """The largest object of each image, ``(N, 5)``, of those of one class if that is given; a line of -1 where there is none."""
    known = (labels[..., 4] >= 0) if class_ is None else (labels[..., 4] == class_)
    size = area(labels).masked_fill(~known, NONE)
    chosen = labels[torch.arange(len(labels), device=labels.device), size.argmax(1)]
    return chosen.where(known.any(1, keepdim=True), NONE)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """The pixels whose centers lie in the box of each sample ``(N, 4)``, boolean ``(N, H, W)``."""
    edges = boxes[:, :4, None]
    across = torch.arange(width, device=boxes.device) + 0.5
    down = torch.arange(height, device=boxes.device) + 0.5
    columns = (across >= edges[:, 0]) & (across < edges[:, 2])
    lines = (down >= edges[:, 1]) & (down < edges[:, 3])
    return lines[:, :, None] & columns[:, None]
