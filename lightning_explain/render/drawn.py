"""A probe and a report in; what a method's picture shows of some samples out: the inputs drawn on, and the panels of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from lightning_explain.core.contracts import Modality
from lightning_explain.core.naming import unlike
from lightning_explain.core.panels import FeaturesPanel, FramesPanel, Panel, VolumePanel
from lightning_explain.core.probe import Probe, all_finite, as_tuple
from lightning_explain.core.regions import NAME as REGION
from lightning_explain.core.report import Report
from lightning_explain.modalities import Plain, of_probe
from lightning_explain.modalities.image import CHANNELS, is_grid
from lightning_explain.modalities.placement import arrange, onto
from lightning_explain.render import bars, boxes, regions
from lightning_explain.render.boxes import Color
from lightning_explain.render.image import normalize, to_bytes, to_display
from lightning_explain.render.image import panel as image_panel
from lightning_explain.render.kinds import KINDS
from lightning_explain.render.notes import colors
from lightning_explain.render.options import DEFAULT_PANELS, Options, PanelStyle

_OUTLINE, _OUTLINE_EDGE = (255, 220, 0), (0, 0, 0)


@dataclass(frozen=True, eq=False)
class GridPanel(Panel):
    """A map as pixels of its own, beside no image; ``largest``: ``(N,)`` its largest absolute value."""

    largest: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DrawnInput:
    """The inputs of the samples that are drawn, what they are, and the index of the one that a block of columns shows.

    The first block also shows maps that have no place on an input. If the input has pixels: its images, and their size in the
    picture. ``masks`` are the regions of the input, those of images ``(N, H, W)``, of others in the shape of its units. ``name`` is
    what the input is called. ``regions`` are the bytes of the places of a segmentation (``core.regions``). ``boxes`` are those of
    detected objects, ``(N, M, 4)`` in pixels of the input, each with its color.
    """

    samples: slice
    inputs: tuple[Tensor, ...]
    modalities: tuple[Modality, ...]
    index: int | None
    first: bool = True
    images: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    masks: Tensor | None = None
    name: str = ""
    regions: Tensor | None = None
    boxes: tuple[tuple[Tensor, Color], ...] = ()

    @cached_property
    def outline(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        """Where lines are drawn around the masks: inside and outside of them."""
        return None if self.masks is None or self.images is None else _outline(self.masks, self.size)

    @cached_property
    def original(self) -> NDArray[np.uint8]:
        """The images ``(N, h, w, 3)`` with what is marked on them."""
        assert self.images is not None
        return self.outlined(as_pictures(to_bytes(self.images)))

    def check_pixels(self, kind: str) -> None:
        """Checks that a panel of this kind can be drawn.

        Raises:
            ValueError: If it shows images, and the input has no pixels.
        """
        if self.images is None:
            raise ValueError(
                f"A panel of the kind {kind!r} needs an input with pixels; give 'bars', 'profile' or 'pixels'."
            )

    def at(self, size: tuple[int, int]) -> DrawnInput:
        """The same with its images resized to ``size``."""
        return self if self.images is None else replace(self, images=resize(self.images, size), size=size)

    def outlined(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images ``(N, h, w, 3)`` with boxes, a segmentation's explained pixels, prediction and label, and the outline of their masks."""
        if self.regions is not None:
            pixels = regions.marked(pixels, self.regions)
        if self.outline is not None:
            pixels = pixels.copy()
            pixels[self.outline[0]], pixels[self.outline[1]] = _OUTLINE, _OUTLINE_EDGE
        return self.boxed(pixels)

    def boxed(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images ``(N, h, w, 3)`` with their boxes."""
        if not self.boxes or self.index is None:
            return pixels
        from_size = self.modalities[self.index].pixels(self.inputs[self.index])
        return boxes.drawn(pixels, self.boxes, from_size or self.size)

    def with_marks(self, kind: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Panels ``(N, h, w, 3)`` of a kind, with what is marked on such panels."""
        if kind == "original_image":
            return self.outlined(pixels)
        on_overlay = kind == "blended_heat_map" and self.regions is not None
        return self.boxed(regions.contoured(pixels, self.regions) if on_overlay else pixels)  # type: ignore[arg-type]


def check_samples(report: Report, probe: Probe) -> None:
    """Checks that a report and a probe have equally many samples.

    Raises:
        ValueError: If they have not.
    """
    if len(report.ids) != len(probe):
        raise ValueError(
            f"report has {len(report.ids)} samples, but probe has {len(probe)}; give the probe it came from."
        )


def drawn_inputs(
    probe: Probe, options: Options, samples: slice | None = None, explained: Mapping[str, Tensor] = MappingProxyType({})
) -> list[DrawnInput]:
    """The input that maps are drawn on, if there is one; and after it, every other input; by default the first ``max_rows`` samples.

    ``explained`` is what is known of the explained outputs, as in ``Report.explained``.
    """
    samples = samples or slice(options.max_rows)
    inputs = tuple(x[samples].cpu() for x in as_tuple(probe.inputs))
    modalities = of_probe(probe)
    pairs = list(enumerate(zip(modalities, inputs, strict=True)))
    images = [i for i, (modality, x) in pairs if modality.on_input and modality.pixels(x) is not None]
    index = next(iter([*images, *(i for i, (modality, _) in pairs if modality.on_input)]), None)
    if index is None:
        return [DrawnInput(samples, inputs, modalities, None)]
    others = [i for i in range(len(inputs)) if i != index]
    masks = None if probe.masks is None else probe.masks[samples].cpu()
    # As for the metrics, masks are regions of the first input that they fit.
    inside = [None if masks is None else modality.inside(masks, x) for _, (modality, x) in pairs]
    masked = next((i for i, found in enumerate(inside) if found is not None), None)
    blocks = [
        _block(samples, inputs, modalities, i, i == index, options, inside[i] if i == masked else None)
        for i in (index, *others)
    ]
    found = explained.get(REGION)
    if found is not None and found.ndim == 3 and blocks[0].images is not None:
        blocks[0] = replace(blocks[0], regions=found[samples])
    if blocks[0].images is not None:
        blocks[0] = replace(blocks[0], boxes=boxes.of_samples(explained, probe, samples))
    return [
        replace(block, name=name)
        for block, name in zip(blocks, (probe.names[i] for i in (index, *others)), strict=True)
    ]


def _block(
    samples: slice,
    inputs: tuple[Tensor, ...],
    modalities: tuple[Modality, ...],
    i: int,
    first: bool,
    options: Options,
    inside: Tensor | None,
) -> DrawnInput:
    kinds, pixels = modalities[i].kinds, modalities[i].pixels(inputs[i])
    if pixels is None or (kinds and "original_image" not in kinds):
        return DrawnInput(samples, inputs, modalities, i, first, masks=inside)
    # Further images need not be normalized as the first one is, nor be of its size.
    chosen = modalities[i].displayed(inputs[i])
    size, images = (
        shown_size(pixels, options),
        to_display(chosen, options.normalization if first and chosen is inputs[i] else None),
    )
    masks = None if inside is None else inside.reshape(-1, *pixels)
    return DrawnInput(samples, inputs, modalities, i, first, images, size, masks)


def panels_of(name: str, report: Report, drawn: DrawnInput, style: PanelStyle) -> tuple[tuple[Panel, ...], Tensor]:
    """The panels of a method, and for each sample whether its map is finite."""
    inputs, modalities, index = drawn.inputs, drawn.modalities, drawn.index
    found, stored = (
        tuple(part.detach()[drawn.samples].cpu() for part in as_tuple(maps.get(name, ())))
        for maps in (report.attributions, report.maps)
    )
    arranged = stored if name in report.maps else arrange(found, inputs, modalities)
    if not drawn.first:
        return _further(found, arranged or (), drawn, style)
    if index is None or not arranged:
        grid = _grid_of(found, drawn)
        panels = Plain().panels(found, inputs, ()) if grid is None else (grid,)
        return panels, all_finite(found[0])
    whole, finite = onto(arranged, inputs, modalities)[index], all_finite(found[index if len(found) > index else 0])
    shown = torch.where(finite.reshape(-1, *(1,) * (whole.ndim - 1)), whole, torch.nan)
    wanted = asked(modalities[index], style)
    channels = (arranged[index],) if any(kind == CHANNELS for kind, _ in wanted) else ()
    panels = modalities[index].panels((shown, *channels), (inputs[index],), wanted)
    return tuple(_masked(panel, drawn.masks) for panel in panels), all_finite(shown)


def _grid_of(found: tuple[Tensor, ...], drawn: DrawnInput) -> Panel | None:
    """A layer's map ``(N, C, h, w)`` that lies on none of several images, as pixels of its own, if it has the proportions of one."""
    own, columns = found[0], zip(drawn.modalities, drawn.inputs, strict=True)
    images = [size for modality, x in columns if (size := modality.pixels(x)) is not None]
    if len(found) > 1 or own.ndim != 4 or len(images) < 2 or not is_grid(own.shape[2:], images[0]):
        return None
    summed = own.sum(1, keepdim=True).float()
    shades = resize(normalize(summed, "all")[:, None], drawn.size)[:, 0]
    return GridPanel("layer", "pixels", torch.from_numpy(colors(shades)), largest=summed.abs().amax((1, 2, 3)))


def _masked(panel: Panel, masks: Tensor | None) -> Panel:
    """The panel with what it outlines."""
    if masks is None or not isinstance(panel, (VolumePanel, FramesPanel)):
        return panel
    return replace(panel, masks=masks.reshape(panel.values.shape))


def joined(shown: Sequence[Sequence[Panel]]) -> list[tuple[Panel, ...]]:
    """The panels of each input, with the features of several tables in one panel of each kind, at the first of the tables."""
    tables = [panel for panels in shown for panel in panels if isinstance(panel, FeaturesPanel)]
    alike = {kind: [panel for panel in tables if panel.kind == kind] for kind in dict.fromkeys(p.kind for p in tables)}
    first = {id(parts[0]): _joint(parts) if len(parts) > 1 else parts[0] for parts in alike.values()}
    kept = [
        [panel for panel in panels if id(panel) in first or not isinstance(panel, FeaturesPanel)] for panels in shown
    ]
    return [tuple(first.get(id(panel), panel) for panel in panels) for panels in kept]


def _joint(parts: Sequence[FeaturesPanel]) -> FeaturesPanel:
    """The features of all parts side by side, each with a name of its own."""
    samples, blank = range(len(parts[0].values)), [[""] * part.values.shape[1] for part in parts]
    texts = [
        [one for part, none in zip(parts, blank, strict=True) for one in (part.texts[i] if part.texts else none)]
        for i in samples
    ]
    levels = [torch.full_like(part.values, torch.nan) if part.levels is None else part.levels for part in parts]
    return replace(
        parts[0],
        values=torch.cat([part.values for part in parts], 1),
        names=unlike(name for part in parts for name in part.names),
        texts=texts,
        levels=None if all(part.levels is None for part in parts) else torch.cat(levels, 1),
    )


def asked(modality: Modality, style: PanelStyle) -> Sequence[tuple[str, str]]:
    """The panels of a modality's own kinds that the user names; of images, the default ones where none is."""
    mine = [pair for pair in style.panels if pair[0] in modality.kinds]
    return mine or [pair for pair in DEFAULT_PANELS if pair[0] in modality.kinds] if modality.kinds else style.panels


def _further(
    found: tuple[Tensor, ...], arranged: tuple[Tensor, ...], drawn: DrawnInput, style: PanelStyle
) -> tuple[tuple[Panel, ...], Tensor]:
    """The panels of another input than the first that is drawn; none if the method has no map for it."""
    i, own = drawn.index, drawn.inputs[drawn.index or 0]
    # Maps of embeddings, as many as there may be, lie on what they look up; where nothing lies, there are zeros.
    maps = found if len(found) == len(drawn.inputs) else arranged
    if i is None or len(maps) <= i or maps[i].shape != own.shape or (maps is not found and not maps[i].any()):
        return (), torch.ones(len(own), dtype=torch.bool)
    modality = drawn.modalities[i] if drawn.modalities[i].on_input else Plain()
    return modality.panels((maps[i],), (own,), asked(modality, style)), all_finite(maps[i])


def map_key(panel: Panel) -> str:
    """What panels of an image that show the same map have in common: the sign, unless they show its channels."""
    return f"{CHANNELS} {panel.sign}" if panel.kind == CHANNELS else panel.sign


def pixels_of(panel: Panel, drawn: DrawnInput, normalized: dict[str, Tensor], style: PanelStyle) -> NDArray[np.uint8]:
    """The panels of one column, ``(N, h, w, 3)``; ``normalized`` keeps the map of each sign for the next column."""
    if panel.kind in bars.KINDS:
        return bars.KINDS[panel.kind](panel)
    if panel.kind in KINDS:
        return KINDS[panel.kind].cells(panel)
    if panel.kind == "pixels":
        return panel.values.numpy()
    drawn.check_pixels(panel.kind)
    assert drawn.images is not None
    key = map_key(panel)
    if key not in normalized:
        normalized[key] = normalize(panel.values, panel.sign, style.outlier_perc)
    found = image_panel(panel.kind, panel.sign, drawn.images, normalized[key], style.cmap, style.alpha_overlay)
    return drawn.with_marks(panel.kind, _resized(found, drawn.size))


def shown_size(size: tuple[int, int], options: Options) -> tuple[int, int]:
    """The size at which an image ``(H, W)`` is drawn: enlarged by a whole factor, or reduced."""
    short, long = min(size), max(size)
    if long > options.max_pixels:
        return cast("tuple[int, int]", tuple(max(1, round(s * options.max_pixels / long)) for s in size))
    factor = min(-(-options.min_pixels // short), max(1, options.max_pixels // long))
    return size[0] * factor, size[1] * factor


def _outline(masks: Tensor, size: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A line just inside each mask and a thinner one just outside: two boolean arrays ``(N, h, w)``."""
    inside = interpolate(masks[:, None].float(), size, mode="nearest")
    line = inside.bool() & (max_pool2d(1 - inside, 5, stride=1, padding=2) > 0)
    edge = ~inside.bool() & (max_pool2d(inside, 3, stride=1, padding=1) > 0)
    return line[:, 0].numpy(), edge[:, 0].numpy()


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Images or maps ``(N, C, H, W)`` at another size: enlarged by repeating pixels, or reduced with antialiasing."""
    if size[0] >= values.shape[2] and size[1] >= values.shape[3]:
        return interpolate(values, size, mode="nearest")
    return interpolate(values, size, mode="bilinear", antialias=True).clamp(values.min(), values.max())


def _resized(panels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Panels ``(N, 3, H, W)`` as ``(N, h, w, 3)``: enlarged by repeating pixels, or reduced with antialiasing."""
    height, width = panels.shape[2:]
    if size[0] >= height and size[1] >= width:
        pixels = as_pictures(panels)
        # Lines are repeated last, because whole lines are copied faster than single pixels.
        return pixels.repeat(size[1] // width, axis=2).repeat(size[0] // height, axis=1)
    return as_pictures(resize(panels.float(), size).round())


def as_pictures(images: Tensor) -> NDArray[np.uint8]:
    """Images ``(N, 3, h, w)`` of whole numbers in 0..255 as uint8 ``(N, h, w, 3)``."""
    return images.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
