"""Images: noise, and a bright square whose color tells the class."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from _setups._base import Net, Setup, binary, labels_of, tensors

SIZE, SQUARE = 32, (..., slice(8, 16), slice(16, 24))


def squares(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The square is red, green or blue."""
    x, labels = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator), labels_of(count, generator, 3)
    x[SQUARE] += 2 * F.one_hot(labels, 3)[:, :, None, None]
    return tensors(x, labels)


def two_classes(count: int, generator: torch.Generator) -> Dataset[Any]:
    x, labels = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator), labels_of(count, generator)
    x[SQUARE] += (2.0 * labels - 1)[:, None, None, None]
    return tensors(x, labels)


def in_square(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    mask = torch.zeros(len(inputs[0]), 1, SIZE, SIZE, dtype=torch.bool)
    mask[SQUARE] = True
    return (mask,)


def cnn(outputs: int = 3) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(3, 8), *block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs))


_BLOCKS = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
# The class in timm, and its smallest arguments.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vision_transformer.VisionTransformer", _BLOCKS),
    "DeiT": ("deit.VisionTransformerDistilled", _BLOCKS),
    "EVA": ("eva.Eva", _BLOCKS),
    "CaiT": ("cait.Cait", _BLOCKS | {"depth_token_only": 1}),
    "Swin": (
        "swin_transformer.SwinTransformer",
        {"img_size": SIZE, "patch_size": 2, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
    ),
    "ConvNeXt": (
        "convnext.ConvNeXt",
        {"patch_size": 2, "depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)},
    ),
    "ResNet": ("resnet.ResNet", {"channels": (16, 24, 32, 48), "output_stride": 8}),
}


def of_timm(name: str) -> nn.Module:
    import timm

    where, arguments = TIMM[name]
    module, cls = where.split(".")
    if name == "ResNet":
        arguments = {"block": timm.models.resnet.BasicBlock, "layers": (1, 1, 1, 1), **arguments}
    return getattr(getattr(timm.models, module), cls)(num_classes=3, **arguments)


def setups() -> Iterator[tuple[str, Setup]]:
    yield "small CNN", Setup(lambda: Net(cnn()), squares, in_square)
    yield "small CNN, one logit", Setup(lambda: Net(cnn(1), binary), two_classes, in_square)
    if importlib.util.find_spec("timm"):
        for name in TIMM:
            yield f"timm {name}", Setup(lambda name=name: Net(of_timm(name), lr=2e-3), squares, in_square)
