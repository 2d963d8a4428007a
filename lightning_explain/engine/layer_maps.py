"""Which layer a method looks at, how its map lies on the image, and how many rows it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_explain.core.contracts import Subject, innermost
from lightning_explain.core.points import CENTER, Point, Spot
from lightning_explain.core.probe import Attribution, Rows, as_tuple
from lightning_explain.engine.evaluate import look
from lightning_explain.modalities.image import arrange


def placed(method: Any, subject: Subject, row: Rows) -> tuple[Tensor, ...] | None:
    """How the activation of a method's layer lies on the image; ``None`` if it has no place there.

    Raises:
        ValueError: If ``reshape`` does not fit the layer.
    """
    of_input = method.attribute_to_layer_input
    spot = Spot(method.layer, of_input)
    (visit,) = look(subject, [Point(row, CENTER)], frozenset({(None, spot)}))
    return arrange(visit.activation(spot), row.inputs, method.reshape, subject.layer(method.layer), of_input)


def has_map(method: Any, subject: Subject, row: Rows) -> bool:
    """Whether the method's map has a place in input space."""
    inner = innermost(method)
    return not hasattr(inner, "arranged") or placed(inner, subject, row) is not None


def check_place(name: str, method: Any, subject: Subject, row: Rows) -> None:
    """Refuses a ``reshape`` that does not fit the method's layer.

    Args:
        name: The method's name.
        method: It has a ``reshape``.
        subject: The explained function.
        row: One row.

    Raises:
        ValueError: If it does not fit.
    """
    try:
        found = placed(method, subject, row)
    except ValueError as error:
        raise ValueError(f"The method {name!r} at the layer {method.layer!r}: {error}") from error
    if found is None:
        raise ValueError(
            f"The method {name!r} has reshape={method.reshape!r}, but only a layer that gives one tensor has a place, and only "
            "on a single image (N, C, H, W) that the model takes; leave reshape out."
        )


def untold(
    found: Mapping[str, Attribution], arranged: Mapping[str, tuple[Tensor, ...] | None], inputs: tuple[Tensor, ...]
) -> dict[str, tuple[Tensor, ...]]:
    """The maps that pictures could not make from an attribution's shape; an empty tuple where they would make one."""
    by_shape = {name: arrange(as_tuple(value), inputs) for name, value in found.items()}

    def told(name: str) -> bool:
        as_found = as_tuple(found[name])[0]
        return all(way is not None and way[0] is as_found for way in (arranged[name], by_shape[name]))

    untold = [name for name in found if not told(name) and not (arranged[name] is by_shape[name] is None)]
    return {name: tuple(v.cpu() for v in arranged[name] or ()) for name in untold}
