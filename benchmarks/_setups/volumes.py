"""Volumes, videos, spectrograms, bands and several inputs: noise, and a part of it that tells the class."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from _setups._base import Net, Setup, Task, labels_of, tensors

Place = tuple[Any, ...]

LESION: Place = (..., slice(4, 8), slice(8, 12), slice(3, 7))
EVENT: Place = (slice(3, 6), slice(None), slice(4, 9), slice(9, 14))
"""Frames, channels, rows and columns."""
TONE: Place = (..., slice(20, 24), slice(10, 18))
FIELD: Place = (3, slice(5, 11), slice(12, 18))
"""Band, rows and columns."""
PATCH: Place = (..., slice(4, 9), slice(10, 15))
COLUMN = 2


def planted(shape: tuple[int, ...], place: Place) -> Any:
    """Samples of noise with a part that is brighter in one class and darker in the other."""

    def data(count: int, generator: torch.Generator) -> Dataset[Any]:
        x, labels = 0.5 * torch.randn(count, *shape, generator=generator), labels_of(count, generator)
        x[(slice(None), *place)] += (2.0 * labels - 1).reshape(-1, *(1,) * (x[(slice(None), *place)].ndim - 1))
        return tensors(x, labels)

    return data


def at(place: Place, channels: int | None = None) -> Any:
    """The cause is there; ``channels``: the dimension that the units have not."""

    def cause(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
        mask = torch.zeros(inputs[0].shape, dtype=torch.bool)
        mask[(slice(None), *place)] = True
        return (mask if channels is None else mask.any(channels, keepdim=True),)

    return cause


def pairs(second: tuple[int, ...], place: Place, which: int) -> Any:
    """An image and something else; the cause lies in one of the two."""

    def data(count: int, generator: torch.Generator) -> Dataset[Any]:
        image = 0.5 * torch.randn(count, 1, 20, 20, generator=generator)
        other, labels = 0.5 * torch.randn(count, *second, generator=generator), labels_of(count, generator)
        part = (image, other)[which]
        part[(slice(None), *place)] += (2.0 * labels - 1).reshape(-1, *(1,) * (part[(slice(None), *place)].ndim - 1))
        return tensors(image, other, labels)

    return data


def in_one(place: Place, which: int) -> Any:
    def cause(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
        masks = [torch.zeros(x.shape, dtype=torch.bool) for x in inputs]
        masks[which][(slice(None), *place)] = True
        return tuple(masks)

    return cause


def cnn3d(channels: int = 1) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU()]

    layers = [*block(channels, 8), nn.MaxPool3d(2), *block(8, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2))


def two_plus_one() -> nn.Module:
    """Convolutions over places and then over times, as in R(2+1)D."""

    def block(a: int, b: int) -> list[nn.Module]:
        spatial = nn.Conv3d(a, b, (1, 3, 3), padding=(0, 1, 1))
        return [spatial, nn.ReLU(), nn.Conv3d(b, b, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(b), nn.ReLU()]

    layers = [*block(3, 8), nn.MaxPool3d((1, 2, 2)), *block(8, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2))


def densenet() -> nn.Module:
    from monai.networks.nets import DenseNet

    return DenseNet(spatial_dims=3, in_channels=1, out_channels=2, init_features=8, growth_rate=8, block_config=(2, 2))


def cnn2d(channels: int, outputs: int = 2) -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    layers = [*block(channels, 8), nn.MaxPool2d(2), *block(8, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, outputs))


class Frames(Task):
    """A CNN on each frame of ``(N, T, C, H, W)``, and an LSTM over what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.rnn, self.head = cnn2d(3, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.cnn(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(self.rnn(frames)[0].amax(1))


class Siamese(Task):
    """One encoder for two images; both codes decide."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = cnn2d(1, 8), nn.Linear(16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(left), self.encoder(right)], 1))


class WithMetadata(Task):
    """An image and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn, self.head = cnn2d(1, 8), nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:
        return self.head(torch.cat([self.cnn(image), meta], 1))


def setups() -> Iterator[tuple[str, Setup]]:
    volume = (1, 12, 16, 12)
    yield "3-D CNN", Setup(lambda: Net(cnn3d()), planted(volume, LESION), at(LESION))
    if importlib.util.find_spec("monai"):
        yield "MONAI DenseNet 3-D", Setup(lambda: Net(densenet()), planted((1, 16, 16, 16), LESION), at(LESION))
    channels_first: Place = (EVENT[1], EVENT[0], *EVENT[2:])
    yield (
        "video, (2+1)-D CNN",
        Setup(lambda: Net(two_plus_one()), planted((3, 8, 16, 16), channels_first), at(channels_first, 1)),
    )
    yield "video, CNN and LSTM", Setup(Frames, planted((8, 3, 16, 16), EVENT), at(EVENT, 2))
    yield "spectrogram CNN", Setup(lambda: Net(cnn2d(1)), planted((1, 32, 40), TONE), at(TONE))
    yield "satellite CNN, 5 bands", Setup(lambda: Net(cnn2d(5)), planted((5, 24, 24), FIELD), at(FIELD, 1))
    yield "siamese CNN", Setup(Siamese, pairs((1, 20, 20), PATCH, 0), in_one(PATCH, 0), 6)
    in_table = pairs((4,), (COLUMN,), 1)
    yield "image and metadata, cause in the metadata", Setup(WithMetadata, in_table, in_one((COLUMN,), 1), 6)
    yield "image and metadata, cause in the image", Setup(WithMetadata, pairs((4,), PATCH, 0), in_one(PATCH, 0), 6)
