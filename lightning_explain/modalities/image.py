"""Attribution maps as tensors: from a layer's own shape to input space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

Reshape: TypeAlias = "None | str | tuple[int, int] | Callable[[Tensor], Tensor]"
"""How a layer's map becomes ``(N, C, h, w)``.

``None``: as its shape and the layer say; ``"channels_first"``: it is; ``"channels_last"``: ``(N, h, w, C)``; ``"tokens"``:
``(N, T, C)``, a class token or none before the patches; ``(h, w)``: so many patches, after up to 6 other tokens; ``"none"``: it
has no place on the image; or a function of the map (from Python only).
"""

LAYOUTS = ("channels_first", "channels_last", "tokens", "none")
_WAYS = (
    f"allowed: None, {', '.join(map(repr, LAYOUTS))}, a pair (h, w) of patches, or (from Python) a function "
    "(N, ...) -> (N, C, h, w)"
)
# A class token, one of distillation, registers.
_OTHER_TOKENS = 6
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_FIRST = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, *_POOLS)


def upsample(layer_map: Tensor, size: tuple[int, ...]) -> Tensor:
    """A layer's map ``(N, C, h, w)`` at another resolution ``(N, C, *size)``, bilinear.

    The same as Captum's ``LayerAttribution.interpolate(map, size, "bilinear")``.
    """
    return F.interpolate(layer_map, size, mode="bilinear")


def to_input_space(found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A method's map, broadcastable to the inputs, or ``None`` if the map has no place in input space.

    A map shaped like the inputs stays as it is. A layer's map is arranged as ``(N, C, h, w)``, as its shape says, summed over its
    channels and upsampled to the one image input, ``(N, 1, H, W)``.
    """
    arranged = arrange(found, inputs)
    return None if arranged is None else onto(arranged, inputs)


def onto(arranged: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What :func:`arrange` returned, broadcastable to the inputs: a layer's map is summed over its channels and upsampled."""
    if _like(arranged, inputs):
        return arranged
    return (upsample(arranged[0].sum(1, keepdim=True), tuple(inputs[0].shape[2:])),)


def arrange(
    found: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    reshape: Reshape = None,
    layer: nn.Module | None = None,
    of_input: bool = False,
) -> tuple[Tensor, ...] | None:
    """A method's map with its pixels in the last two dimensions, or ``None`` if it has no place on the one image input.

    Args:
        found: What the method returned; itself where it is shaped like the inputs or is ``(N, C, h, w)`` already.
        inputs: The model's.
        reshape: How to read the map.
        layer: Whose map it is; it decides where the shape does not.
        of_input: Whether it is the map of what goes into the layer.

    Returns:
        ``found`` itself, or a layer's map ``(N, 1, h, w)``, summed over its channels.

    Raises:
        ValueError: If ``reshape`` does not fit the map.
    """
    if reshape is None and _like(found, inputs):
        return found
    if len(found) != 1 or len(inputs) != 1 or inputs[0].ndim != 4:
        return None
    grid = grid_of(found[0], image_size(inputs), reshape, layer, of_input)
    if grid is None or min(grid.shape[2:]) == 0:
        return None
    return found if grid is found[0] else (grid.sum(1, keepdim=True),)


def _like(found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> bool:
    return len(found) == len(inputs) and all(m.shape == x.shape for m, x in zip(found, inputs, strict=True))


def image_size(inputs: tuple[Tensor, ...]) -> tuple[int, int] | None:
    """``(H, W)`` of the one image input; ``None`` for other inputs."""
    return (inputs[0].shape[2], inputs[0].shape[3]) if len(inputs) == 1 and inputs[0].ndim == 4 else None


def check_reshape(owner: str, value: Any) -> None:
    """Refuses what is no way to arrange a map.

    Raises:
        ValueError: If it is none.
    """
    pair = isinstance(value, tuple) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)
    if not (value is None or pair or callable(value) or (isinstance(value, str) and value in LAYOUTS)):
        raise ValueError(f"{owner}(reshape={value!r}); {_WAYS}.")


def grid_of(
    value: Tensor,
    image: tuple[int, int] | None,
    reshape: Reshape = None,
    layer: nn.Module | None = None,
    of_input: bool = False,
) -> Tensor | None:
    """A layer's activation, gradient or map as ``(N, C, h, w)``; ``None`` if it has no place on an image.

    Args:
        value: ``(N, ...)``; returned as it is if it is ``(N, C, h, w)`` already.
        image: ``(H, W)`` of the image input, if there is one.
        reshape: How to read it.
        layer: Whose it is; it decides where the shape does not.
        of_input: Whether it is what goes into the layer.

    Raises:
        ValueError: If ``reshape`` does not fit.
    """
    if callable(reshape):
        return _called(reshape, value)
    if reshape == "none" or (reshape is None and value.ndim not in (3, 4)):
        return None
    if isinstance(reshape, str):
        return _named(value, image, reshape)
    if isinstance(reshape, tuple):
        return _sized(value, reshape, layer, of_input)
    if value.ndim == 3:
        size = _patches(value.shape[1], image) if image else None
        return None if size is None else _from_tokens(value, size)
    return _last_to_front(value) if image and _is_channels_last(value, image, layer, of_input) else value


def _called(reshape: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    grid = reshape(value)
    if not isinstance(grid, Tensor) or grid.ndim != 4 or len(grid) != len(value):
        came = tuple(grid.shape) if isinstance(grid, Tensor) else type(grid).__name__
        raise ValueError(f"reshape turned {tuple(value.shape)} into {came}; it must be ({len(value)}, C, h, w).")
    return grid


def _named(value: Tensor, image: tuple[int, int] | None, layout: str) -> Tensor:
    if layout == "channels_first" and value.ndim == 4:
        return value
    if layout == "channels_last" and value.ndim == 4:
        return _last_to_front(value)
    size = _patches(value.shape[1], image) if layout == "tokens" and value.ndim == 3 else None
    if size is None:
        raise _unfit(layout, value)
    return _from_tokens(value, size)


def _sized(value: Tensor, size: tuple[int, int], layer: nn.Module | None, of_input: bool) -> Tensor:
    if value.ndim == 3 and 0 <= value.shape[1] - size[0] * size[1] <= _OTHER_TOKENS:
        return _from_tokens(value, size)
    last, first = (value.ndim == 4 and value.shape[i : i + 2] == size for i in (1, 2))
    if not last and not first:
        raise _unfit(size, value)
    both = "channels_first" if layer is None else _layout(layer, value.shape[3], of_input)
    return _last_to_front(value) if last and (not first or both == "channels_last") else value


def _unfit(reshape: object, value: Tensor) -> ValueError:
    return ValueError(f"reshape={reshape!r} does not fit the layer's {tuple(value.shape)}; {_WAYS}.")


def _last_to_front(value: Tensor) -> Tensor:
    return value.movedim(-1, 1)


def _from_tokens(value: Tensor, size: tuple[int, int]) -> Tensor:
    """The last h*w of the tokens ``(N, T, C)`` as ``(N, C, h, w)``: class tokens and registers come first."""
    patches = value[:, value.shape[1] - size[0] * size[1] :]
    return patches.transpose(1, 2).reshape(len(value), value.shape[2], *size)


def _patches(tokens: int, image: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of the patches among the tokens, with or without a class token; ``None`` if they are none.

    Equal patches that cover the image come first, then those that leave or exceed a border, then any square.
    """
    counts = [count for count in (tokens - 1, tokens) if count > 1]
    grids = [*_coverings(image), *_coverings(image, exact=False)] if image else []
    squares = [(math.isqrt(count),) * 2 for count in counts]
    return next((grid for grid in (*grids, *squares) if grid[0] * grid[1] in counts), None)


def _coverings(image: tuple[int, int], exact: bool = True) -> list[tuple[int, int]]:
    """``(h, w)`` for each size of a square patch."""
    height, width = image
    sizes = range(1, max(image) + 1)
    if exact:
        return [(height // p, width // p) for p in sizes if height % p == width % p == 0]
    return [grid for p in sizes for grid in ((height // p, width // p), (-(-height // p), -(-width // p)))]


def _is_channels_last(value: Tensor, image: tuple[int, int], layer: nn.Module | None, of_input: bool) -> bool:
    a, b, c = value.shape[1:]
    declared = None if layer is None else _layout(layer, c, of_input)
    first, last = (_is_grid(pair, image) for pair in ((b, c), (a, b)))
    return last and declared != "channels_first" and (not first or declared == "channels_last")


def _is_grid(pair: tuple[int, int], image: tuple[int, int]) -> bool:
    return pair[0] * image[1] == pair[1] * image[0] or pair in _coverings(image, exact=False)


def _layout(layer: nn.Module, channels: int, of_input: bool) -> str | None:
    """The layout that the modules in a layer take or give, at the end that is looked at."""
    declared = [
        (module, found) for module in layer.modules() if (found := _declared_layout(module, channels, of_input))
    ]
    # Squeeze and excitation has linear layers too, beside convolutions.
    sure = [found for module, found in declared if not isinstance(module, nn.Linear)] or [
        found for _, found in declared
    ]
    return sure[0 if of_input else -1] if sure else None


def _declared_layout(module: nn.Module, channels: int, of_input: bool) -> str | None:
    dims = getattr(module, "dims", None)
    if isinstance(dims, (list, tuple)) and sorted(dims) == [0, 1, 2, 3]:
        # torchvision's Permute, which Swin and ConvNeXt put between the two layouts.
        return "channels_first" if (list(dims) == [0, 3, 1, 2]) != of_input else "channels_last"
    if isinstance(module, _FIRST):
        return "channels_first"
    normalized = isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == (channels,)
    linear = isinstance(module, nn.Linear) and channels == (module.in_features if of_input else module.out_features)
    return "channels_last" if normalized or linear else None
