"""The panels of several inputs in; how much of a map lies on each, and all images side by side on one scale, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_explain.core.panels import Panel
from lightning_explain.core.probe import flat
from lightning_explain.modalities.image import KINDS
from lightning_explain.render.drawn import DrawnInput

_GAP = 16
"""The gap between two images is this part of the widest one."""


def sizes_of(panels: Sequence[tuple[Panel, int]]) -> dict[int, Tensor]:
    """The sum of the absolute map of each sample ``(N,)`` on each input, by the place of the input."""
    sizes = dict[int, Tensor]()
    for panel, i in panels:
        values = panel.values.double().nan_to_num(0.0, 0.0, 0.0)
        on_image = panel.kind in KINDS
        sizes.setdefault(i, flat(values.sum(1) if on_image else values).abs().sum(1))
    return sizes


def shares(panels: Sequence[tuple[Panel, int]], inputs: Sequence[DrawnInput]) -> dict[int, float]:
    """The mean share of the absolute map on each of several inputs, by its place among ``inputs``; empty if it lies on one alone."""
    sizes = sizes_of(panels)
    if len(inputs) < 2 or len(sizes) < 2:
        return {}
    found = torch.stack(list(sizes.values()), 1)
    known = found.sum(1) > 0
    means = (found[known] / found[known].sum(1, keepdim=True)).mean(0) if bool(known.any()) else found.sum(0)
    return dict(zip(sizes, means.tolist(), strict=True))


def images_of(inputs: Sequence[DrawnInput]) -> list[int]:
    """The places of the inputs that are drawn side by side: all images, if there are several."""
    found = [i for i, drawn in enumerate(inputs) if drawn.images is not None]
    return found if len(found) > 1 else []


def joined_images(inputs: Sequence[DrawnInput]) -> list[DrawnInput]:
    """The inputs, of which the first image shows all images."""
    places = images_of(inputs)
    if not places:
        return list(inputs)
    parts = [inputs[i] for i in places]
    images = _side_by_side([drawn.images for drawn in parts if drawn.images is not None], 1.0)
    masks = None
    if any(drawn.masks is not None for drawn in parts):
        empty = [torch.zeros_like(drawn.images[:, 0]) for drawn in parts if drawn.images is not None]
        regions = [e if drawn.masks is None else drawn.masks.to(e) for drawn, e in zip(parts, empty, strict=True)]
        masks = _side_by_side([part[:, None] for part in regions], 0.0)[:, 0].bool()
    whole = replace(parts[0], images=images, size=(images.shape[2], images.shape[3]), masks=masks)
    return [whole if i == places[0] else drawn for i, drawn in enumerate(inputs)]


def joined_panels(panels: Sequence[tuple[Panel, int]], inputs: Sequence[DrawnInput]) -> list[tuple[Panel, int]]:
    """The panels of a method, of which those of the first image show all images; zeros where it has no map."""
    places = images_of(inputs)
    if not any(i in places for _, i in panels):
        return list(panels)
    by_kind: dict[tuple[str, str], dict[int, Panel]] = {}
    for panel, i in panels:
        if i in places and panel.kind in KINDS:
            by_kind.setdefault((panel.kind, panel.sign), {})[i] = panel
    found = [(_joined(own, places, inputs), places[0]) for own in by_kind.values()]
    return [*found, *((panel, i) for panel, i in panels if i not in places or panel.kind not in KINDS)]


def _joined(own: Mapping[int, Panel], places: Sequence[int], inputs: Sequence[DrawnInput]) -> Panel:
    one, parts = next(iter(own.values())), list[Tensor]()
    for i in places:
        images = inputs[i].images
        assert images is not None
        values = own[i].values.sum(1, keepdim=True) if i in own else one.values.new_zeros(images[:, :1].shape)
        parts.append(values)
    return replace(one, values=_side_by_side(parts, 0.0))


def _side_by_side(parts: Sequence[Tensor], ground: float) -> Tensor:
    """Images ``(N, C, H, W)`` of any sizes beside each other, with a gap between them, at the top."""
    height, gap = max(part.shape[2] for part in parts), max(1, max(part.shape[3] for part in parts) // _GAP)
    last = len(parts) - 1
    padded = [pad(p, (0, gap if i < last else 0, 0, height - p.shape[2]), value=ground) for i, p in enumerate(parts)]
    return torch.cat(padded, 3)
