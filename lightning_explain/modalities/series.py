"""Time series: channels over times in; each number as a unit out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad

from lightning_explain.core.contracts import Arrangement, InputFacts, Modality
from lightning_explain.core.naming import nearest
from lightning_explain.core.panels import Panel, SeriesPanel
from lightning_explain.modalities.plain import Plain, unlike

LAYOUTS = ("NCT", "NTC")


@dataclass(frozen=True)
class TimeSeries(Plain):
    """Series ``(N, C, T)`` or ``(N, T, C)``: the units are the numbers of each channel at each time.

    Args:
        channel_names: A name for each channel.
        layout: ``"NCT"`` or ``"NTC"``. Default: ``"NCT"`` if the model convolves the input, ``"NTC"`` if a recurrent, linear or attention
            layer takes it; otherwise the longer dimension is taken for time.
        rate: Samples per second, for the time axis. Default: steps.
        forecast: The channel, by name or index, that a forecast ``(N, H)`` continues in pictures. Default: the only one.

    Raises:
        ValueError: If the input does not have three dimensions, the layout is unknown, there are as many names as no dimension has, or
            there is no such channel.

    Example:
        >>> from lightning_explain.modalities import TimeSeries
        >>> TimeSeries(layout="NTC", rate=100.0).time_axis(torch.zeros(4, 50, 3))
        1
    """

    on_input: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("series", "horizon")

    channel_names: Any = None
    layout: str | None = None
    rate: float | None = None
    forecast: str | int | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f'TimeSeries(layout={self.layout!r}); give "NCT" or "NTC".')

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """With its layout, from the first layer that takes the input."""
        if x.ndim != 3:
            raise ValueError(unlike(x, "TimeSeries", "(N, C, T) or (N, T, C)"))
        seen = self.time_axis(x) if facts.time_axis is None else facts.time_axis
        found = replace(self, layout=self.layout or {2: "NCT", 1: "NTC"}[seen])
        channels = x.shape[3 - found.time_axis(x)]
        if self.channel_names is not None and len(self.channel_names) != channels:
            raise ValueError(
                f"TimeSeries has {len(self.channel_names)} channel_names for {channels} channels of {tuple(x.shape)} ({found.layout}); "
                "give a name for each, or another layout."
            )
        names = found.named(x)
        if self.forecast is not None and self.forecast not in (*names, *range(channels)):
            raise ValueError(f"TimeSeries(forecast={self.forecast!r}): {nearest(str(self.forecast), names)}")
        return found

    def named(self, x: Tensor) -> list[str]:
        """The names of the channels; their numbers if they have none."""
        return list(map(str, self.channel_names or range(x.shape[3 - self.time_axis(x)])))

    def by_name(self, values: Tensor, x: Tensor) -> Tensor:
        """Summed over the times of each channel."""
        return values.sum(self.time_axis(x))

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        """A layer's tensor as ``(N, C, T)`` over the times of the input."""
        placed = super().place(value, x, how)
        return None if placed is None or placed.shape[2] > x.shape[self.time_axis(x)] else placed

    def _axis(self, placed: Tensor, x: Tensor) -> int:
        return self.time_axis(x)

    def inside(self, masks: Tensor, x: Tensor) -> Tensor | None:
        """The masks in the shape of the series, or of times ``(N, T)``, which are then in all channels."""
        axis = self.time_axis(x)
        if masks.shape == (len(x), x.shape[axis]):
            return masks.unsqueeze(3 - axis).expand(self.units(x))
        return super().inside(masks, x)

    def region(self, x: Tensor, size: int | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """A window of ``size`` times of one channel, by default a quarter of the series, in the shape of the input."""
        axis = self.time_axis(x)
        times, channels = x.shape[axis], x.shape[3 - axis]
        if size is not None and size > times:
            raise ValueError(f"needs windows no longer than the series, {times} times")
        length, place = size or max(1, times // 4), draw(x.new_empty(len(x), 2)).double()
        first, channel = ((place[:, i] * n).long()[:, None] for i, n in ((0, times - length + 1), (1, channels)))
        at, which = (torch.arange(n, device=x.device) for n in (times, channels))
        window = ((which == channel)[:, :, None] & ((at >= first) & (at < first + length))[:, None]).to(x.dtype)
        return window if axis == 2 else window.transpose(1, 2)

    def blurred(self, x: Tensor) -> Tensor:
        """Each channel smoothed by a Gaussian whose standard deviation is a sixteenth of its length."""
        axis = self.time_axis(x)
        series, sigma = (x if axis == 2 else x.transpose(1, 2)), x.shape[axis] / 16
        reach = min(int(4 * sigma), x.shape[axis] - 1)
        weights = (-0.5 * (torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) / sigma).square()).exp()
        kernel = (weights / weights.sum()).expand(series.shape[1], 1, -1)
        smooth = conv1d(pad(series, (reach, reach), mode="reflect"), kernel, groups=series.shape[1])
        return smooth if axis == 2 else smooth.transpose(1, 2)

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """The curve of each channel over its map."""
        (values, series), axis = (found[0], inputs[0]), self.time_axis(inputs[0])
        if axis == 1:
            values, series = values.transpose(1, 2), series.transpose(1, 2)
        names = self.named(inputs[0])
        channel = names.index(self.forecast) if isinstance(self.forecast, str) else self.forecast
        continued = 0 if channel is None and len(names) == 1 else channel
        return (
            SeriesPanel("series", values=values, series=series, channels=names, rate=self.rate, continued=continued),
        )

    def time_axis(self, x: Tensor) -> int:
        """The dimension that runs over the times."""
        if self.layout is None:
            return 2 if x.shape[2] >= x.shape[1] else 1
        return 2 if self.layout == "NCT" else 1
