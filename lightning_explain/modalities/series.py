"""Time series: channels over times in; each number as a unit out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.modalities.plain import Plain

LAYOUTS = ("NCT", "NTC")


@dataclass(frozen=True)
class TimeSeries(Plain):
    """Series ``(N, C, T)`` or ``(N, T, C)``: the units are the numbers of each channel at each time.

    Args:
        channel_names: A name for each channel.
        layout: ``"NCT"`` or ``"NTC"``. Default: ``"NCT"`` if the model convolves the input, ``"NTC"`` if a recurrent, linear or attention
            layer takes it; otherwise the longer dimension is taken for time.
        rate: Samples per second, for the time axis. Default: steps.

    Raises:
        ValueError: If the input does not have three dimensions, the layout is unknown, or there are as many names as no dimension has.

    Example:
        >>> from lightning_explain.modalities import TimeSeries
        >>> TimeSeries(layout="NTC", rate=100.0).time_axis(torch.zeros(4, 50, 3))
        1
    """

    on_input: ClassVar[bool] = True

    channel_names: Any = None
    layout: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f'TimeSeries(layout={self.layout!r}); give "NCT" or "NTC".')

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """With its layout, from the first layer that takes the input."""
        if x.ndim != 3:
            raise ValueError(f"TimeSeries needs (N, C, T) or (N, T, C), got {tuple(x.shape)}.")
        seen = self.time_axis(x) if facts.time_axis is None else facts.time_axis
        found = replace(self, layout=self.layout or {2: "NCT", 1: "NTC"}[seen])
        channels = x.shape[3 - found.time_axis(x)]
        if self.channel_names is not None and len(self.channel_names) != channels:
            raise ValueError(
                f"TimeSeries has {len(self.channel_names)} channel_names for {channels} channels of {tuple(x.shape)} ({found.layout}); "
                "give a name for each, or another layout."
            )
        return found

    def time_axis(self, x: Tensor) -> int:
        """The dimension that runs over the times."""
        if self.layout is None:
            return 2 if x.shape[2] >= x.shape[1] else 1
        return 2 if self.layout == "NCT" else 1
