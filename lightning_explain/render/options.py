"""The user's drawing options in; checked options, and the style of each method's panels, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from lightning_explain.core.containers import resolved
from lightning_explain.core.contracts import Modality
from lightning_explain.core.naming import nearest
from lightning_explain.core.validation import check_choice, check_flag, check_range, check_whole, refused
from lightning_explain.modalities import kinds_of_panels
from lightning_explain.modalities.image import KINDS, Normalization
from lightning_explain.render.color import ColorMap, frozen_pairs, table
from lightning_explain.render.image import check_panel

Panels: TypeAlias = "tuple[tuple[str, str], ...]"

DEFAULT_PANELS: Panels = (("original_image", "all"), ("heat_map", "all"), ("blended_heat_map", "all"))
DEFAULT = "default"
"""The key, like ``None``, of the value for all methods that are not named."""
_NORMALIZATION = "a pair (mean, std) of finite numbers, or of as many means as stds; give positive stds"


class PerMethod(dict[str, Any]):
    """One option's values by method name, and under ``DEFAULT`` the value of all other methods."""

    def __missing__(self, method: str) -> Any:
        # What is given for a method holds for its map of each of several targets.
        base = method.rpartition("@")[0]
        return self[base] if base in self else self[DEFAULT]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


@dataclass(frozen=True)
class PanelStyle:
    """How the panels of one method are drawn; the fields have the meaning they have in :class:`Options`."""

    panels: Panels
    cmap: ColorMap | None
    outlier_perc: float
    alpha_overlay: float
    colorbar: bool


@dataclass(frozen=True)
class Options:
    """How the pictures of methods are drawn; checks every argument. Lists (from YAML) are accepted in place of tuples.

    ``panels``, ``cmap`` and ``outlier_perc`` take one value for all methods, or a mapping from method names to values,
    in which the key ``"default"`` (or ``None``) stands for all other methods.

    Args:
        panels: What is drawn of each method. Of images, ``(kind, sign)`` of each row of its pages (column of its composite), with the
            names of Captum's ``visualize_image_attr``, and ``"channels"``: each channel of a layer's map, such as each head of attention,
            as a small map. Of others, the kind alone: ``"beeswarm"``, ``"importance"``, ``"features"`` and
            ``"waterfall"`` of tables, ``"series"``, ``"horizon"`` of forecasts of which each step is explained, ``"words"``; all of them
            where none is named, but of such forecasts ``"horizon"`` alone.
        cmap: Colors of heat maps; ``None`` for a default for each sign, in colors that color-blind people tell apart.
        outlier_perc: Share of a map's total that may be clipped, in percent.
        alpha_overlay: Opacity of the heat map in ``blended_heat_map`` where the map is strongest, from 0 to 1; it is transparent where
            the map is zero.
        normalization: ``(mean, std)`` to undo for display, each one number or one number per channel.
        class_names: One name per class index; ``None`` for the probe's names.
        colorbar: Whether maps have a color bar, and on pages their largest absolute value and a score.
        titles: Whether each sample has its label and prediction.
        min_pixels: In composites and pictures of single samples, small images are enlarged by an integer factor until their
            shorter side has at least this many pixels.
        max_pixels: There, images are not enlarged beyond this length of the longer side, and larger images are reduced to it.
        max_rows: The most samples that are drawn.
        scale: Of words, bars and series: ``"sample"``: the strongest color or longest bar is the largest absolute value of each sample;
            ``"all"``: of all samples. Images always have a scale each.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.
    """

    panels: Panels | Mapping[str | None, Any] = DEFAULT_PANELS
    cmap: ColorMap | Mapping[str | None, ColorMap | None] | None = None
    outlier_perc: float | Mapping[str | None, float] = 2.0
    alpha_overlay: float = 0.9
    normalization: Normalization | None = None
    class_names: Sequence[str] | None = None
    colorbar: bool = True
    titles: bool = True
    min_pixels: int = 128
    max_pixels: int = 384
    max_rows: int = 16
    scale: str = "sample"

    def __post_init__(self) -> None:
        for name, check in _BY_METHOD.items():
            object.__setattr__(self, name, _each(name, resolved(getattr(self, name)), check))
        object.__setattr__(self, "normalization", _normalization(resolved(self.normalization)))
        if self.class_names is not None:
            object.__setattr__(
                self, "class_names", tuple(map(str, _sequence("class_names", resolved(self.class_names))))
            )
        check_range("", "alpha_overlay", self.alpha_overlay, 1)
        for name in ("min_pixels", "max_pixels", "max_rows"):
            check_whole("", name, getattr(self, name))
        check_choice("", "scale", self.scale, ("sample", "all"))
        for name in ("colorbar", "titles"):
            check_flag("", name, getattr(self, name))

    def of(self, method: str) -> PanelStyle:
        """The style for the method with this name."""
        given = {name: getattr(self, name) for name in _BY_METHOD}
        mine = {name: value[method] if isinstance(value, PerMethod) else value for name, value in given.items()}
        return PanelStyle(**mine, alpha_overlay=self.alpha_overlay, colorbar=self.colorbar)

    def check_kinds(self, modalities: Sequence[Modality]) -> None:
        """Checks that some input can be drawn by each kind of panel that the user names.

        Raises:
            ValueError: If none can; the error lists the kinds of each modality.
        """
        allowed = {type(one).__name__: one.kinds for one in modalities}
        if not all(allowed.values()):
            return
        given = self.panels.values() if isinstance(self.panels, PerMethod) else [self.panels]
        for kind, _ in chain(*(panels for panels in given if panels != DEFAULT_PANELS)):
            if not any(kind in kinds for kinds in allowed.values()):
                words = "; ".join(f"{name} has {', '.join(map(repr, kinds))}" for name, kinds in allowed.items())
                raise ValueError(f"panels names {kind!r}, which none of the inputs has: {words}. Give one of these.")

    def check_methods(self, names: Iterable[str]) -> None:
        """Checks that all methods that the options name are among ``names``.

        Raises:
            ValueError: If one is not; the error lists the nearest valid names.
        """
        known = list(names)
        for option in _BY_METHOD:
            value = getattr(self, option)
            for method in value if isinstance(value, PerMethod) else ():
                if method not in (*known, DEFAULT):
                    raise ValueError(f"{option} names a method {method!r}: {nearest(method, [*known, DEFAULT])}")


def _each(option: str, value: Any, check: Callable[[Any], Any]) -> Any:
    """The checked value, or a ``PerMethod`` of the checked values of a mapping."""
    if not isinstance(value, Mapping):
        return check(value)
    if None in value and DEFAULT in value:
        raise ValueError(f"{option} has both None and {DEFAULT!r}, which mean the same; leave one out.")
    for key in value:
        if key is not None and not isinstance(key, str):
            raise TypeError(f"{option} has the key {key!r} of type {type(key).__name__}; give names of methods.")
    checked = {DEFAULT if key is None else key: check(part) for key, part in value.items()}
    return PerMethod({DEFAULT: getattr(Options, option), **checked})


def _cmap(value: Any) -> Any:
    frozen = frozen_pairs(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    if frozen is not None:
        table(frozen)
    return frozen


def _outlier_perc(value: Any) -> Any:
    check_range("", "outlier_perc", value, 100)
    return value


def _panels(value: Any) -> tuple[tuple[str, str], ...]:
    named = [(p, "all") if isinstance(p, str) and p not in KINDS else p for p in _sequence("panels", value)]
    pairs = [tuple(p) if isinstance(p, Sequence) and not isinstance(p, str) else p for p in named]
    if not pairs or not all(isinstance(p, tuple) and len(p) == 2 for p in pairs):
        raise ValueError(
            f"panels={value!r}; give one (kind, sign) pair for each column, "
            "such as [('original_image', 'all'), ('heat_map', 'positive')], or kinds alone, such as ['beeswarm', 'waterfall']."
        )
    known = list(dict.fromkeys(chain(*kinds_of_panels().values())))
    for kind, sign in pairs:
        if kind not in known:
            raise ValueError(f"There is no panel kind {kind!r}: {nearest(str(kind), known)}")
        if kind in KINDS:
            check_panel(kind, sign)
        elif sign != "all":
            raise ValueError(f"panel kind {kind!r} shows both signs, not {sign!r}; give {kind!r} alone.")
    return tuple(pairs)


def _normalization(value: Any) -> Normalization | None:
    if value is None:
        return None
    pair = [_numbers(part, value) for part in _sequence("normalization", value)]
    fits = len(pair) == 2 and len({len(part) for part in pair} - {1}) < 2
    if not fits or not all(map(math.isfinite, chain(*pair))) or not all(std > 0 for std in pair[1]):
        raise refused("", "normalization", value, _NORMALIZATION)
    return pair[0], pair[1]


def _numbers(part: Any, whole: Any) -> tuple[float, ...]:
    try:
        return (float(part),) if isinstance(part, (int, float)) else tuple(float(v) for v in part)
    except (TypeError, ValueError):
        raise refused("", "normalization", whole, _NORMALIZATION, TypeError) from None


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r} is {type(value).__name__}; give a list or a tuple.")
    return value


_BY_METHOD = {"panels": _panels, "cmap": _cmap, "outlier_perc": _outlier_perc}
"""The options that can differ by method, with their check."""
