"""The maps of a method in; where they lie on the model's inputs, by what these are, out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_explain.core.contracts import Arrangement, Lookup, Modality
from lightning_explain.core.probe import Attribution, as_tuple, flat

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
    if how.parts:
        return _together(found, inputs, modalities, how.parts)
    if how.lookup is not None and modalities[how.lookup.input].grid(inputs[how.lookup.input]) is None:
        return _looked_up(found[0], inputs, how.lookup)
    # Units of a layer as wide as a table are not its columns.
    elsewhere = how.layer is not None and not how.of_input and modalities[0].grid(inputs[0]) is None
    if how.reshape is None and _like(found, inputs) and not elsewhere:
        return found
    index, placed = _placed(found[0], inputs, modalities, how) if len(found) == 1 else (0, None)
    if placed is None:
        return None
    if placed is found[0] and len(inputs) == 1 and modalities[0].grid(inputs[0]) is not None:
        return found
    # Nothing of it lies on the other inputs.
    sizes = (modality.units(x) for x, modality in zip(inputs, modalities, strict=True))
    return tuple(placed.sum(1, keepdim=True) if i == index else placed.new_zeros(s) for i, s in enumerate(sizes))


def _together(
    found: Tensors, inputs: Tensors, modalities: tuple[Modality, ...], parts: tuple[Arrangement, ...]
) -> Tensors | None:
    """The sum, in input space, of the maps of several layers; ``None`` if one of them has no place there."""
    arranged = [arrange((part,), inputs, modalities, how) for part, how in zip(found, parts, strict=True)]
    placed = [onto(one, inputs, modalities) for one in arranged if one is not None]
    return tuple(map(sum, zip(*placed, strict=True))) if len(placed) == len(parts) else None  # type: ignore[arg-type]


def _looked_up(value: Tensor, inputs: Tensors, lookup: Lookup) -> Tensors | None:
    """The map of an embedding, summed over it, at what it looks up of an input; of the input itself as it is."""
    zeros = [torch.zeros(x.shape, dtype=value.dtype, device=value.device) for x in inputs]
    if lookup.elements is None:
        zeros[lookup.input] = value
    else:
        vectors, elements = flat(value.sum(-1)), torch.tensor(lookup.elements, device=value.device)
        if vectors.shape[1] != len(elements):
            return None
        flat(zeros[lookup.input]).index_add_(1, elements, vectors)
    return tuple(zeros)


def place(value: Tensor, inputs: Tensors, modalities: tuple[Modality, ...], how: Arrangement) -> Tensor | None:
    """A layer's activation, gradient or map, arranged as the units of the one input on which it has a place."""
    return _placed(value, inputs, modalities, how)[1]


def _placed(
    value: Tensor, inputs: Tensors, modalities: tuple[Modality, ...], how: Arrangement
) -> tuple[int, Tensor | None]:
    """The index of the only input on which it has a place, and its arrangement there."""
    found = [modality.place(value, x, how) for x, modality in zip(inputs, modalities, strict=True)]
    fitting = [i for i, part in enumerate(found) if part is not None]
    return (fitting[0], found[fitting[0]]) if len(fitting) == 1 else (0, None)


def onto(arranged: Tensors, inputs: Tensors, modalities: tuple[Modality, ...]) -> Tensors:
    """A result of :func:`arrange` in input space, broadcastable to the inputs."""
    columns = zip(arranged, inputs, modalities, strict=True)
    return tuple(part if part.shape == x.shape else modality.onto(part, x) for part, x, modality in columns)


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
