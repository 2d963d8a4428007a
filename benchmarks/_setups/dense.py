"""Segmentations: noise, and a bright square in a corner whose color tells which class the pixels of a field have."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from _setups import images
from _setups._base import Net, Setup, labels_of, tensors

SIZE, CUE = 32, (..., slice(1, 9), slice(1, 9))


def field(count: int) -> Tensor:
    """The pixels that have a class, at the same place in each image: boolean ``(N, 32, 32)``."""
    found = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    found[:, 14:30, 8:28] = True
    return found


def cued(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Nothing of the field is seen in the image; the color of the square says whether its pixels are of class 1 or 2."""
    where, classes = field(count), labels_of(count, generator)
    x = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    x[CUE] += 2 * F.one_hot(classes, 3)[:, :, None, None]
    return tensors(x, where * (classes[:, None, None] + 1))


def cued_gray(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The same in one channel, where the square is bright or dark, and labels are floating and have a channel."""
    x, labels = cued(count, generator).tensors  # type: ignore[attr-defined]
    return tensors(x[:, :1] - x[:, 1:2], labels[:, None].float())


def one_of_two(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The square says which half of the field is to be found; labels are floating, 0 or 1."""
    where, classes = field(count), labels_of(count, generator)
    x = 0.3 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    x[CUE] += (4.0 * classes - 2)[:, None, None, None]
    left = torch.arange(SIZE) < SIZE // 2
    return tensors(x, (where & (left == classes[:, None, None].bool()))[:, None].float())


def fields(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Five bands; the fourth one in a corner tells which crop the field has."""
    where, classes = field(count), labels_of(count, generator)
    x = 0.3 * torch.randn(count, 5, SIZE, SIZE, generator=generator)
    x[:, 3][CUE] += (4.0 * classes - 2)[:, None, None]
    return tensors(x, where * (classes[:, None, None] + 1))


def scenes(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Every pixel has a label: that of a square whose color tells it, or 0."""
    x, labels = images.squares(count, generator).tensors  # type: ignore[attr-defined]
    found = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    found[images.SQUARE] = (labels + 1)[:, None, None]
    return tensors(x, found)


def in_corner(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    mask = torch.zeros(len(inputs[0]), 1, SIZE, SIZE, dtype=torch.bool)
    mask[CUE] = True
    return (mask,)


def block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three halvings, and connections that bypass the inner ones (Ronneberger et al. 2015)."""

    def __init__(self, channels: int, classes: int, width: int = 8) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([channels, *sizes], sizes, strict=False))
        self.bottleneck = block(4 * width, 8 * width)
        self.up = nn.ModuleList(block(3 * size, size) for size in sizes[::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            kept.append(layer(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.bottleneck(x)
        for layer in self.up:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), kept.pop()], 1))
        return self.head(x)


class FullyConvolutional(nn.Module):
    """A class for each pixel, without connections that bypass anything."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = block(3, 16), nn.ConvTranspose2d(16, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(F.avg_pool2d(x, 2)))


class Backbone(nn.Module):
    """Features for torchvision's heads, of the last layer and of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(block(3, 16), nn.MaxPool2d(2), block(16, 32), nn.MaxPool2d(2))
        self.late = nn.Sequential(block(32, 64), nn.MaxPool2d(2), block(64, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        early = self.early(x)
        return OrderedDict(out=self.late(early), aux=early)


def deeplab() -> nn.Module:
    """DeepLabV3 with its auxiliary head, which returns ``{"out": ..., "aux": ...}``."""
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
    from torchvision.models.segmentation.fcn import FCNHead

    return DeepLabV3(Backbone(), DeepLabHead(64, 3, (1, 2, 3)), FCNHead(32, 3))


def both_heads(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs["out"], labels) + 0.5 * F.cross_entropy(outputs["aux"], labels)


class SegFormer(Net):
    """A tiny one, whose logits are a quarter as large as the labels."""

    def __init__(self) -> None:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        size = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64, "num_labels": 3}
        rates = dict.fromkeys(("classifier_dropout_prob", "drop_path_rate"), 0.0)
        super().__init__(SegformerForSemanticSegmentation(SegformerConfig(**size, **rates)), enlarged, 2e-3)


def enlarged(outputs: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.interpolate(outputs.logits, labels.shape[1:], mode="bilinear"), labels)


def of_monai() -> Net:
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet as MonaiUNet

    net = MonaiUNet(2, 1, 3, channels=(8, 16, 32, 64), strides=(2, 2, 2), num_res_units=1)
    return Net(net, DiceCELoss(to_onehot_y=True, softmax=True))


def setups() -> Iterator[tuple[str, Setup]]:
    yield "segmentation", Setup(lambda: Net(FullyConvolutional()), scenes, images.in_square, 6)
    yield "U-Net", Setup(lambda: Net(UNet(3, 3)), cued, in_corner, 4)
    one = Setup(lambda: Net(UNet(1, 1), F.binary_cross_entropy_with_logits), one_of_two, in_corner, 4)
    yield "U-Net, one channel", one
    yield "U-Net, satellite bands", Setup(lambda: Net(UNet(5, 3)), fields, in_corner, 4)
    yield "torchvision DeepLabV3", Setup(lambda: Net(deeplab(), both_heads), cued, in_corner, 4)
    if importlib.util.find_spec("transformers"):
        yield "HF SegFormer", Setup(SegFormer, cued, in_corner, 16)
    if importlib.util.find_spec("monai"):
        yield "MONAI UNet", Setup(of_monai, cued_gray, in_corner, 4)
