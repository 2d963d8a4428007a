"""Images: noise, and a bright square, anywhere, whose color tells the class.

If it were always at one place, features behind a wide receptive field would know its color without knowing where it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from _setups._base import Net, Setup, binary, labels_of, tensors

SIZE, SIDE = 32, 8
SQUARE = (..., slice(8, 16), slice(16, 24))
"""A place for the set-ups of other tasks."""


def somewhere(count: int, generator: torch.Generator) -> Tensor:
    """The pixels of a square, boolean ``(N, 1, 32, 32)``."""
    corners = torch.randint(SIZE - SIDE + 1, (2, count), generator=generator)
    return square_at(corners[0], corners[1])


def square_at(rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels of the squares whose corners are in these rows and columns, boolean ``(N, 1, 32, 32)``."""
    place = torch.arange(SIZE)
    down, right = place - rows[:, None], place - columns[:, None]
    inside = [(offset >= 0) & (offset < SIDE) for offset in (down, right)]
    return (inside[0][:, :, None] & inside[1][:, None])[:, None]


def squares(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The square is red, green or blue."""
    x, labels = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator), labels_of(count, generator, 3)
    return tensors(x + 2 * somewhere(count, generator) * F.one_hot(labels, 3)[:, :, None, None], labels)


def in_place(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The same, always at one place."""
    x, labels = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator), labels_of(count, generator, 3)
    x[SQUARE] += 2 * F.one_hot(labels, 3)[:, :, None, None]
    return tensors(x, labels)


def two_classes(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The square is bright or dark."""
    x, labels = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator), labels_of(count, generator)
    return tensors(x + somewhere(count, generator) * (2.0 * labels - 1)[:, None, None, None], labels)


def in_square(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    """The square whose mean differs most from that of noise."""
    strength = F.avg_pool2d(inputs[0], SIDE, 1).abs().amax(1)
    corners = strength.flatten(1).argmax(1)
    return (square_at(corners // strength.shape[2], corners % strength.shape[2]),)


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
    yield "small CNN", Setup(lambda: Net(cnn()), squares, in_square, 8)
    yield "small CNN, one logit", Setup(lambda: Net(cnn(1), binary), two_classes, in_square, 8)
    if importlib.util.find_spec("timm"):
        for name in TIMM:
            # It normalizes each pixel by itself, noise as well, and does not learn to find a square anywhere in seconds.
            data, epochs = (in_place, 4) if name == "ConvNeXt" else (squares, 8)
            yield f"timm {name}", Setup(lambda name=name: Net(of_timm(name), lr=2e-3), data, in_square, epochs)
