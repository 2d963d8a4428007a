"""Series: noise in several channels, and a window of one channel that decides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from _setups._base import Net, Setup, Task, binary, labels_of, tensors

CHANNELS, TIMES, CHANNEL, FIRST, WIDTH, HORIZON = 3, 40, 1, 20, 4, 4


def windows(count: int, generator: torch.Generator) -> Dataset[Any]:
    """``(N, C, T)``: the window is up in one class and down in the other."""
    x, labels = torch.randn(count, CHANNELS, TIMES, generator=generator) / 2, labels_of(count, generator)
    x[:, CHANNEL, FIRST : FIRST + WIDTH] += 2 * (2.0 * labels - 1)[:, None]
    return tensors(x, labels)


def times_first(count: int, generator: torch.Generator) -> Dataset[Any]:
    x, labels = windows(count, generator).tensors  # type: ignore[attr-defined]
    return tensors(x.transpose(1, 2).contiguous(), labels)


def histories(count: int, generator: torch.Generator) -> Dataset[Any]:
    """``(N, T, C)``: what comes is at the level of a window of the history, with noise."""
    x, level = torch.randn(count, TIMES, CHANNELS, generator=generator) / 2, torch.randn(count, 1, generator=generator)
    level = level.sign() * (1 + level.abs())
    x[:, -2 * WIDTH : -WIDTH, CHANNEL] += level
    return tensors(x, level + 0.1 * torch.randn(count, HORIZON, generator=generator))


def window(axis: int, first: int = FIRST) -> Any:
    """The cause is the window; the times run along this dimension."""

    def cause(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
        mask = torch.zeros(inputs[0].shape, dtype=torch.bool)
        (mask if axis == 2 else mask.transpose(1, 2))[:, CHANNEL, first : first + WIDTH] = True
        return (mask,)

    return cause


class Recurrent(Task):
    """The last state of a recurrent network, or the largest of each number over time."""

    def __init__(
        self, kind: type[nn.LSTM] | type[nn.GRU], outputs: int = 2, last: bool = False, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.rnn, self.head, self.last = kind(CHANNELS, 32, batch_first=True), nn.Linear(32, outputs), last

    def forward(self, x: Tensor) -> Tensor:
        states = self.rnn(x)[0]
        return self.head(states[:, -1] if self.last else states.amax(1))


class Encoder(Task):
    """A transformer over the times."""

    def __init__(self) -> None:
        super().__init__(lr=2e-3)
        self.project, self.places = nn.Linear(CHANNELS, 32), nn.Parameter(0.1 * torch.randn(TIMES, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.project(x) + self.places).mean(1))


class Direct(Task):
    """All steps of the forecast from the flattened history, as DLinear and N-BEATS do."""

    def __init__(self) -> None:
        super().__init__(F.mse_loss)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(TIMES * CHANNELS, 64), nn.ReLU(), nn.Linear(64, HORIZON))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def cnn() -> nn.Module:
    first, second = nn.Conv1d(CHANNELS, 16, 5, padding=2), nn.Conv1d(16, 32, 5, padding=2)
    return nn.Sequential(
        first, nn.BatchNorm1d(16), nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 2)
    )


def setups() -> Iterator[tuple[str, Setup]]:
    yield "1-D CNN (N, C, T)", Setup(lambda: Net(cnn()), windows, window(2))
    yield "LSTM (N, T, C)", Setup(lambda: Recurrent(nn.LSTM), times_first, window(1))
    yield "GRU (N, T, C), one logit", Setup(lambda: Recurrent(nn.GRU, 1, loss=binary), times_first, window(1))
    yield "transformer (N, T, C)", Setup(Encoder, times_first, window(1))
    ahead = window(1, TIMES - 2 * WIDTH)
    yield "GRU forecast", Setup(lambda: Recurrent(nn.GRU, HORIZON, True, loss=F.mse_loss), histories, ahead, 12)
    yield "direct forecast", Setup(Direct, histories, ahead, 12)
