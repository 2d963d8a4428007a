"""Where the map of a layer method lies on the image, found by running the model on one sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Modality
from lightning_explain.core.points import CENTER, LayerSite, Point
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.engine.evaluate import forward_backward
from lightning_explain.modalities.placement import arrange


def placed(method: Any, explained: ExplainedFunction, sample: Samples) -> tuple[Tensor, ...] | None:
    """Returns the activation of a method's layer, arranged as it lies on the image; ``None`` if it has no place there.

    Raises:
        ValueError: If ``reshape`` does not fit the layer.
    """
    of_input = method.attribute_to_layer_input
    site = LayerSite(method.layer, of_input)
    (evaluation,) = forward_backward(explained, [Point(sample, CENTER)], frozenset({(None, site)}))
    layer, found = explained.layer(method.layer), evaluation.activation(site)
    return arrange(found, sample.inputs, explained.modalities, method.reshape, layer, of_input)


def has_map(method: Method, explained: ExplainedFunction, sample: Samples) -> bool:
    """Whether the method's map has a place in input space."""
    return not method.innermost.layer_shaped or placed(method.innermost, explained, sample) is not None


def check_place(name: str, method: Any, explained: ExplainedFunction, sample: Samples) -> None:
    """Checks that a method's ``reshape`` fits its layer.

    Args:
        name: The method's name.
        method: A layer method with a ``reshape``.
        explained: The explained function.
        sample: One sample.

    Raises:
        ValueError: If it does not fit, or the layer has no place on the image.
    """
    try:
        found = placed(method, explained, sample)
    except ValueError as error:
        raise ValueError(f"The method {name!r} at the layer {method.layer!r}: {error}") from error
    if found is None:
        raise ValueError(
            f"The method {name!r} has reshape={method.reshape!r}, which needs a layer that returns one tensor, and a "
            "model whose only input is an image (N, C, H, W); leave reshape out."
        )


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
