"""Data in which it is known what a network must look at: volumes, videos, spectrograms, and bands of a satellite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import modalities

SAMPLES = 512
RATE, HOP, TONES = 16_000, 320, (1500.0, 5000.0)


def _grids(*sizes: int) -> list[Tensor]:
    """The coordinates along each axis, from -1 to 1."""
    return list(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in sizes), indexing="ij"))


def _net(convolution: type[nn.Module], pool: type[nn.Module], channels: int) -> nn.Module:
    first, second = (convolution(a, b, 5, padding=2) for a, b in ((channels, 8), (8, 16)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(16, 2))


def _volume() -> tuple[Any, ...]:
    """Heads with a bright sphere inside, or without."""
    generator = torch.Generator().manual_seed(0)
    z, y, x = _grids(16, 24, 20)
    far = (z**2 + y**2 + x**2).sqrt()
    head = ((far < 0.95).float() * 0.5 + ((far > 0.85) & (far < 0.95)).float() * 0.4)[None, None]
    texture = F.avg_pool3d(torch.randn(SAMPLES, 1, 16, 24, 20, generator=generator), 3, 1, 1)
    labels = torch.randint(2, (SAMPLES,), generator=generator)
    center = (torch.rand(SAMPLES, 3, 1, 1, 1, generator=generator) - 0.5) * 0.9
    sphere = ((z - center[:, 0]) ** 2 + (y - center[:, 1]) ** 2 + (x - center[:, 2]) ** 2).sqrt() < 0.25
    volumes = head * (1 + 0.5 * texture) + 0.6 * sphere[:, None] * labels.reshape(-1, 1, 1, 1, 1)
    kind = modalities.Volume(orientation="SPL", spacing=(1.5, 1.0, 1.0))
    net = _net(nn.Conv3d, nn.AdaptiveMaxPool3d, 1)
    return volumes, labels, net, F.cross_entropy, {"class_names": ["healthy", "lesion"], "modalities": kind}


class _Frames(nn.Module):
    """A CNN on each frame, and the largest of each number over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = _net(nn.Conv2d, nn.AdaptiveMaxPool2d, 3)

    def forward(self, clips: Tensor) -> Tensor:
        """The logits."""
        return self.cnn(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).amax(1)


def _video() -> tuple[Any, ...]:
    """A square that moves, and is red for a few frames in one class, blue in the other."""
    generator = torch.Generator().manual_seed(0)
    labels, start = (torch.randint(n, (SAMPLES,), generator=generator) for n in (2, 7))
    clips = 0.4 + 0.1 * torch.randn(SAMPLES, 12, 3, 24, 24, generator=generator)
    for sample in range(SAMPLES):
        row = int(torch.randint(4, 14, (1,), generator=generator))
        for frame in range(12):
            lit = start[sample] <= frame < start[sample] + 3
            color = torch.eye(3)[2 * int(labels[sample])] if lit else torch.full((3,), 0.9)
            clips[sample, frame, :, row : row + 5, frame + 2 : frame + 7] = color[:, None, None]
    kind = modalities.Video(rate=8.0)
    return clips.clamp(0, 1), labels, _Frames(), F.cross_entropy, {"class_names": ["red", "blue"], "modalities": kind}


def _audio() -> tuple[Any, ...]:
    """A short tone at one of two frequencies, in noise, as a spectrogram of 64 bins."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (SAMPLES,), generator=generator)
    spectrograms, rows = torch.rand(SAMPLES, 1, 64, 50, generator=generator), modalities.Spectrogram(rate=RATE)
    start = torch.randint(5, 35, (SAMPLES,), generator=generator)
    for sample in range(SAMPLES):
        row = round(rows.place_of(TONES[int(labels[sample])], 64))
        spectrograms[sample, 0, row - 1 : row + 2, start[sample] : start[sample] + 8] += 1.5
    kind = modalities.Spectrogram(rate=RATE, hop_length=HOP)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.AdaptiveMaxPool2d((64, 1)), nn.Flatten(),
        nn.Linear(16 * 64, 2),
    )  # fmt: skip
    return spectrograms, labels, net, F.cross_entropy, {"class_names": ["1.5 kHz", "5 kHz"], "modalities": kind}


def _bands() -> tuple[Any, ...]:
    """Fields of a satellite's scene; one is vegetation, bright in the near infrared alone, in one class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (SAMPLES,), generator=generator)
    fields = torch.rand(SAMPLES, 5, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    scenes = 800 + 1200 * fields + 80 * torch.randn(SAMPLES, 5, 32, 32, generator=generator)
    place = torch.randint(3, (SAMPLES, 2), generator=generator) * 8
    for sample in range(SAMPLES):
        y, x = place[sample].tolist()
        scenes[sample, 3, y : y + 8, x : x + 8] = 3500 if labels[sample] else 1400
    # As is usual, each band has mean 0 and standard deviation 1.
    scenes = (scenes - scenes.mean((0, 2, 3), keepdim=True)) / scenes.std((0, 2, 3), keepdim=True)
    names = ("blue", "green", "red", "near infrared", "shortwave")
    kind = modalities.Image(bands=(2, 1, 0), band_names=names)
    net = _net(nn.Conv2d, nn.AdaptiveMaxPool2d, 5)
    return scenes, labels, net, F.cross_entropy, {"class_names": ["bare", "vegetation"], "modalities": kind}


TASKS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "volume": _volume,
    "video": _video,
    "audio": _audio,
    "bands": _bands,
}
"""By name: what is drawn of each; inputs, labels, a network, its loss, and arguments of the monitor."""
