"""Volumes: their voxels, where a layer's map lies on them, how they are perturbed, and the slices that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_explain.core.contracts import Arrangement, InputFacts, Modality
from lightning_explain.core.panels import Panel, VolumePanel
from lightning_explain.core.validation import is_number
from lightning_explain.modalities.image import block, from_tokens, is_grid, stretched
from lightning_explain.modalities.plain import unlike

_SIDES = (frozenset("RL"), frozenset("AP"), frozenset("SI"))


@dataclass(frozen=True)
class Volume(Modality):
    """A volume ``(N, C, D, H, W)``, such as an MRI or CT scan: its units are voxels, with the channels summed.

    Args:
        orientation: Where the three axes lead, in the letters of NIfTI: R or L, A or P, S or I. SimpleITK's arrays are ``"SPL"``; those
            of nibabel and MONAI after ``Orientationd(axcodes="RAS")`` are ``"RAS"``. Slices are then shown as radiologists look at
            them, with the patient's right on the left side. Default: the axes are called D, H and W.
        spacing: The distance from one voxel to the next along each axis, such as ``(5.0, 0.7, 0.7)`` mm, for the proportions of pictures.
        channel: Of several channels, such as T1 and FLAIR, the one that pictures show. Default: their mean.

    Raises:
        ValueError: If the input does not have five dimensions, or an argument does not fit it.

    Example:
        >>> from lightning_explain.modalities import Volume
        >>> Volume(orientation="SPL", spacing=(5.0, 0.7, 0.7)).units(torch.zeros(2, 4, 16, 32, 32))
        torch.Size([2, 1, 16, 32, 32])
    """

    kinds: ClassVar[tuple[str, ...]] = ("slices",)

    orientation: str | None = None
    spacing: Any = None
    channel: int | None = None

    def __post_init__(self) -> None:
        given = self.orientation
        letters = [len(side.intersection(str(given))) for side in _SIDES]
        if given is not None and (len(str(given)) != 3 or letters != [1, 1, 1]):
            raise ValueError(f'Volume(orientation={given!r}); give three letters such as "SPL" or "RAS".')
        if self.spacing is not None and not (
            isinstance(self.spacing, Sequence)
            and len(self.spacing) == 3
            and all(is_number(s) and s > 0 for s in self.spacing)
        ):
            raise ValueError(f"Volume(spacing={self.spacing!r}); give three positive numbers, for D, H and W.")

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """Itself, if the input is a volume."""
        if x.ndim != 5:
            raise ValueError(unlike(x, "Volume", "(N, C, D, H, W)"))
        if self.channel is not None and self.channel not in range(x.shape[1]):
            raise ValueError(f"Volume(channel={self.channel!r}); give one of the {x.shape[1]} channels, from 0.")
        return replace(self, spacing=None if self.spacing is None else tuple(map(float, self.spacing)))

    def units(self, x: Tensor) -> torch.Size:
        """``(N, 1, D, H, W)``."""
        return x[:, :1].shape

    def grid(self, x: Tensor) -> tuple[int, ...]:
        """``(D, H, W)``."""
        return tuple(x.shape[2:])

    def inside(self, masks: Tensor, x: Tensor) -> Tensor | None:
        """Masks ``(N, D, H, W)`` as ``(N, 1, D, H, W)``."""
        return masks[:, None] if masks.shape == (len(x), *self.grid(x)) else None

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        """A layer's activation, gradient or map as ``(N, C, d, h, w)``; ``None`` if it has no place on the volume."""
        reshape = how.reshape
        if callable(reshape):
            made = reshape(value)
            return made if isinstance(made, Tensor) and made.ndim == 5 and len(made) == len(value) else None
        if value.ndim == 3 and reshape in (None, "tokens"):
            return from_tokens(value, self.grid(x), how.model)
        if value.ndim != 5 or reshape not in (None, "channels_first", "channels_last") or 0 in value.shape:
            return None
        first, last = (is_grid(tuple(value.shape[i : i + 3]), self.grid(x)) for i in (2, 1))
        last = last and not first if reshape is None else reshape == "channels_last"
        return value.movedim(-1, 1) if last else value

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        """A layer's map ``(N, C, d, h, w)`` as ``(N, 1, D, H, W)``: summed over its channels, and interpolated.

        Equals Captum's ``LayerAttribution.interpolate(map, size, "trilinear")``.
        """
        return F.interpolate(self.by_unit(placed), self.grid(x), mode="trilinear")

    def region(self, x: Tensor, size: int | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """A cube ``(N, 1, D, H, W)`` of ``size`` voxels a side; by default a quarter of the shortest side of the volume."""
        shortest = min(self.grid(x))
        if size is not None and size > shortest:
            raise ValueError(f"needs cubes no larger than the shortest side of the volumes, {shortest} voxels")
        return block(x, self.grid(x), (size or max(1, shortest // 4),) * 3, draw)

    def blurred(self, x: Tensor) -> Tensor:
        """Blurred by a Gaussian whose standard deviation is a sixteenth of the longest side."""
        return smoothed(x, (2, 3, 4), max(self.grid(x)) / 16)

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """Slices through the strongest voxel, and a projection."""
        x = inputs[0].float()
        shown = x.mean(1) if self.channel is None else x[:, self.channel]
        return (
            VolumePanel(
                "slices",
                values=self.by_unit(found[0])[:, 0].float(),
                volume=stretched(shown),
                orientation=self.orientation or "",
                spacing=self.spacing or (),
            ),
        )


def smoothed(x: Tensor, axes: Sequence[int], deviation: float) -> Tensor:
    """The mean around each place along some axes, weighted by a Gaussian with this standard deviation."""
    for axis in axes:
        at = torch.arange(x.shape[axis], device=x.device, dtype=x.dtype) / deviation
        weights = (-0.5 * (at[:, None] - at).square()).exp()
        x = (x.movedim(axis, -1) @ (weights / weights.sum(1, keepdim=True)).T).movedim(-1, axis)
    return x
