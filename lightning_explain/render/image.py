"""Attribution maps and inputs in, panels out: float tensors to ``uint8`` tensors, for the whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_explain.core.naming import nearest
from lightning_explain.modalities.image import CHANNELS, KINDS, Normalization
from lightning_explain.render.color import SIGNS, ColorMap, sign_table

HEAT_KINDS = ("heat_map", "blended_heat_map", CHANNELS)
"""The kinds of panels that use a color map."""

_UNSIGNED_KINDS = ("masked_image", "alpha_scaling")
_RANGE_TOLERANCE = 0.05
_CONSTANT_TOLERANCE = 1e-6
_OPACITY, _HUE = 0.85, 0.25

_SELECT: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda x: x,
    "positive": lambda x: x.clamp(min=0),
    "negative": lambda x: (-x).clamp(min=0),
    "absolute_value": torch.abs,
}


def check_panel(kind: str, sign: str) -> None:
    """Checks that a panel of this kind can be drawn with this sign.

    Raises:
        ValueError: If kind or sign is unknown, or the sign is ``"all"`` and the kind cannot show both signs.
    """
    for what, word, known in (("kind", kind, KINDS), ("sign", sign, SIGNS)):
        if word not in known:
            raise ValueError(f"There is no panel {what} {word!r}: {nearest(str(word), known)}")
    if kind in _UNSIGNED_KINDS and sign == "all":
        raise ValueError(
            f"panel kind {kind!r} cannot show both signs at once (sign 'all'); "
            "give it the sign 'positive', 'negative' or 'absolute_value'."
        )


def normalize(attribution: Tensor, sign: str, outlier_perc: float = 2.0) -> Tensor:
    """Maps in, maps scaled for display out: each sample is scaled by itself.

    Channels are summed, the sign is selected, and the map is divided by the value above which the largest pixels make
    up ``outlier_perc`` percent of the sample's total; larger values are clipped. The result equals Captum's
    ``_normalize_attr``, with three exceptions: a map without contrast (all pixels equal) becomes zero, non-finite
    values count as zero, and a sample whose scale is zero is not an error.

    Args:
        attribution: ``(N, C, H, W)`` or ``(N, H, W)``.
        sign: ``"all"``, ``"positive"``, ``"negative"`` or ``"absolute_value"``.
        outlier_perc: Share of the total that may be clipped, in percent.

    Returns:
        ``(N, H, W)`` float32, in [-1, 1] for ``"all"`` and in [0, 1] for the others.
    """
    values = torch.nan_to_num(attribution.detach().double(), nan=0.0, posinf=0.0, neginf=0.0)
    summed = values.sum(1) if values.ndim == 4 else values
    selected = _SELECT[sign](summed)
    scale = _threshold(selected.abs().flatten(1), 100.0 - outlier_perc).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = (selected / scale[:, None, None]).clamp(-1, 1)
    low, high = summed.amin((1, 2)), summed.amax((1, 2))
    has_contrast = high - low > _CONSTANT_TOLERANCE * summed.abs().amax((1, 2))
    return (scaled * has_contrast[:, None, None]).float()


def _threshold(magnitudes: Tensor, percentile: float) -> Tensor:
    """For each sample of ``(N, P)`` the value up to which the values sum to ``percentile`` percent, ``(N,)``."""
    # NumPy sorts float32 ten times as fast as torch sorts float64.
    ordered = torch.from_numpy(np.sort(magnitudes.float().numpy(), axis=1)).double()
    sums = ordered.cumsum(1)
    level = sums[:, -1:] * 0.01 * percentile
    below = (sums < level).sum(1, keepdim=True)
    # Clamped, because rounding can put the level of 100 percent just above the total.
    return ordered.gather(1, below.clamp(max=ordered.shape[1] - 1))[:, 0]


def to_display(inputs: Tensor, normalization: Normalization | None = None) -> Tensor:
    """Model inputs in, RGB images out.

    Three channels are red, green and blue; any other number of channels is shown as their mean, in gray. Without
    ``normalization``, bytes are divided by 255, and if any value in the batch lies outside [0, 1], each sample is
    stretched between its smallest and largest value.

    Args:
        inputs: ``(N, C, H, W)``.
        normalization: ``(mean, std)`` to undo: ``inputs * std + mean``.

    Returns:
        ``(N, 3, H, W)`` float32 in [0, 1].

    Raises:
        ValueError: If mean or std have neither one value nor one per channel.
    """
    values = torch.nan_to_num(inputs.detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
    if normalization is not None:
        mean, std = (_per_channel(v, values) for v in normalization)
        values = values * std + mean
    elif inputs.dtype == torch.uint8:
        values = values / 255
    elif values.amin() < -_RANGE_TOLERANCE or values.amax() > 1 + _RANGE_TOLERANCE:
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
        values = (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    gray_or_rgb = values if values.shape[1] == 3 else values.mean(1, keepdim=True)
    return gray_or_rgb.clamp(0, 1).expand(-1, 3, -1, -1)


def _per_channel(value: float | Sequence[float], images: Tensor) -> Tensor:
    numbers = torch.as_tensor(value, dtype=images.dtype, device=images.device).flatten()
    channels = images.shape[1]
    if len(numbers) not in (1, channels):
        raise ValueError(
            f"normalization has {len(numbers)} values for images of {channels} channels; "
            f"give (mean, std) with one value or {channels} values each."
        )
    return numbers.view(1, -1, 1, 1)


def colorize(normalized_map: Tensor, sign: str, cmap: ColorMap | None = None) -> Tensor:
    """Normalized maps ``(N, H, W)`` in, their colors ``(N, 3, H, W)``, float32 in [0, 1], out.

    The color map spans [-1, 1] for sign ``"all"`` and [0, 1] for the others, as in Captum.
    """
    return sign_table(sign, cmap)[_places(normalized_map, sign).long()].permute(0, 3, 1, 2)


def _places(normalized_map: Tensor, sign: str) -> Tensor:
    """Where the values stand in a table of 256 colors, uint8."""
    position = normalized_map * 128 + 128 if sign == "all" else normalized_map * 256
    return position.clamp(0, 255).to(torch.uint8)


def panel(
    kind: str,
    sign: str,
    inputs_display: Tensor,
    normalized_map: Tensor,
    cmap: ColorMap | None = None,
    alpha: float = 0.9,
) -> Tensor:
    """One panel per sample, of a kind named as in Captum's ``visualize_image_attr``.

    Args:
        kind: ``original_image``; ``heat_map``; ``blended_heat_map``: the heat map over the image, the more opaque the stronger it is;
            ``masked_image``: the image times the map; ``alpha_scaling``: the image on white, with the map as its
            opacity; ``channels``: a heat map of the channels side by side.
        sign: The sign the map was normalized with.
        inputs_display: ``(N, 3, H, W)`` in [0, 1], from ``to_display``.
        normalized_map: ``(N, H, W)``, from ``normalize``.
        cmap: Colors of the heat map; ``None`` for the default for that sign.
        alpha: Opacity of the heat map in ``blended_heat_map`` where the map is strongest.

    Returns:
        ``(N, 3, H, W)`` uint8.

    Raises:
        ValueError: If kind or sign is unknown, or the sign is ``"all"`` and the kind cannot show both signs.
    """
    check_panel(kind, sign)
    image, weight = inputs_display, normalized_map.unsqueeze(1)
    if kind == "original_image":
        return to_bytes(image)
    if kind == "masked_image":
        return to_bytes(image * weight)
    if kind == "alpha_scaling":
        return to_bytes(image * weight + (1 - weight))
    colors = sign_table(sign, cmap)
    if kind in ("heat_map", CHANNELS):
        return _looked_up(to_bytes(colors), _places(normalized_map, sign))
    return _overlay(image, _places(normalized_map, sign), sign, colors, alpha)


def smooth(normalized_map: Tensor) -> Tensor:
    """Maps ``(N, H, W)``, or of volumes, smoothed over a 27th of their longest side, so that it is seen where a speckled one lies.

    Each place has the mean absolute value around it, over that of the strongest place, to the power of 1.5, so that noise all over the
    image stays faint; and the sign that prevails there.
    """
    axes, deviation = range(1, normalized_map.ndim), max(normalized_map.shape[1:]) / 27
    strength, balance = normalized_map.abs(), normalized_map
    for axis in axes:
        weights = _gaussian(normalized_map.shape[axis], deviation)
        strength, balance = ((values.movedim(axis, -1) @ weights.T).movedim(-1, axis) for values in (strength, balance))
    most = strength.amax(tuple(axes), keepdim=True).clamp(min=torch.finfo(strength.dtype).tiny)
    return (strength / most).pow(1.5).copysign(balance)


def _gaussian(size: int, deviation: float) -> Tensor:
    """The weights of all places in the mean around each, ``(size, size)``."""
    places = torch.arange(size, dtype=torch.float32) / deviation
    weights = (-((places[:, None] - places) ** 2) / 2).exp()
    return weights / weights.sum(1, keepdim=True)


def _overlay(image: Tensor, places: Tensor, sign: str, colors: Tensor, alpha: float) -> Tensor:
    """The map over the gray image: transparent where it is zero, so that the image stays what it is. Bytes."""
    values = torch.linspace(0, 1, 256)
    if sign == "all":
        values = torch.cat([torch.linspace(-1, 0, 129), torch.linspace(0, 1, 128)[1:]])
    # Weaker places have the color of their sign, rather than one near white: the opacity says how weak they are.
    strong = colors[_places(values.abs().pow(_HUE).copysign(values), sign).long()]
    opacity = (alpha * values.abs().pow(_OPACITY))[:, None]
    added = _looked_up(255 * opacity * strong + 0.5, places)
    kept = _looked_up(255 * (1 - opacity), places)
    return added.add_(kept.mul_(image.mean(1, keepdim=True))).to(torch.uint8)


def _looked_up(table: Tensor, places: Tensor) -> Tensor:
    """Entries of a table ``(256, C)`` at places ``(N, H, W)``: ``(N, C, H, W)``."""
    # NumPy's lookup takes a fifth of the time of torch's.
    return torch.from_numpy(np.take(table.numpy(), places.numpy(), axis=0)).permute(0, 3, 1, 2)


def to_bytes(images: Tensor) -> Tensor:
    """Colors in [0, 1] as uint8 in 0..255, of the same shape."""
    return (images * 255).round().to(torch.uint8)
