"""Drawing options as plain values that JSON can hold, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning_explain.core.run_info import plain
from lightning_explain.core.schema import brief, one_line
from lightning_explain.render.options import Options, PerMethod


def stored(options: Options) -> tuple[dict[str, Any], list[str]]:
    """The options as plain values, and the names of those that are none and are left out: color maps of one's own.

    Example:
        >>> from lightning_explain.render.options import Options
        >>> from lightning_explain.render.stored import options_of, stored
        >>> options_of(stored(Options(cmap="viridis", normalization=(0.5, 0.5)))[0]).normalization
        ((0.5,), (0.5,))
    """
    found, lost = {}, []
    for name in (field.name for field in fields(options)):
        value = getattr(options, name)
        if name == "cmap":
            maps = value if isinstance(value, PerMethod) else {"": value}
            named = {method: _name(cmap) for method, cmap in maps.items()}
            if any(cmap is not None and named[method] is None for method, cmap in maps.items()):
                lost.append(name)
            value = named if isinstance(value, PerMethod) else named[""]
        found[name] = plain(value)
    return found, lost


def _name(cmap: Any) -> Any:
    """The color map as a name or as pairs; ``None`` if it is an object that matplotlib does not know by its name."""
    if cmap is None or isinstance(cmap, (str, tuple)):
        return cmap
    import matplotlib

    name = getattr(cmap, "name", None)
    known = isinstance(name, str) and name in matplotlib.colormaps and matplotlib.colormaps[name] == cmap
    return name if known else None


def options_of(drawing: Mapping[str, Any]) -> Options:
    """The options again; those of later versions are left out.

    Raises:
        ValueError: If they are none.
    """
    known = {field.name for field in fields(Options)}
    try:
        return Options(**{name: value for name, value in drawing.items() if name in known})
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"The drawing options {brief(drawing)} of the run are invalid ({one_line(str(error), 120)}); correct them in its run.json."
        ) from error
