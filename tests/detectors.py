"""Tiny detectors of torchvision's for tests, and images with one square each, whose label is its color."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign

SIDE, SQUARE = 32, 12


class Body(nn.Sequential):
    """A feature map of a quarter of the size."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__(
            nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1)
        )
        self.out_channels: Any = channels


class Levels(nn.Module):
    """Two feature maps of unlike sizes, the second computed from the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Body(), nn.Conv2d(8, 8, 3, 2, 1)
        self.out_channels = [8, 8]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(x)
        return OrderedDict([("0", first), ("1", self.second(first))])


def faster_rcnn(seed: int = 0, **arguments: Any) -> nn.Module:
    """Two classes; in eval mode."""
    torch.manual_seed(seed)
    return FasterRCNN(
        Body(),
        num_classes=3,
        min_size=SIDE,
        max_size=2 * SIDE,
        rpn_anchor_generator=AnchorGenerator(((SQUARE,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 1),
        **{"rpn_post_nms_top_n_test": 8, "rpn_post_nms_top_n_train": 8, **arguments},
    ).eval()


def ssd_lite(seed: int = 0) -> nn.Module:
    """Two classes and two levels, with the heads of SSDlite; in eval mode."""
    torch.manual_seed(seed)
    levels, anchors = Levels(), DefaultBoxGenerator([[], []], min_ratio=0.4, max_ratio=0.8)
    head = SSDLiteHead(levels.out_channels, anchors.num_anchors_per_location(), 3, nn.BatchNorm2d)
    return SSD(levels, anchors, (SIDE, SIDE), 3, head=head, detections_per_img=8, topk_candidates=8).eval()


def scenes(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images ``(3, H, W)`` of these sizes, and the box and label of the square in each."""
    draws = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for i, (height, width) in enumerate(sizes):
        image, label = 0.2 * torch.rand(3, height, width, generator=draws), 1 + i % 2
        left, top = (int(torch.randint(side - SQUARE, (1,), generator=draws)) for side in (width, height))
        image[label - 1, top : top + SQUARE, left : left + SQUARE] += 0.7
        images.append(image)
        box = torch.tensor([[left, top, left + SQUARE, top + SQUARE]]).float()
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    return images, targets
