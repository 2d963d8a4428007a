"""Spectrograms: images whose axes are frequency and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.core.panels import Panel, SpectrogramPanel
from lightning_explain.core.validation import is_number
from lightning_explain.modalities.image import Pixels, stretched
from lightning_explain.modalities.plain import unlike

SCALES = ("linear", "htk", "slaney")
_FEWEST, _MOST = 3, 8
"""How many numbers an axis of frequencies has."""


@dataclass(frozen=True)
class Spectrogram(Pixels):
    """A spectrogram ``(N, C, F, T)``, of F frequencies at T times: its units are pixels, with the channels summed.

    Args:
        rate: Samples of the sound per second.
        hop_length: Samples from one time to the next; with ``rate``, pictures have an axis in seconds.
        scale: How frequencies lie: ``"linear"``, as in a short-time Fourier transform, ``"htk"``, the mel scale of torchaudio, or
            ``"slaney"``, that of librosa.
        max_frequency: The highest frequency in Hz. Default: half of ``rate``.
        min_frequency: The lowest one.
        low_first: Whether the first row is the lowest frequency, as torchaudio and librosa return it.

    Raises:
        ValueError: If the input does not have four dimensions, or an argument is out of range.

    Example:
        >>> from lightning_explain.modalities import Spectrogram
        >>> mel = Spectrogram(rate=16000, hop_length=160, scale="htk")
        >>> round(mel.place_of(1000.0, 64), 1), mel.units(torch.zeros(2, 1, 64, 100))
        (21.9, torch.Size([2, 1, 64, 100]))
    """

    kinds: ClassVar[tuple[str, ...]] = ("spectrogram",)

    rate: float | None = None
    hop_length: int | None = None
    scale: str = "linear"
    max_frequency: float | None = None
    min_frequency: float = 0.0
    low_first: bool = True

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"Spectrogram(scale={self.scale!r}); give one of {list(SCALES)}.")
        for name in ("rate", "hop_length", "max_frequency"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"Spectrogram({name}={value!r}); give a number above 0.")
        if self.highest is not None and not 0 <= self.min_frequency < self.highest:
            raise ValueError(
                f"Spectrogram(min_frequency={self.min_frequency!r}); give a number from 0 to below {self.highest:g} Hz."
            )

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """Itself, if the input is an image."""
        if x.ndim != 4:
            line = unlike(x, "Spectrogram", "(N, C, F, T)").rstrip(".")
            of_sound = x.ndim < 3 or (x.ndim == 3 and x.shape[1] == 1)
            raise ValueError(f"{line}; for a waveform, give TimeSeries." if of_sound else f"{line}.")
        return self

    @property
    def highest(self) -> float | None:
        """The highest frequency in Hz, if it is known."""
        return self.max_frequency or (None if self.rate is None else self.rate / 2)

    def place_of(self, frequency: float, count: int) -> float:
        """Where a frequency lies among so many places, from 0, the lowest one; its filter is centered there, if there are filters."""
        assert self.highest is not None
        low, high, at = (_on_scale(f, self.scale) for f in (self.min_frequency, self.highest, frequency))
        part = (at - low) / (high - low)
        # Triangular filters begin at the lowest frequency, and the first one is centered one step above it.
        return part * (count - 1) if self.scale == "linear" else part * (count + 1) - 1

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """The spectrogram and its map, with axes."""
        values, image = self.by_unit(found[0])[:, 0].float(), stretched(inputs[0].float().mean(1))
        if self.low_first:
            values, image = values.flip(1), image.flip(1)
        columns = self.rate / self.hop_length if self.rate and self.hop_length else None
        unit = "" if self.highest is None else "Hz"
        ticks = self._ticks(image.shape[1])
        return (SpectrogramPanel("spectrogram", values=values, image=image, ticks=ticks, unit=unit, rate=columns),)

    def _ticks(self, count: int) -> list[tuple[float, str]]:
        """Round frequencies, or else numbers of rows, with the place of each, from 0 at the top to 1 at the bottom."""
        if self.highest is None:
            return [(1 - (i + 0.5) / count, str(i)) for i in sorted({0, count // 2, count - 1})]
        if self.scale == "linear":
            frequencies = _steps(self.min_frequency, self.highest)
        else:
            frequencies = [m * 10.0**e for e in range(1, 5) for m in (1, 2, 5)]
            frequencies = [f for f in frequencies if max(self.min_frequency, 100) <= f <= self.highest]
        places = [(1 - (self.place_of(f, count) + 0.5) / count, _words(f)) for f in frequencies]
        return [(place, words) for place, words in places if 0 <= place <= 1]


def _on_scale(frequency: float, scale: str) -> float:
    """A frequency in Hz on a scale: itself, or in mels."""
    if scale == "linear":
        return frequency
    if scale == "htk":
        return 2595 * math.log10(1 + frequency / 700)
    return frequency * 3 / 200 if frequency < 1000 else 15 + 27 * math.log(frequency / 1000) / math.log(6.4)


def _steps(low: float, high: float) -> list[float]:
    """Multiples of a round number between two frequencies."""
    step = next(
        m * 10.0**e for e in range(-3, 9) for m in (1, 2, 5) if _FEWEST <= (high - low) / (m * 10.0**e) <= _MOST
    )
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _words(frequency: float) -> str:
    return f"{frequency / 1000:g}k" if frequency >= 1000 else f"{frequency:g}"
