"""The maps of a method in; where they lie on the model's inputs, by what these are, out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_explain.core.contracts import Arrangement, Modality
from lightning_explain.core.probe import Attribution, as_tuple

Tensors = tuple[Tensor, ...]
_INFERRED = Arrangement()


def arrange(
    found: Tensors, inputs: Tensors, modalities: tuple[Modality, ...], how: Arrangement = _INFERRED
) -> Tensors | None:
    """A method's map arranged as the units of the inputs lie; ``None`` if it has no place on them.

    Args:
        found: What the method returned, tensors ``(N, ...)``.
        inputs: The model's inputs.
        modalities: What they are.
        how: How to arrange the map.

    Returns:
        ``found`` itself if it is shaped like the inputs or already arranged so; otherwise the layer's map, summed within
        each unit.

    Raises:
        ValueError: If ``how.reshape`` does not fit the map.
    """
    if how.reshape is None and _like(found, inputs):
        return found
    placed = place(found[0], inputs, modalities, how) if len(found) == 1 else None
    if placed is None:
        return None
    return found if placed is found[0] else (modalities[0].by_unit(placed),)


def place(value: Tensor, inputs: Tensors, modalities: tuple[Modality, ...], how: Arrangement) -> Tensor | None:
    """A layer's activation, gradient or map, arranged as the units of the only input lie (:meth:`Modality.place`)."""
    return modalities[0].place(value, inputs[0], how) if len(inputs) == 1 else None


def onto(arranged: Tensors, inputs: Tensors, modalities: tuple[Modality, ...]) -> Tensors:
    """A result of :func:`arrange` in input space, broadcastable to the inputs."""
    return arranged if _like(arranged, inputs) else (modalities[0].onto(arranged[0], inputs[0]),)


def _like(found: Tensors, inputs: Tensors) -> bool:
    return len(found) == len(inputs) and all(m.shape == x.shape for m, x in zip(found, inputs, strict=True))


def explicit_maps(
    found: Mapping[str, Attribution],
    arranged: Mapping[str, Tensors | None],
    inputs: Tensors,
    modalities: tuple[Modality, ...],
) -> dict[str, Tensors]:
    """Returns the maps that cannot be derived from the shape of an attribution when pictures are drawn.

    An empty tuple means that there is no map, although the shape looks like one.
    """
    maps: dict[str, Tensors] = {}
    for name, value in found.items():
        layouts = arranged[name], arrange(as_tuple(value), inputs, modalities)
        deducible = all(layout and layout[0] is as_tuple(value)[0] for layout in layouts) or not any(layouts)
        if not deducible:
            maps[name] = tuple(v.cpu() for v in arranged[name] or ())
    return maps
