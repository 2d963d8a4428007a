"""Videos: the pixels of their frames, where a layer's map lies on them, how they are perturbed, and the frames that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain.core.contracts import Arrangement, InputFacts, Modality
from lightning_explain.core.panels import FramesPanel, Panel
from lightning_explain.modalities.image import block, from_tokens, is_grid, stretched
from lightning_explain.modalities.plain import unlike
from lightning_explain.modalities.volume import smoothed

LAYOUTS = ("NTCHW", "NCTHW")
_COLORS = 3
_OF_THREE = (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d, nn.MaxPool3d, nn.AvgPool3d)
"""Layers of videos ``(N, C, T, H, W)``."""


@dataclass(frozen=True)
class Video(Modality):
    """A video ``(N, T, C, H, W)`` or ``(N, C, T, H, W)``: its units are the pixels of each frame, with the channels summed.

    Args:
        layout: ``"NTCHW"`` or ``"NCTHW"``. Default: as the first convolution takes it, 3-D ones ``(N, C, T, H, W)``, 2-D ones frame by
            frame.
        rate: Frames per second, for the times of pictures. Default: frames are numbered.

    Raises:
        ValueError: If the input does not have five dimensions, or the layout is unknown.

    Example:
        >>> from lightning_explain.modalities import Video
        >>> Video(layout="NTCHW", rate=25.0).units(torch.zeros(2, 16, 3, 32, 32))
        torch.Size([2, 16, 1, 32, 32])
    """

    kinds: ClassVar[tuple[str, ...]] = ("frames",)

    layout: str | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.layout not in (None, *LAYOUTS):
            raise ValueError(f'Video(layout={self.layout!r}); give "NTCHW" or "NCTHW".')
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"Video(rate={self.rate!r}); give frames per second, above 0.")

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """With its layout, from the first convolution that takes the input."""
        if x.ndim != 5:
            raise ValueError(unlike(x, "Video", "(N, T, C, H, W) or (N, C, T, H, W)"))
        return replace(self, layout=self.layout or facts.layout or LAYOUTS[self.time_axis(x) - 1])

    def time_axis(self, x: Tensor) -> int:
        """The dimension that runs over the frames."""
        if self.layout is None:
            return 2 if x.shape[1] == _COLORS and x.shape[2] != _COLORS else 1
        return 1 + LAYOUTS.index(self.layout)

    def units(self, x: Tensor) -> torch.Size:
        """``(N, T, 1, H, W)`` or ``(N, 1, T, H, W)``."""
        return x.narrow(3 - self.time_axis(x), 0, 1).shape

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """``(T, H, W)``."""
        return (x.shape[self.time_axis(x)], *x.shape[3:])

    def inside(self, masks: Tensor, x: Tensor) -> Tensor | None:
        """Masks ``(N, T, H, W)`` in the shape of the units."""
        return masks.unsqueeze(3 - self.time_axis(x)) if masks.shape == (len(x), *self.grid(x)) else None

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        """A layer's tensor as ``(N, C, t, h, w)``, also where it has one for each frame, ``(N, T, C, h, w)``; ``None`` without a place."""
        if callable(how.reshape):
            made = how.reshape(value)
            return made if isinstance(made, Tensor) and made.ndim == 5 and len(made) == len(value) else None
        if value.ndim == 3 and how.reshape in (None, "tokens"):
            return from_tokens(value, self.grid(x), how.model)
        if value.ndim != 5 or how.reshape is not None or 0 in value.shape:
            return None
        if self._by_frame(value, x, how):
            return value.transpose(1, 2)
        last = is_grid(tuple(value.shape[2:4]), self.grid(x)[1:]) and not is_grid(
            tuple(value.shape[3:]), self.grid(x)[1:]
        )
        return value.movedim(-1, 1) if last else value

    def _by_frame(self, value: Tensor, x: Tensor, how: Arrangement) -> bool:
        """Whether the second dimension of a layer's tensor runs over the frames."""
        inside = [] if how.layer is None else list(how.layer.modules())
        if any(isinstance(module, _OF_THREE) for module in inside) or value.shape[1] != self.grid(x)[0]:
            return False
        return how.layer is not None or self.layout == "NTCHW"

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        """A layer's map ``(N, C, t, h, w)`` summed over its channels, and interpolated trilinearly, in the shape of the units."""
        found = F.interpolate(placed.sum(1, keepdim=True), self.grid(x), mode="trilinear")
        return found if self.time_axis(x) == 2 else found.transpose(1, 2)

    def region(self, x: Tensor, size: int | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """A square of ``size`` pixels a side, by default a quarter of the shorter one, during a quarter of the frames."""
        times, height, width = self.grid(x)
        if size is not None and size > min(height, width):
            raise ValueError(
                f"needs squares no larger than the shorter side of the frames, {min(height, width)} pixels"
            )
        side = size or max(1, min(height, width) // 4)
        found = block(x, (times, height, width), (max(1, times // 4), side, side), draw)
        return found if self.time_axis(x) == 2 else found.transpose(1, 2)

    def blurred(self, x: Tensor) -> Tensor:
        """Each frame blurred by a Gaussian whose standard deviation is a sixteenth of the longer side."""
        return smoothed(x, (3, 4), max(x.shape[3:]) / 16)

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """The most attributed frames."""
        x, channels = inputs[0].float(), 3 - self.time_axis(inputs[0])
        values = found[0].float().sum(channels)
        frames = x if channels == 2 else x.transpose(1, 2)
        if not bool(((frames >= 0) & (frames <= 1)).all()):
            frames = frames / 255 if inputs[0].dtype == torch.uint8 else stretched(frames)
        colors = frames if frames.shape[2] == _COLORS else frames.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
        return (FramesPanel("frames", values=values, frames=colors, rate=self.rate),)


def is_video(x: Tensor, facts: InputFacts) -> bool:
    """Whether a tensor of five dimensions is a video: frames go through 2-D layers, or it has three channels, as colors are."""
    if facts.by_frame:
        return True
    at = {"NTCHW": (2,), "NCTHW": (1,), None: (1, 2)}[facts.layout]
    return any(x.shape[axis] == _COLORS for axis in at)
