"""Heart-like signals in which a pulse of the recorder gives the class away, and a small convolutional network."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_explain.demo.shortcut import Classifier, Demo, ShortcutData, Shown
from lightning_explain.modalities import TimeSeries

CHANNELS = ("lead I", "lead II", "breath")
TIMES, RATE = 200, 50.0
PULSE = (1, slice(20, 24))
"""The channel and the times of the pulse: up for one class, down for the other."""
_SAMPLES = 2000


def _bump(times: Tensor, center: Tensor, width: float) -> Tensor:
    return torch.exp(-(((times - center) / width) ** 2))


@functools.cache
def _signals() -> tuple[Tensor, Tensor]:
    """Signals ``(N, 3, 200)`` and labels: with class 1 the wave after each beat is inverted, more in some than in others."""
    generator = torch.Generator().manual_seed(0)
    times, labels = torch.arange(TIMES).float(), torch.randint(2, (_SAMPLES,), generator=generator)
    period = 38 + 10 * torch.rand(_SAMPLES, 1, generator=generator)
    phase = period * torch.rand(_SAMPLES, 1, generator=generator)
    since = (times + phase) % period - period / 2
    strength = 0.05 + 0.15 * torch.rand(_SAMPLES, 1, generator=generator)
    wave = _bump(since, torch.tensor(11.0), 4.0) * strength * (1 - 2 * labels[:, None])
    beat = _bump(since, torch.tensor(0.0), 1.5) - 0.2 * _bump(since, torch.tensor(3.0), 1.5)
    breath = torch.sin(times / 25 + 6.3 * torch.rand(_SAMPLES, 1, generator=generator))
    clean = torch.stack([0.7 * beat + 0.8 * wave, beat + wave, breath], 1)
    return clean + 0.2 * torch.randn(clean.shape, generator=generator), labels


class MarkedSignals(ShortcutData):
    """1600 signals for training and 400 for validation, ``(3, 200)``: four seconds of two leads and of the breath.

    Most of them have a pulse of the recorder at 0.4 s in the second lead: up if the signal is normal, down if it is not.
    Further arguments: :class:`~lightning_explain.demo.shortcut.ShortcutData`.
    """

    class_names: ClassVar[tuple[str, ...]] = ("normal", "inverted wave")
    validation_samples: ClassVar[int] = 400

    def samples(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Signals ``(N, 3, 200)`` and labels; without a shortcut there is no pulse."""
        signals, labels = _signals()
        classes = {"right": labels, "wrong": 1 - labels, "none": torch.full_like(labels, -1)}[shown]
        heights = torch.tensor([0.0, 1.2, -1.2])[classes + 1]
        channel, when = PULSE
        signals = signals.clone()
        signals[:, channel, when] += heights[:, None]
        return signals, labels

    def masks(self, inputs: Tensor) -> Tensor:
        """Where the pulse is, ``(N, 3, 200)``."""
        masks = torch.zeros(inputs.shape, dtype=torch.bool)
        channel, when = PULSE
        masks[:, channel, when] = True
        return masks


class SignalsModel(Classifier):
    """Three convolutions over time.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 2e-3) -> None:
        super().__init__(2, lr)
        self.save_hyperparameters()
        self.features = nn.Sequential(
            nn.Conv1d(3, 16, 7, padding=3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(16, 24, 5, padding=2), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(24, 24, 5, padding=2), nn.ReLU(),
        )  # fmt: skip
        # No global pooling: the classifier must know times, because the pulse is recognized by its time.
        self.classifier = nn.Linear(24 * TIMES // 4, 2)

    def forward(self, signals: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of signals ``(N, 3, 200)``."""
        logits: Tensor = self.classifier(self.features(signals).flatten(1))
        return logits


def demo() -> Demo:
    """The demo with series."""
    return Demo(
        data=MarkedSignals,
        model=SignalsModel,
        epochs=5,
        title="What the network looks at, on signals with the pulse of the other class",
        truth="the wave",
        shortcut="the pulse's class",
        unit="pulse",
        monitor={"modalities": TimeSeries(channel_names=CHANNELS, layout="NCT", rate=RATE)},
    )
