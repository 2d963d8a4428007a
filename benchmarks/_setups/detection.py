"""Object detection: gray squares on noise, whose class is told by a small red or green mark inside."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from _setups._base import Setup, labels_of
from lightning_explain import Probe
from lightning_explain.core.detections import inside, padded_detections
from lightning_explain.targets import Detection

SIZE, OBJECT, MARK = 64, 28, 8
Batch = tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]


class Squares(Dataset[Any]):
    """One square of each image, anywhere; the mark is its middle. Label 1: red, 2: green."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.images = 0.1 * torch.rand(count, 3, SIZE, SIZE, generator=generator)
        self.labels = 1 + labels_of(count, generator)
        corners = torch.randint(SIZE - OBJECT, (count, 2), generator=generator)
        self.boxes = torch.cat([corners, corners + OBJECT], 1).float()
        for image, label, (left, top) in zip(self.images, self.labels, corners.tolist(), strict=True):
            image[:, top : top + OBJECT, left : left + OBJECT] += 0.4
            first, last = (OBJECT - MARK) // 2, (OBJECT + MARK) // 2
            mark = image[:, top + first : top + last, left + first : left + last]
            mark.mul_(0.2)[label - 1] += 0.8

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[i], {"boxes": self.boxes[i : i + 1], "labels": self.labels[i : i + 1]}


def collate(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> Any:
    return tuple(zip(*samples, strict=True))


def on_mark(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    """The cause is the mark in the middle of the box."""
    assert labels is not None
    middle = (labels[:, 0, :2] + labels[:, 0, 2:4]) / 2
    return (inside(torch.cat([middle - MARK / 2, middle + MARK / 2], 1), SIZE, SIZE)[:, None],)


@torch.no_grad()
def losses(model: L.LightningModule, data: Dataset[Any]) -> tuple[float, float]:
    """How much is missing to a score of 1 of each object with its class, and the same where marks of the other color are inside."""
    images, targets = collate([data[i] for i in range(len(data))])  # type: ignore[arg-type]
    probe = Probe(list(images), list(targets))
    (mask,) = on_mark((probe.inputs,), probe.targets)
    exchanged = probe.inputs[:, [1, 0, 2]].where(mask, probe.inputs)
    known = torch.cat([probe.targets[:, 0, :4], torch.ones(len(images), 1), probe.targets[:, 0, 4:]], 1)[:, None]
    target = Detection(box="best")
    objects = target.select(known)
    found = [padded_detections(model(list(x))) for x in (probe.inputs, exchanged)]
    one, other = (1 - float(target.value(outputs, objects).mean()) for outputs in found)
    return one, other


def backbone(channels: int = 32) -> nn.Module:
    """A single feature map of a quarter of the size."""

    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]

    found = nn.Sequential(*block(3, 16), *block(16, channels), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
    found.out_channels = channels
    return found


def faster_rcnn(**arguments: Any) -> nn.Module:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    return FasterRCNN(
        backbone(),
        num_classes=3,
        min_size=SIZE,
        max_size=SIZE,
        image_mean=[0.3] * 3,
        image_std=[0.3] * 3,
        rpn_anchor_generator=AnchorGenerator(((24, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        rpn_pre_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=20,
        box_detections_per_img=20,
        **arguments,
    )


class Levels(nn.Module):
    """Feature maps of several sizes, each computed from the one before."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.first = backbone(channels)
        self.further = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.out_channels = [channels, channels]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(x)
        return OrderedDict([("0", first), ("1", self.further(first))])


def ssd_lite() -> nn.Module:
    """The heads of ``ssdlite320_mobilenet_v3_large`` on a small network."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    levels, anchors = Levels(), DefaultBoxGenerator([[], []], min_ratio=0.35, max_ratio=0.6)
    head = SSDLiteHead(levels.out_channels, anchors.num_anchors_per_location(), 3, nn.BatchNorm2d)
    mean = {"image_mean": [0.3] * 3, "image_std": [0.3] * 3}
    return SSD(levels, anchors, (SIZE, SIZE), 3, head=head, detections_per_img=20, topk_candidates=50, **mean)


class Detector(L.LightningModule):
    """As torchvision's detectors are trained: losses with targets, detections without."""

    def __init__(self, net: nn.Module, lr: float = 2e-3) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        return self.net(images, targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        return torch.stack(list(self(list(images), list(targets)).values())).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


def setups() -> Iterator[tuple[str, Setup]]:
    if importlib.util.find_spec("torchvision"):
        yield (
            "Faster R-CNN",
            Setup(lambda: Detector(faster_rcnn()), Squares, on_mark, 6, collate=collate, losses=losses),
        )
        yield "SSDlite", Setup(lambda: Detector(ssd_lite()), Squares, on_mark, 8, collate=collate, losses=losses)
