"""Spectrograms: where frequencies lie, and that low ones are at the bottom; bands of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Probe, Report, draw, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import InputFacts
from lightning_explain.core.panels import FeaturesPanel, SpectrogramPanel
from lightning_explain.modalities import Image, Spectrogram, restored, stored
from lightning_explain.render import spectrograms
from lightning_explain.render.figure import figure_of

X = torch.rand(2, 1, 64, 100, generator=torch.Generator().manual_seed(0))


class Tone(nn.Module):
    """The energy in rows 20 to 24 during columns 10 to 30."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 20:24, 10:30].flatten(1).sum(1, keepdim=True)


def test_a_place_of_a_fourier_transform_is_a_multiple_of_rate_over_length() -> None:
    linear = Spectrogram(rate=16000)
    assert [linear.place_of(f, 257) for f in (0, 62.5, 8000)] == [0, 2, 256]  # n_fft = 512: 31.25 Hz a bin.


def centers(scale: str, rows: int, low: float, high: float) -> Tensor:
    """The centers of triangular mel filters, evenly spaced in mels, as torchaudio and librosa place them."""
    if scale == "htk":
        mels = torch.linspace(*(2595 * np.log10(1 + f / 700) for f in (low, high)), rows + 2, dtype=torch.double)
        return (700 * (10 ** (mels / 2595) - 1))[1:-1]
    to = lambda f: f * 3 / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)  # noqa: E731
    mels = torch.linspace(to(low), to(high), rows + 2, dtype=torch.double)
    return torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * np.log(6.4) / 27))[1:-1]


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_a_place_of_mel_filters_is_where_its_filter_is_centered(scale: str) -> None:
    mel = Spectrogram(scale=scale, min_frequency=20.0, max_frequency=7600.0)
    rows = [mel.place_of(float(f), 64) for f in centers(scale, 64, 20.0, 7600.0)]
    assert rows == pytest.approx(list(range(64)), abs=1e-9)


def test_low_frequencies_are_at_the_bottom_beside_hertz_and_seconds() -> None:
    spectrogram = Spectrogram(rate=16000, hop_length=160)
    report = explain(Tone(), Probe(X), [m.InputXGradient()], [], modalities=spectrogram)
    (panel,) = spectrogram.panels((report.attributions["input_x_gradient"],), (X,), ())  # type: ignore[arg-type]
    assert isinstance(panel, SpectrogramPanel)
    assert panel.values[0].abs().sum(1).nonzero().flatten().tolist() == [63 - row for row in (23, 22, 21, 20)]
    assert panel.rate == 100
    assert panel.unit == "Hz"
    assert [words for _, words in panel.ticks] == ["0", "1k", "2k", "3k", "4k", "5k", "6k", "7k", "8k"]
    assert [round(place * 64 - 0.5) for place, _ in panel.ticks[::4]] == [63, 32, 0]
    picture = spectrograms.mapped(panel, 0, panel.values[0], (128, 200))
    orange = (picture[..., 0].astype(int) - picture[..., 2]) > 60
    assert 128 * 40 / 64 - 3 <= np.flatnonzero(orange.any(1)).mean() <= 128 * 44 / 64 + 3
    page = draw(report, "input_x_gradient")
    assert page.shape == (430, 700, 3)
    assert restored(stored((spectrogram,))) == (spectrogram,)
    assert draw(report, "input_x_gradient", layout="composite").shape[1] > 300


def test_frequencies_may_come_from_high_to_low_and_without_hertz_rows_are_numbered() -> None:
    high_first = Spectrogram(low_first=False)
    (panel,) = high_first.panels((X,), (X,), ())
    assert torch.equal(panel.values, X[:, 0])
    assert isinstance(panel, SpectrogramPanel)
    assert [words for _, words in panel.ticks] == ["0", "32", "63"]
    assert panel.rate is None


def test_scores_of_a_spectrogram_are_those_of_an_image() -> None:
    found = [
        explain(Tone().double(), Probe(X.double()), [m.InputXGradient()], [q.Infidelity()], modalities=kind).scores
        for kind in (Spectrogram(), Image())
    ]
    assert torch.equal(*(scores["infidelity"]["input_x_gradient"] for scores in found))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scale": "bark"}, r"Spectrogram\(scale='bark'\); give one of"),
        ({"rate": -1}, r"Spectrogram\(rate=-1\); give a number above 0"),
        ({"max_frequency": 10.0, "min_frequency": 20.0}, "give a number from 0 to below 10 Hz"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Spectrogram(**arguments)
    with pytest.raises(
        ValueError, match=r"Spectrogram needs \(N, C, F, T\), got \(2, 64, 100\); if it has no dimension of ch"
    ):
        Spectrogram().bound(X[:, 0], InputFacts())


# -- bands ---------------------------------------------------------------------------------------------------------------


def shown(channels: int, **arguments: Any) -> Any:
    x = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 3000
    maps = torch.zeros(2, channels, 16, 16)
    maps[:, channels - 1, 4:8, 4:8], maps[:, 0, 0, 0] = -1.0, 4.0
    n = torch.zeros(2)
    report = Report({"ig": maps, "cam": maps[:, :1, ::2, ::2]}, {}, {}, n, n, n, torch.arange(2))
    return x, figure_of(report, Probe(x, modalities=Image(**arguments).bound(x, InputFacts())))


@pytest.mark.parametrize("channels", [4, 8, 13])
def test_chosen_bands_are_drawn_each_between_its_percentiles(channels: int) -> None:
    x, figure = shown(channels, bands=(3, 2, 1))
    images = figure.inputs[0].images
    for color, band in enumerate((3, 2, 1)):
        low, high = np.percentile(x[0, band].numpy(), (2, 98))
        expected = ((x[0, band] - low) / (high - low)).clamp(0, 1)
        assert torch.allclose(images[0, color, 0, 0], expected[0, 0], atol=1e-5)
    (gray,) = (shown(channels, bands=(3,))[1].inputs[0].images[0, :, 5, 5].unique(),)
    assert len(gray) == 1


def test_a_page_says_how_much_lies_on_each_band() -> None:
    names = ["blue", "green", "red", "near infrared"]
    _, figure = shown(4, band_names=names)
    (panel,) = figure.own["ig"]
    assert isinstance(panel, FeaturesPanel)
    assert list(panel.names) == names
    assert panel.values.tolist() == [pytest.approx([0.2, 0, 0, 0.8])] * 2
    assert not figure.own["cam"], "a map of a layer has no bands"
    assert list(figure.pictures()) == ["overview", "overview/2", "ig", "ig/2", "cam"]
    assert not shown(3)[1].own["ig"], "colors are no bands"
    assert shown(5)[1].own["ig"][0].names[4] == "band 4"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bands": (0, 9, 1)}, r"Image\(bands=\(0, 9, 1\)\); give one or three of the 4 channels, from 0"),
        ({"bands": (0, 1)}, "give one or three"),
        ({"band_names": ["a"]}, r"Image has 1 band_names for \(2, 4, 16, 16\); give a name for each channel"),
    ],
)
def test_bands_that_are_not_there_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        shown(4, **arguments)
