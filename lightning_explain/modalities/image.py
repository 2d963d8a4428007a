"""Images: their pixels, where a layer's map lies on them, how they are perturbed, and which panels show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain.core.contracts import Arrangement, InputFacts, Modality
from lightning_explain.core.panels import FeaturesPanel, Panel

if TYPE_CHECKING:
    Reshape: TypeAlias = None | str | tuple[int, int] | Callable[[Tensor], Tensor]
else:
    Reshape = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.
"""How a layer's map is rearranged to ``(N, C, h, w)``.

- ``None``: inferred from the map's shape and the layer.
- ``"channels_first"``: the map already is ``(N, C, h, w)``.
- ``"channels_last"``: the map is ``(N, h, w, C)``.
- ``"tokens"``: the map is ``(N, T, C)``: patches of a square grid, possibly after a class token
  and registers.
- ``(h, w)``: h rows and w columns of patches, after up to 6 other tokens (class token, registers).
- ``"none"``: the map has no place on the image.
- A function ``(N, ...) -> (N, C, h, w)``, from Python only.
"""

Normalization: TypeAlias = "tuple[float | Sequence[float], float | Sequence[float]]"
"""``(mean, std)`` of the images, each one number or one number per channel."""

CHANNELS = "channels"
"""The kind of panel that shows each channel of a layer's map, such as each head of attention, as a small map."""
KINDS = ("original_image", "heat_map", "blended_heat_map", "masked_image", "alpha_scaling", CHANNELS)
"""Captum's ``method`` argument of ``visualize_image_attr``, and ``channels``."""
LAYOUTS = ("channels_first", "channels_last", "tokens", "none")
_WAYS = (
    f"give None, {', '.join(map(repr, LAYOUTS))}, a pair (h, w) of patches, or (from Python) a function "
    "(N, ...) -> (N, C, h, w)"
)
# The fewest pixels a side of a small map.
_TILE = 4
# The most tokens that are no patches: a class token, a distillation token, registers.
_OTHER_TOKENS = 6
# How many there are in networks that have more than one.
_SEVERAL = (2, 4, 5)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_COLORS, _OF_BANDS = 3, (2.0, 98.0)
"""The channels of a color image, and the percentiles of a band that are black and white."""
_FIRST = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, *_POOLS)


def upsample(layer_map: Tensor, size: tuple[int, ...]) -> Tensor:
    """A layer's map ``(N, C, h, w)``, resampled bilinearly to ``(N, C, *size)``.

    Equals Captum's ``LayerAttribution.interpolate(map, size, "bilinear")``.
    """
    return F.interpolate(layer_map, size, mode="bilinear")


@dataclass(frozen=True)
class Pixels(Modality):
    """Base class of inputs ``(N, C, H, W)``, whose units are pixels, with the channels summed."""

    def units(self, x: Tensor) -> torch.Size:
        """``(N, 1, H, W)``."""
        return x[:, :1].shape

    def pixels(self, x: Tensor) -> tuple[int, int]:
        """``(H, W)``."""
        return x.shape[2], x.shape[3]

    def inside(self, masks: Tensor, x: Tensor) -> Tensor | None:
        """Masks ``(N, H, W)`` as ``(N, 1, H, W)``."""
        return masks[:, None] if masks.shape == (len(x), *self.pixels(x)) else None

    def place(self, value: Tensor, x: Tensor, how: Arrangement) -> Tensor | None:
        """A layer's activation, gradient or map as ``(N, C, h, w)``; ``None`` if it has no place on the image."""
        grid = _grid(value, self.pixels(x), how)
        return None if grid is None or 0 in self.pixels(grid) else grid

    def onto(self, placed: Tensor, x: Tensor) -> Tensor:
        """A layer's map ``(N, C, h, w)`` as ``(N, 1, H, W)``: summed over its channels, and upsampled."""
        return upsample(self.by_unit(placed), self.pixels(x))

    def region(self, x: Tensor, size: int | None, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """A square ``(N, 1, H, W)`` of ``size`` pixels a side; by default a quarter of the shorter side of the image."""
        pixels = self.pixels(x)
        if size is not None and size > min(pixels):
            raise ValueError(f"needs squares no larger than the shorter side of the images, {min(pixels)} pixels")
        return block(x, pixels, (size or max(1, min(pixels) // 4),) * 2, draw)

    def blurred(self, x: Tensor) -> Tensor:
        """Blurred by a Gaussian whose standard deviation is a sixteenth of the longer side."""
        # It imports the compiler of torch, which takes as long as the rest of this package.
        from torchvision.transforms.v2.functional import gaussian_blur

        sigma = max(self.pixels(x)) / 16
        # A reflected border allows kernels that are no wider than the image.
        width = min(int(4 * sigma) * 2 + 1, 2 * min(self.pixels(x)) - 1)
        blurred: Tensor = gaussian_blur(x, [width, width], [sigma, sigma])
        return blurred


@dataclass(frozen=True)
class Image(Pixels):
    """An image ``(N, C, H, W)``: its units are pixels, with the channels summed.

    Args:
        bands: The channels, from 0, that pictures show as red, green and blue, as of satellites, or the one that they show in gray. Each
            goes from the 2nd to the 98th percentile of the sample. Default: three channels as they are; any other number as their mean.
        band_names: A name for each channel. A page then shows how much of each map lies on each channel; without names, if there
            are more than three.

    Raises:
        ValueError: If there is no such channel, or another number of names than of channels.

    Example:
        >>> from lightning_explain.modalities import Image
        >>> Image().units(torch.zeros(2, 3, 8, 8))
        torch.Size([2, 1, 8, 8])
        >>> Image(bands=(3, 2, 1)).displayed(torch.rand(2, 13, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS

    bands: Any = None
    band_names: Any = None

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """With bands and names that are channels of the input."""
        channels = x.shape[1] if x.ndim == 4 else 0
        if self.bands is not None:
            given = tuple(self.bands)
            if len(given) not in (1, 3) or not all(type(band) is int and 0 <= band < channels for band in given):
                raise ValueError(f"Image(bands={self.bands!r}); give one or three of the {channels} channels, from 0.")
        if self.band_names is not None and len(self.band_names) != channels:
            raise ValueError(
                f"Image has {len(self.band_names)} band_names for {tuple(x.shape)}; give a name for each channel."
            )
        names = None if self.band_names is None else tuple(map(str, self.band_names))
        return replace(self, bands=None if self.bands is None else tuple(self.bands), band_names=names)

    def displayed(self, x: Tensor) -> Tensor:
        """The bands, each stretched."""
        if self.bands is None:
            return x
        chosen = x[:, list(self.bands)].float()
        found: Tensor = stretched(chosen.flatten(0, 1), _OF_BANDS).reshape(chosen.shape)
        return found

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """One column for each pair that is asked for; of several bands, how much of the map lies on each.

        Where channels are asked for, the last of ``found`` has them: ``(N, C, h, w)`` at any resolution.
        """
        small = tiled(found[-1], self.pixels(inputs[0])) if any(kind == CHANNELS for kind, _ in asked) else found[0]
        maps = ((kind, sign, small if kind == CHANNELS else found[0]) for kind, sign in asked)
        shown = tuple(Panel(_title(kind, sign), kind, values, sign) for kind, sign, values in maps)
        channels = found[0].shape[1]
        if inputs[0].shape[1] != channels or (self.band_names is None and channels <= _COLORS):
            return shown
        sizes = found[0].double().abs().flatten(2).sum(2)
        shares = sizes / sizes.sum(1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
        names = self.band_names or [f"band {i}" for i in range(channels)]
        return (*shown, FeaturesPanel("bands", "importance", shares, names=names, measure="share of |a|"))


def tiled(channels: Tensor, size: tuple[int, int]) -> Tensor:
    """The channels of a map ``(N, C, h, w)``, each small, in rows on a picture ``(N, 1, H, W)`` of this size; as many as fit."""
    across = min(math.ceil(math.sqrt(channels.shape[1])), max(1, size[1] // _TILE))
    down = min(math.ceil(channels.shape[1] / across), max(1, size[0] // _TILE))
    height, width = size[0] // down, size[1] // across
    # A line between them stays free.
    small = F.pad(upsample(channels[:, : across * down], (height - 1, width - 1)), (0, 1, 0, 1))
    small = torch.cat([small, small.new_zeros(len(small), across * down - small.shape[1], height, width)], 1)
    laid = small.unflatten(1, (down, across)).transpose(2, 3).reshape(len(small), 1, down * height, across * width)
    return F.pad(laid, (0, size[1] - across * width, 0, size[0] - down * height))


def stretched(x: Tensor, percentiles: tuple[float, float] = (0.5, 99.5)) -> Tensor:
    """Each sample of ``(N, ...)`` in [0, 1]: the lower percentile of its values is 0, the upper one 1; what is not finite is 0."""
    flat = x.flatten(1).nan_to_num(0.0, 0.0, 0.0)
    low, high = (torch.from_numpy(ends).to(flat)[:, None] for ends in np.percentile(flat.numpy(), percentiles, axis=1))
    return ((flat - low) / (high - low).clamp(min=torch.finfo(flat.dtype).tiny)).clamp(0, 1).reshape(x.shape)


def _title(kind: str, sign: str) -> str:
    words = kind if kind == "original_image" else f"{kind} ({sign})"
    return words.replace("_", " ")


def block(x: Tensor, grid: tuple[int, ...], sizes: tuple[int, ...], draw: Callable[[Tensor], Tensor]) -> Tensor:
    """1 in a random block of units and 0 elsewhere, ``(N, 1, *grid)``; ``sizes``: how long it is along each axis."""
    corner = draw(x.new_empty(len(x), len(grid)))
    inside = x.new_ones(len(x), 1, *(1,) * len(grid), dtype=torch.bool)
    for axis, (length, size) in enumerate(zip(grid, sizes, strict=True)):
        first = (corner[:, axis : axis + 1].double() * (length - size + 1)).long()
        at = torch.arange(length, device=x.device)
        within = (at >= first) & (at < first + size)
        inside = inside & within.reshape(len(x), 1, *(length if i == axis else 1 for i in range(len(grid))))
    return inside.to(x.dtype)


def check_reshape(owner: str, value: Any) -> None:
    """Checks that the argument ``reshape`` of the class ``owner`` is one of the forms of ``Reshape``.

    Raises:
        ValueError: If it is not.
    """
    pair = isinstance(value, tuple) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)
    if not (value is None or pair or callable(value) or (isinstance(value, str) and value in LAYOUTS)):
        raise ValueError(f"{owner}(reshape={value!r}); {_WAYS}.")


def _grid(value: Tensor, image: tuple[int, int], how: Arrangement) -> Tensor | None:
    reshape = how.reshape
    if callable(reshape):
        return _called(reshape, value)
    if isinstance(reshape, tuple):
        return _sized(value, reshape, how)
    if value.ndim == 3 and reshape in (None, "tokens") and (found := from_tokens(value, image, how.model)) is not None:
        return found
    if value.ndim == 4 and reshape in (None, "channels_first", "channels_last"):
        last = _is_channels_last(value, image, how) if reshape is None else reshape == "channels_last"
        return value.movedim(-1, 1) if last else value
    if reshape in (None, "none"):
        return None
    raise _unfit(reshape, value)


def _called(reshape: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    grid = reshape(value)
    if not isinstance(grid, Tensor) or grid.ndim != 4 or len(grid) != len(value):
        came = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
        raise ValueError(
            f"reshape turned {tuple(value.shape)} into {came}; give a function that returns ({len(value)}, C, h, w)."
        )
    return grid


def _sized(value: Tensor, size: tuple[int, int], how: Arrangement) -> Tensor:
    if value.ndim == 3 and 0 <= value.shape[1] - size[0] * size[1] <= _OTHER_TOKENS:
        return _from_tokens(value, size)
    last, first = (value.ndim == 4 and value.shape[i : i + 2] == size for i in (1, 2))
    if not last and not first:
        raise _unfit(size, value)
    return value.movedim(-1, 1) if last and (not first or _layout(how, value.shape) == "channels_last") else value


def _unfit(reshape: object, value: Tensor) -> ValueError:
    return ValueError(f"reshape={reshape!r} does not fit the layer's {tuple(value.shape)}; {_WAYS}.")


def from_tokens(value: Tensor, grid: tuple[int, ...], model: nn.Module | None) -> Tensor | None:
    """Tokens ``(N, T, C)`` of patches of an image, or of a volume, as ``(N, C, h, w)`` or ``(N, C, d, h, w)``; ``None`` if none fit."""
    size = _patches(value.shape[1], grid, model)
    return None if size is None else _from_tokens(value, size)


def _from_tokens(value: Tensor, size: tuple[int, ...]) -> Tensor:
    """The last h*w tokens of ``(N, T, C)`` as ``(N, C, h, w)``; class tokens and registers come before the patches."""
    patches = value[:, value.shape[1] - math.prod(size) :]
    return patches.transpose(1, 2).reshape(len(value), value.shape[2], *size)


def _patches(tokens: int, image: tuple[int, ...], model: nn.Module | None) -> tuple[int, ...] | None:
    """The grid of patches ``(h, w)`` or ``(d, h, w)`` for a number of tokens, with or without a class token; ``None`` if none fits.

    Tried in this order: patches that a convolution of the model cuts, square patches that cover the image exactly, square
    patches that leave or exceed a border, any square grid; the first two of these after two class tokens, or four registers with
    or without a class token.
    """
    counts = [count for count in (tokens - 1, tokens) if count > 1]
    sure = [*_cut(image, model), *_coverings(image)]
    grids = [*sure, *_coverings(image, exact=False)]
    squares = [(math.isqrt(count),) * 2 for count in counts] if len(image) == 2 else []
    several = [tokens - others for others in _SEVERAL]
    found = [grid for grid in (*grids, *squares) if math.prod(grid) in counts]
    return next(iter([*found, *(grid for grid in sure if math.prod(grid) in several)]), None)


def _cut(image: tuple[int, ...], model: nn.Module | None) -> Iterator[tuple[int, ...]]:
    """The grid ``(h, w)`` that each convolution with a stride makes of the image; patches may overlap, and need not be square."""
    for conv in () if model is None else model.modules():
        if isinstance(conv, (nn.Conv2d, nn.Conv3d)) and len(conv.stride) == len(image) and max(conv.stride) > 1:
            border = (0,) * len(image) if isinstance(conv.padding, str) else conv.padding
            sides = zip(image, conv.kernel_size, conv.stride, border, conv.dilation, strict=True)
            yield tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)


def _coverings(image: tuple[int, ...], exact: bool = True) -> list[tuple[int, ...]]:
    """The grid ``(h, w)`` for each size of a square patch; ``exact``: only sizes that divide the image's sides."""
    sizes = range(1, max(image) + 1)
    if exact:
        return [tuple(n // p for n in image) for p in sizes if not any(n % p for n in image)]
    return [grid for p in sizes for grid in (tuple(n // p for n in image), tuple(-(-n // p) for n in image))]


def _is_channels_last(value: Tensor, image: tuple[int, int], how: Arrangement) -> bool:
    a, b, c = value.shape[1:]
    declared = _layout(how, value.shape)
    first, last = (is_grid(pair, image) for pair in ((b, c), (a, b)))
    return last and declared != "channels_first" and (not first or declared == "channels_last")


def is_grid(sizes: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether rows and columns of a map are in proportion to those of an image, or those of patches that cover it; or of a volume."""
    if len(sizes) != len(image):
        return False
    alike = all(size * image[0] == sizes[0] * length for size, length in zip(sizes, image, strict=True))
    return alike or tuple(sizes) in _coverings(image, exact=False)


def _layout(how: Arrangement, shape: torch.Size) -> str | None:
    """The layout that a layer's modules declare: the first one for the layer's input, the last for its output."""
    modules = [] if how.layer is None else list(how.layer.modules())
    declared = [(module, found) for module in modules if (found := _declared_layout(module, shape, how.of_input))]
    # Linear layers count only if nothing else declares a layout: squeeze-and-excitation has them beside convolutions.
    sure = [found for module, found in declared if not isinstance(module, nn.Linear)] or [f for _, f in declared]
    return sure[0 if how.of_input else -1] if sure else None


def _declared_layout(module: nn.Module, shape: torch.Size, of_input: bool) -> str | None:
    dims, channels = getattr(module, "dims", None), shape[3]
    if isinstance(dims, (list, tuple)) and sorted(dims) == [0, 1, 2, 3]:
        # torchvision's Permute, which Swin and ConvNeXt use to change between the two layouts.
        return "channels_first" if (list(dims) == [0, 3, 1, 2]) != of_input else "channels_last"
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        # One with other channels makes something else, such as the patches of a transformer.
        return "channels_first" if (module.in_channels if of_input else module.out_channels) == shape[1] else None
    if isinstance(module, _FIRST):
        return "channels_first"
    normalized = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and tuple(module.normalized_shape) == (channels,)
    linear = isinstance(module, nn.Linear) and channels == (module.in_features if of_input else module.out_features)
    return "channels_last" if normalized or linear else None
