"""Which maps must be kept beside the attributions, because their place cannot be told from their shape."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_explain.core.contracts import Modality
from lightning_explain.core.probe import Attribution, as_tuple
from lightning_explain.modalities.placement import arrange


def explicit_maps(
    found: Mapping[str, Attribution],
    arranged: Mapping[str, tuple[Tensor, ...] | None],
    inputs: tuple[Tensor, ...],
    modalities: tuple[Modality, ...],
) -> dict[str, tuple[Tensor, ...]]:
    """Returns the maps that cannot be derived from the shape of an attribution when pictures are drawn.

    An empty tuple means that there is no map, although the shape looks like one.
    """
    by_shape = {name: arrange(as_tuple(value), inputs, modalities) for name, value in found.items()}

    def deducible(name: str) -> bool:
        as_found = as_tuple(found[name])[0]
        return all(layout is not None and layout[0] is as_found for layout in (arranged[name], by_shape[name]))

    explicit_maps = [name for name in found if not deducible(name) and not (arranged[name] is by_shape[name] is None)]
    return {name: tuple(v.cpu() for v in arranged[name] or ()) for name in explicit_maps}
