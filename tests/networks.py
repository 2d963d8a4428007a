"""Tiny real networks and data for tests: 8x8 digits that scikit-learn ships."""

from __future__ import annotations

import functools

import torch
from captum.attr._utils.custom_modules import Addition_Module
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A block that ends in an in-place addition and an in-place ReLU, as torchvision's do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out += x
        return self.relu2(out)


class OutOfPlace(Residual):
    """The same block without any operation in place: what every captured activation must look like."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + x)


class Separate(Residual):
    """The same block without any operation in place, and each ReLU a module of its own, as DeepLIFT needs them."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + x)


class DigitNet(nn.Module):
    """A convolution, a residual block, a dropout, a linear layer; 10 classes."""

    def __init__(self, block: type[nn.Module] = Residual) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = block(8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.block(self.stem(x)), 2)
        return self.head(self.dropout(x.flatten(1)))


class Averaged(DigitNet):
    """The same network with a mean where it takes a maximum: outside of its ReLU modules it is linear."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.block(self.stem(x)), 2)
        return self.head(self.dropout(x.flatten(1)))


class Added(Residual):
    """The block with its addition as a layer, as LRP needs it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.add = Addition_Module()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.add(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))), x))


class Layered(DigitNet):
    """The same network with all that LRP must know as layers."""

    def __init__(self, block: type[nn.Module] = Added) -> None:
        super().__init__(block)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.pool(self.block(self.stem(x))).flatten(1)))


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Images ``(1797, 1, 8, 8)`` with mean 0 and deviation 1, and labels ``(1797,)``."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return (x - x.mean()) / x.std(), torch.tensor(labels)


@functools.cache
def _weights() -> dict[str, Tensor]:
    x, y = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DigitNet()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for start in range(0, 1500 * 3, 100):
            samples = slice(start % 1500, start % 1500 + 100)
            optimizer.zero_grad()
            F.cross_entropy(model(x[samples]), y[samples]).backward()
            optimizer.step()
    return model.state_dict()


def trained(block: type[nn.Module] = Residual, kind: type[DigitNet] = DigitNet) -> DigitNet:
    """A network that reads digits, in train mode as during training."""
    model = kind(block)
    model.load_state_dict({name: value.clone() for name, value in _weights().items()})
    return model


def samples(count: int = 7) -> tuple[Tensor, Tensor]:
    """Digits the network was not trained on."""
    x, y = digits()
    return x[1600 : 1600 + count].clone(), y[1600 : 1600 + count].clone()
