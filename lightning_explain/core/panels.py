"""What a picture consists of: modalities say which panels there are, and ``render/`` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

MOST_BARS = 16
"""How many units get a bar with a name and a value."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One column of a method's picture: a panel for each sample.

    Args:
        title: The words above the column.
        kind: What is drawn: a kind of Captum's ``visualize_image_attr``; ``"bars"``, the strongest units with name and value;
            ``"profile"``, all units side by side; ``"pixels"``, the values themselves; or a kind of a subclass.
        values: ``(N, 1, H, W)`` for images; ``(N, U)`` for bars and profiles; uint8 ``(N, h, w, 3)`` for pixels.
        sign: Which part of the map an image shows.
        name: The name of each unit that has a bar.
    """

    title: str
    kind: str
    values: Tensor
    sign: str = "all"
    name: Callable[[int], str] = str


@dataclass(frozen=True, eq=False)
class WordsPanel(Panel):
    """The words of texts on the color of their attribution.

    Args:
        values: ``(N, T)`` the attribution of each word. NaN where there is no unit: special tokens, which are shown small, and padding.
        words: The T words of each of the N texts; an empty string, as for padding, is not shown.
        hint: What is missing to read them, such as a tokenizer where the words are ids, and how to give it; empty: nothing.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import WordsPanel
        >>> values = torch.tensor([[torch.nan, 0.1, 0.9], [torch.nan, -0.5, torch.nan]])
        >>> WordsPanel("words", values=values, words=[["[CLS]", "very", "good"], ["[CLS]", "bad", ""]]).kind
        'words'
    """

    kind: str = field(default="words", init=False)
    words: Sequence[Sequence[str]] = ()
    hint: str = ""


@dataclass(frozen=True, eq=False)
class FeaturesPanel(Panel):
    """The features of a table, each a column or a group of one-hot columns.

    Args:
        kind: ``"beeswarm"``: a dot for each sample, by feature, in the color of its value; ``"importance"``: the mean absolute
            attribution of each feature; ``"features"``: the strongest features of each sample, with their values; ``"waterfall"``: how
            they add up to the output of each sample.
        values: ``(N, F)`` the attribution of each feature; NaN where there is no unit.
        names: The names of the F features.
        texts: The values of the features of each of the N samples in words, such as ``"17.99"`` or ``"red"``; an empty string for none.
        measure: What the numbers of an importance are called.
        levels: ``(N, F)`` the values in standard deviations from the mean, the colors of a beeswarm; NaN, drawn in gray, for what has no
            order, such as categories.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import FeaturesPanel
        >>> values, levels = torch.tensor([[0.2, -0.1]]), torch.tensor([[1.5, torch.nan]])
        >>> FeaturesPanel("features", "features", values, names=["age", "color"], texts=[["43", "red"]], levels=levels).kind
        'features'
    """

    names: Sequence[str] = ()
    texts: Sequence[Sequence[str]] = ()
    levels: Tensor | None = None
    measure: str = "mean |a|"


@dataclass(frozen=True, eq=False)
class VolumePanel(Panel):
    """Volumes and their attribution: three slices through the strongest voxel, and a projection of the map.

    Args:
        values: ``(N, D, H, W)`` the attribution of each voxel.
        volume: ``(N, D, H, W)`` the input in [0, 1], as gray values.
        orientation: Where each axis leads, such as ``"SPL"``; empty if that is not known.
        spacing: The distance from one voxel to the next along each axis; empty: the same along all.
        masks: ``(N, D, H, W)`` boolean regions, which are outlined; ``None`` if there are none.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import VolumePanel
        >>> VolumePanel("volume", values=torch.zeros(2, 8, 9, 9), volume=torch.rand(2, 8, 9, 9), orientation="SPL").kind
        'slices'
    """

    kind: str = field(default="slices", init=False)
    volume: Tensor = field(default_factory=lambda: torch.empty(0))
    orientation: str = ""
    spacing: Sequence[float] = ()
    masks: Tensor | None = None


@dataclass(frozen=True, eq=False)
class FramesPanel(Panel):
    """Videos and their attribution: the most attributed frames, over a curve of how much lies on each frame.

    Args:
        values: ``(N, T, H, W)`` the attribution of each pixel of each frame.
        frames: ``(N, T, 3, H, W)`` the input in [0, 1].
        rate: Frames per second; ``None``: frames are numbered.
        masks: ``(N, T, H, W)`` boolean regions, which are outlined; ``None`` if there are none.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import FramesPanel
        >>> FramesPanel("frames", values=torch.zeros(2, 8, 9, 9), frames=torch.rand(2, 8, 3, 9, 9), rate=25.0).kind
        'frames'
    """

    kind: str = field(default="frames", init=False)
    frames: Tensor = field(default_factory=lambda: torch.empty(0))
    rate: float | None = None
    masks: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SpectrogramPanel(Panel):
    """Spectrograms and their attribution, with low frequencies at the bottom and axes of frequency and time.

    Args:
        values: ``(N, F, T)`` the attribution, the lowest frequency last.
        image: ``(N, F, T)`` the input in [0, 1], likewise.
        ticks: Numbers on the axis of frequencies, each with its place, from 0 at the top to 1 at the bottom.
        unit: What they are in, such as ``"Hz"``.
        rate: Columns per second; ``None``: the axis counts them.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import SpectrogramPanel
        >>> ticks = [(1.0, "0"), (0.5, "4k")]
        >>> SpectrogramPanel("", values=torch.zeros(2, 64, 50), image=torch.rand(2, 64, 50), ticks=ticks, unit="Hz").kind
        'spectrogram'
    """

    kind: str = field(default="spectrogram", init=False)
    image: Tensor = field(default_factory=lambda: torch.empty(0))
    ticks: Sequence[tuple[float, str]] = ()
    unit: str = ""
    rate: float | None = None


@dataclass(frozen=True, eq=False)
class SeriesPanel(Panel):
    """The channels of a series, each a curve over a strip in the colors of its attribution.

    Args:
        values: ``(N, C, T)`` the attribution of each time of each channel; NaN where there is no unit. ``(N, 1, T)`` for a map over the
            times alone, as that of a layer.
        series: ``(N, C, T)`` the input.
        channels: The names of the C channels.
        rate: Samples per second; ``None``: the axis counts steps.
        continued: The index of the channel that a forecast ``(N, H)`` continues; ``None``: of none.
        predicted: ``(N, C, H)`` the forecast of each channel, NaN where there is none; ``None``: the outputs are none.
        future: ``(N, C, H)`` what it should be.
        explained: ``(N,)`` the step of the forecast that the map explains; ``None``: not a single one.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import SeriesPanel
        >>> panel = SeriesPanel("series", values=torch.zeros(2, 1, 500), series=torch.rand(2, 1, 500), channels=["II"], rate=250.0)
        >>> panel.kind, panel.series.shape
        ('series', torch.Size([2, 1, 500]))
    """

    kind: str = field(default="series", init=False)
    series: Tensor = field(default_factory=lambda: torch.empty(0))
    channels: Sequence[str] = ()
    rate: float | None = None
    continued: int | None = None
    predicted: Tensor | None = None
    future: Tensor | None = None
    explained: Tensor | None = None

    def with_forecast(self, outputs: Tensor, labels: Tensor | None, explained: Tensor | None = None) -> SeriesPanel:
        """The panel with a forecast: outputs ``(N, H)`` of one channel, or ``(N, H, C)`` of all, labels like them, and its step ``(N,)``.

        Itself if the outputs are none: labels of another shape, whole numbers or only 0 and 1 are those of classes.

        Example:
            >>> import torch
            >>> from lightning_explain.core.panels import SeriesPanel
            >>> panel = SeriesPanel("series", values=torch.zeros(2, 1, 50), series=torch.rand(2, 1, 50), continued=0)
            >>> panel.with_forecast(torch.rand(2, 8), torch.rand(2, 8)).predicted.shape
            torch.Size([2, 1, 8])
        """
        if labels is None or labels.shape != outputs.shape or outputs.ndim < 2 or not labels.is_floating_point():
            return self
        channels, classes = self.series.shape[1], bool(((labels == 0) | (labels == 1)).all())
        of_one = outputs.ndim == 2 and outputs.shape[1] > 1 and self.continued is not None
        if classes or not (of_one or (outputs.ndim == 3 and outputs.shape[2] == channels)):
            return self
        parts = [values.detach().to(self.series) for values in (outputs, labels)]
        if outputs.ndim == 3:
            predicted, future = (part.transpose(1, 2) for part in parts)
            return replace(self, predicted=predicted, future=future, explained=explained)
        found = [self.series.new_full((len(outputs), channels, outputs.shape[1]), torch.nan) for _ in parts]
        for whole, part in zip(found, parts, strict=True):
            whole[:, self.continued] = part
        return replace(self, predicted=found[0], future=found[1], explained=explained)


@dataclass(frozen=True, eq=False)
class HorizonPanel(SeriesPanel):
    """The steps of a forecast over the times of the history, each cell in the color of its attribution.

    Args:
        values: ``(N, B * S, T)``: for each of B channels, or of one for all of them, a row for each of S steps.
        steps: The indices of the S steps.

    Example:
        >>> import torch
        >>> from lightning_explain.core.panels import HorizonPanel
        >>> HorizonPanel("horizon", values=torch.zeros(2, 6, 50), series=torch.rand(2, 2, 50), steps=[0, 1, 2]).kind
        'horizon'
    """

    kind: str = field(default="horizon", init=False)
    steps: Sequence[int] = ()
