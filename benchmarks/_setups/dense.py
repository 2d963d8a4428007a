"""Segmentations: noise, a square whose color tells which class its pixels have, and a gray one of no class."""

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

SIZE, SIDE = 32, 10


def squares(count: int, generator: torch.Generator) -> Tensor:
    """The pixels of a square in the left and one in the right half, anywhere: boolean ``(2, N, 32, 32)``, in any order."""
    corners = torch.randint(SIZE - SIDE, (2, count, 1, 1), generator=generator)
    offsets = torch.randint(SIZE // 2 - SIDE, (2, count, 1, 1), generator=generator)
    offsets[1] += SIZE // 2
    rows, columns = torch.arange(SIZE).view(1, 1, -1, 1) - corners, torch.arange(SIZE).view(1, 1, 1, -1) - offsets
    found = (rows >= 0) & (rows < SIDE) & (columns >= 0) & (columns < SIDE)
    swapped = labels_of(count, generator).bool()[:, None, None]
    return torch.stack([found[0].where(swapped, found[1]), found[1].where(swapped, found[0])])


def colored(count: int, generator: torch.Generator) -> Dataset[Any]:
    """One square is red or green, class 1 or 2; the other one is gray."""
    (where, gray), classes = squares(count, generator), labels_of(count, generator)
    x = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    x += 2 * where[:, None] * F.one_hot(classes, 3)[:, :, None, None] + gray[:, None]
    return tensors(x, where * (classes[:, None, None] + 1))


def shaded(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The same in one channel, bright or dark, the other one between; labels are floating and have a channel."""
    (where, gray), classes = squares(count, generator), labels_of(count, generator)
    x = 0.3 * torch.randn(count, SIZE, SIZE, generator=generator) + where * (4 * classes - 2)[:, None, None] + gray
    return tensors(x[:, None], (where * (classes[:, None, None] + 1))[:, None].float())


def one_of_two(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The bright one of two squares; labels are floating, 0 or 1."""
    where, dark = squares(count, generator)
    x = 0.3 * torch.randn(count, SIZE, SIZE, generator=generator) + 2 * where - 2 * dark
    return tensors(x[:, None], where[:, None].float())


def fields(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Five bands; the fourth one of a field tells which crop it has, and the other field has none."""
    (where, gray), classes = squares(count, generator), labels_of(count, generator)
    x = 0.3 * torch.randn(count, 5, SIZE, SIZE, generator=generator) + gray[:, None]
    x[:, 3] += where * (4 * classes - 2)[:, None, None] - gray.float()
    return tensors(x, where * (classes[:, None, None] + 1))


def scenes(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Every pixel has a label: that of a square whose color tells it, or 0."""
    x, labels = images.squares(count, generator).tensors  # type: ignore[attr-defined]
    return tensors(x, images.in_square((x,), None)[0][:, 0] * (labels + 1)[:, None, None])


def in_labels(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    """The square that has a class."""
    assert labels is not None
    return (labels.reshape(len(labels), 1, SIZE, SIZE) > 0,)


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
    yield "segmentation", Setup(lambda: Net(FullyConvolutional()), scenes, in_labels, 6)
    yield "U-Net", Setup(lambda: Net(UNet(3, 3)), colored, in_labels, 4)
    one = Setup(lambda: Net(UNet(1, 1), F.binary_cross_entropy_with_logits), one_of_two, in_labels, 4)
    yield "U-Net, one channel", one
    yield "U-Net, satellite bands", Setup(lambda: Net(UNet(5, 3)), fields, in_labels, 4)
    yield "torchvision DeepLabV3", Setup(lambda: Net(deeplab(), both_heads), colored, in_labels, 4)
    if importlib.util.find_spec("transformers"):
        yield "HF SegFormer", Setup(SegFormer, colored, in_labels, 16)
    if importlib.util.find_spec("monai"):
        yield "MONAI UNet", Setup(of_monai, shaded, in_labels, 4)
