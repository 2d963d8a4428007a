"""What the pictures look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_explain.render.color import ColorMap, frozen_pairs, table
from lightning_explain.render.image import Normalization, check_panel

DEFAULT_PANELS = (("original_image", "all"), ("heat_map", "all"), ("blended_heat_map", "all"))


@dataclass(frozen=True)
class Options:
    """How the picture of a method is drawn. Lists, as YAML gives them, are taken for tuples.

    Args:
        panels: ``(kind, sign)`` of each column, in Captum's vocabulary.
        cmap: Colors of all heat maps; ``None`` for Captum's default of each sign.
        outlier_perc: Share of a map's total that may be clipped, in percent.
        alpha_overlay: Opacity of the heat map in ``blended_heat_map``.
        normalization: ``(mean, std)`` to undo for display, each a number or one number for each channel.
        class_names: A name for each class index; ``None`` for the probe's.
        colorbar: Whether each row ends with the scale of its heat maps.
        titles: Whether each row begins with its label and prediction.
        min_pixels: Small images are enlarged by an integer factor until their shorter side has this many pixels.
        max_pixels: The longer side is never enlarged beyond this, and reduced to it.
        max_rows: At most this many rows are drawn.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If an argument is of the wrong kind.
    """

    panels: tuple[tuple[str, str], ...] = DEFAULT_PANELS
    cmap: ColorMap | None = None
    outlier_perc: float = 2.0
    alpha_overlay: float = 0.5
    normalization: Normalization | None = None
    class_names: Sequence[str] | None = None
    colorbar: bool = True
    titles: bool = True
    min_pixels: int = 128
    max_pixels: int = 384
    max_rows: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "panels", _panels(self.panels))
        object.__setattr__(self, "normalization", _normalization(self.normalization))
        object.__setattr__(self, "class_names", _class_names(self.class_names))
        if isinstance(self.cmap, Sequence) and not isinstance(self.cmap, str):
            object.__setattr__(self, "cmap", frozen_pairs(self.cmap))
        if self.cmap is not None:
            table(self.cmap)
        _check_range("outlier_perc", self.outlier_perc, 100)
        _check_range("alpha_overlay", self.alpha_overlay, 1)
        for name in ("min_pixels", "max_pixels", "max_rows"):
            _check_count(name, getattr(self, name))
        for name in ("colorbar", "titles"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False.")


def _panels(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = [tuple(p) if isinstance(p, Sequence) and not isinstance(p, str) else p for p in _sequence("panels", value)]
    if not pairs or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        raise ValueError(
            f"panels={value!r} must hold one (kind, sign) pair for each column, "
            "such as [('original_image', 'all'), ('heat_map', 'positive')]."
        )
    for kind, sign in pairs:
        check_panel(kind, sign)
    return tuple(pairs)


def _normalization(value: Any) -> Normalization | None:
    if value is None:
        return None
    pair = _sequence("normalization", value)
    if len(pair) != 2:
        raise ValueError(f"normalization={value!r} must be a pair (mean, std).")
    mean, std = (_numbers(v, value) for v in pair)
    if any(s <= 0 for s in std) or (len(mean) != len(std) and 1 not in (len(mean), len(std))):
        raise ValueError(f"normalization={value!r} must have positive std and as many means as stds.")
    return mean, std


def _numbers(part: Any, whole: Any) -> tuple[float, ...]:
    try:
        return (float(part),) if isinstance(part, (int, float)) else tuple(float(v) for v in part)
    except (TypeError, ValueError):
        raise TypeError(
            f"normalization={whole!r} must be a pair (mean, std) of numbers or of sequences of them."
        ) from None


def _class_names(value: Any) -> tuple[str, ...] | None:
    return None if value is None else tuple(str(v) for v in _sequence("class_names", value))


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r} is {type(value).__name__}; give a list or a tuple.")
    return value


def _check_range(name: str, value: Any, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number from 0 to {high}.")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1.")
