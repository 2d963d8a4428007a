"""A report with its run and samples in; the pictures that the dashboard showed of it, out. Drawing options as plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from lightning_explain.core.naming import nearest, target_of
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report, fitting_names
from lightning_explain.core.run_info import plain
from lightning_explain.core.schema import brief, one_line
from lightning_explain.core.validation import check_choice
from lightning_explain.render.by_target import figures_of
from lightning_explain.render.composite import composite
from lightning_explain.render.figure import HISTORY
from lightning_explain.render.history import PictureHistory
from lightning_explain.render.options import Options, PerMethod


def draw(report: Report, name: str, history: Sequence[Report] = (), layout: str = "pages") -> Picture:
    """Takes a report that ``load_reports`` or a monitor gave, and draws it as the dashboard showed it, pixel by pixel.

    Args:
        report: The report, with its ``run`` (how to draw; else the defaults) and ``probe``.
        name: ``"overview"``, the name of a method, or ``"history/<method>"``; with ``/2``, ``/3`` for further samples. Of several
            targets ``"overview@<target>"`` and ``"<method>@<target>"``.
        history: For ``"history/<method>"``: the earlier reports of the run, the oldest first; ``load_reports(folder)`` is fine. Without
            files that ``keep_every`` and ``keep_last`` did not keep, other epochs may be shown than on the dashboard.
        layout: ``"pages"``, as on the dashboard: samples are columns, all pictures have one size. ``"composite"``: one tall picture of a
            method, with a row for each sample and a column for each panel.

    Returns:
        uint8 ``(H, W, 3)``; ``PIL.Image.fromarray(picture).save("ig.png")`` saves it.

    Raises:
        ValueError: If the report has no samples, or there is no such picture.

    Example:
        >>> from dataclasses import replace
        >>> from lightning_explain import draw
        >>> report = replace(explain(model, probe, methods=[m.Saliency()], metrics=[]), probe=probe)
        >>> draw(report, "saliency", layout="composite").dtype
        dtype('uint8')
    """
    check_choice("", "layout", layout, ("pages", "composite"))
    if report.probe is None:
        raise ValueError(
            "The report has no samples, so it cannot be drawn: they are kept in probe.safetensors of its folder, unless save_inputs=False. "
            "Give dataclasses.replace(report, probe=...)."
        )
    options = Options() if report.run is None else options_of(report.run.drawing)
    if layout == "pages":
        past = _before(report, report.probe, options, history) if name.startswith(f"{HISTORY}/") else None
        return figures_of(report, report.probe, options).picture(name, past)
    if name not in report.attributions:
        raise ValueError(f"There is no picture {name!r} of this report: {nearest(name, report.attributions)}")
    alone, probe = replace(report, attributions={name: report.attributions[name]}), report.probe
    if (of := target_of(name)) in report.by_target:
        alone = alone.of_target(of)
        options, probe = (
            replace(options, class_names=fitting_names(options.class_names, alone.outputs)),
            alone.probe or probe,
        )
    return composite(alone, probe, options)[name]


def _before(report: Report, probe: Probe, options: Options, history: Sequence[Report]) -> PictureHistory:
    """The maps of the training before a report."""
    found = PictureHistory()
    for each in history:
        moments = [(-1 if r.step is None else r.step, -1 if r.epoch is None else r.epoch) for r in (each, report)]
        earlier = moments[0] < moments[1] or (report.stage not in (None, "fit") and moments[0] == moments[1])
        if earlier and each.stage in (None, "fit") and each.fingerprint == report.fingerprint:
            found = found.followed_by(figures_of(each, probe, options).snapshot, each.fingerprint)
    return found


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
