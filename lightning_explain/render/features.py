"""Tables and their attributions in; pages with a beeswarm, mean absolute attributions, bars and waterfalls out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.panels import FeaturesPanel, Panel
from lightning_explain.core.report import Picture
from lightning_explain.render import letters as text
from lightning_explain.render.color import sign_table, table
from lightning_explain.render.image import to_bytes
from lightning_explain.render.layout import AMBER, BLACK, GRAY, LINE
from lightning_explain.render.notes import GAP, MARGIN, PITCH, TOP, Notes, Page, Track, color_bar, write, write_right
from lightning_explain.render.page import HEIGHT, LETTERS, WIDTH, brief

_MOST = 8
"""How many features a page about all samples shows."""
_OF_SAMPLE, _SAMPLES = 5, 2
_DOT = 6  # radius
_REACH = 2  # standard deviations at the ends of the colors of values
_MUTED = (140, 140, 140)
_NEGATIVE, _POSITIVE = (0, 114, 178), (213, 94, 0)  # BLUE and ORANGE
_CELL, _CELL_LETTERS, _CELL_LINES = 480, 16, 11


def beeswarm(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """A dot for each sample, by feature, the strongest first, in the color of the feature's value; on one page."""
    return [partial(_beeswarm, _of(panel), tracks[-1].values, notes)]


def importance(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """The mean absolute attribution of the strongest features, in a column for each track; on one page.

    Several tracks need not have one unit, so their numbers are shares of the sum over all features.
    """
    return [partial(_importance, _of(panel), tracks, notes)]


def features(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """The strongest features of each sample with their values, two samples on a page."""
    return _by_sample(_of(panel), tracks[-1].values, notes, stacked=False)


def waterfall(panel: Panel, tracks: Sequence[Track], notes: Notes) -> list[Page]:
    """How the strongest features and the sum of all others lead from f - Σ to f, from the bottom upward; two samples on a page."""
    return _by_sample(_of(panel), tracks[-1].values, notes, stacked=True)


def cells(panel: Panel) -> NDArray[np.uint8]:
    """A picture of each sample alone, ``(N, h, w, 3)``: its strongest features."""
    found = _of(panel)
    lines = min(_CELL_LINES, found.values.shape[1])
    pitch, pictures = text.line_height(_CELL_LETTERS), []
    for i, values in enumerate(found.values):
        canvas = np.full((lines * pitch, _CELL, 3), 255, dtype=np.uint8)
        bars = _bars(found, i, values, lines, 0.0 if panel.kind == "waterfall" else None)
        _draw_bars(canvas, found, bars, 0, _CELL_LETTERS, _span(bars))
        pictures.append(canvas)
    return np.stack(pictures)


def _of(panel: Panel) -> FeaturesPanel:
    assert isinstance(panel, FeaturesPanel)
    return panel


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num(torch.nan, torch.nan, torch.nan)


def _strength(values: Tensor) -> Tensor:
    """The mean absolute attribution ``(F,)`` of values ``(N, F)``; 0 for a feature without any."""
    return _finite(values).abs().nanmean(0).nan_to_num(0.0)


def _strongest(strength: Tensor, most: int) -> list[int]:
    found: list[int] = strength.argsort(descending=True, stable=True)[:most].tolist()
    return found


def _names_width(names: Sequence[str], width: float, letters: int = LETTERS, share: float = 0.43) -> int:
    """The width of the column of names on a page of this width, which does not depend on which of them are shown."""
    widest = max((text.width(name, letters) for name in names), default=0)
    return min(widest, int(share * width))


def _beeswarm(panel: FeaturesPanel, values: Tensor, notes: Notes) -> Picture:
    canvas = notes.canvas(partial(_legend, table=table("viridis")) if panel.levels is not None else None)
    values, strength = _finite(values), _strength(values)
    shown = _strongest(strength, _MOST)
    left, right = (
        MARGIN + _names_width(panel.names, notes.width) + 2 * GAP,
        notes.width - MARGIN - text.width("mean |a|", LETTERS) - GAP,
    )
    bottom = HEIGHT - 2 * PITCH - MARGIN
    span = _limits([values[:, shown]])
    axis = _axis(span, left + _DOT, right - _DOT)
    pitch = min((bottom - TOP) // len(shown), 2 * PITCH)
    canvas[TOP : TOP + pitch * len(shown), axis(0.0)] = LINE
    for line, unit in enumerate(shown):
        y = TOP + line * pitch + pitch // 2
        canvas[y, left:right] = np.minimum(canvas[y, left:right], 232)
        write(canvas, panel.names[unit], MARGIN, y - PITCH // 2 - 1, BLACK, left - GAP - MARGIN)
        write_right(canvas, brief(float(strength[unit])), notes.width - MARGIN, y - PITCH // 2 - 1)
        levels = torch.full_like(values[:, unit], torch.nan) if panel.levels is None else panel.levels[:, unit]
        _dots(canvas, values[:, unit], levels, axis, y, pitch // 2 - _DOT)
    _write_axis(canvas, axis, span, (left, right), TOP + pitch * len(shown))
    write_right(canvas, "mean |a|", notes.width - MARGIN, TOP + pitch * len(shown))
    _write_signs(canvas, axis(0.0), notes, (left, notes.width - MARGIN), TOP + pitch * len(shown) + PITCH)
    missing = int((~values.isfinite()).all(1).sum())
    if missing:
        write(canvas, f"{missing} of {len(values)} not finite", MARGIN, HEIGHT - PITCH - MARGIN, AMBER, left)
    return canvas


def _legend(canvas: Picture, table: Tensor) -> int:
    return color_bar(canvas, f"value -{_REACH} std", f"+{_REACH} std", table)


def _limits(parts: Sequence[Tensor]) -> tuple[float, float]:
    """The smallest and the largest of zero and all attributions."""
    known = torch.cat([part[part.isfinite()].double() for part in parts] + [torch.zeros(1, dtype=torch.double)])
    return float(known.min()), float(known.max())


def _axis(span: tuple[float, float], left: int, right: int) -> Callable[[float], int]:
    """From attributions to x: the span lies between ``left`` and ``right``."""
    width = (span[1] - span[0]) or 1.0
    return lambda value: left + round((value - span[0]) / width * (right - left))


def _write_axis(
    canvas: Picture, axis: Callable[[float], int], span: tuple[float, float], ends: tuple[int, int], y: int
) -> None:
    """The numbers of an axis, as far as they do not overlap: zero and the limits."""
    taken: list[tuple[int, int]] = []
    for value in (0.0, *sorted(span, key=abs, reverse=True)):
        words, x = brief(value), axis(value)
        width = text.width(words, LETTERS)
        start = min(max(x - width // 2, ends[0]), ends[1] - width)
        if all(start >= b + GAP or start + width + GAP <= a for a, b in taken):
            write(canvas, words, start, y)
            taken.append((start, start + width))


def _write_signs(canvas: Picture, zero: int, notes: Notes, ends: tuple[int, int], y: int) -> None:
    """Which side of zero speaks for what is explained, as far as there is space."""
    against, speaks_for = f"← {notes.ends[0]}", f"{notes.ends[1]} →"
    end = min(
        max(zero - 2 * GAP, ends[0] + text.width(against, LETTERS)), ends[1] - text.width(speaks_for, LETTERS) - 4 * GAP
    )
    write_right(canvas, against, end, y, _NEGATIVE)
    write(canvas, speaks_for, end + 4 * GAP, y, _POSITIVE)


def _dots(
    canvas: Picture, values: Tensor, levels: Tensor, axis: Callable[[float], int], middle: int, most: int
) -> None:
    """A dot for each value; dots that would cover each other are moved up and down by at most ``most`` pixels."""
    palette, taken = to_bytes(table("viridis")).numpy(), list[tuple[int, int]]()
    places = ((levels / _REACH).nan_to_num(0.0).clamp(-1, 1) * 127.5 + 127.5).long().tolist()
    for value, known, place in sorted(zip(values.tolist(), levels.isfinite().tolist(), places, strict=True)):
        if value != value:
            continue
        x = axis(value)
        near = [y for left, y in taken if abs(x - left) < 2 * _DOT]
        sides = [middle + step * sign for step in range(0, most + 1, 2) for sign in (1, -1)]
        y = max(sides, key=lambda y: min([abs(y - other) for other in near] + [2 * _DOT]))
        taken.append((x, y))
        _blend(canvas, x, y, tuple(palette[place].tolist()) if known else _MUTED)


@lru_cache(maxsize=1)
def _disc() -> NDArray[np.float64]:
    """Opacities of a dot ``(2, h, w)``, of its edge and of what is inside of it."""
    size = 2 * _DOT + 1
    fine = (np.arange(size * 4) + 0.5) / 4 - size / 2
    distance = np.hypot(fine[:, None], fine[None])
    return np.stack([(distance < radius).reshape(size, 4, size, 4).mean((1, 3)) for radius in (_DOT, _DOT - 1.2)])


def _blend(canvas: Picture, x: int, y: int, color: text.Color) -> None:
    """A dot with a white edge."""
    part = canvas[y - _DOT : y + _DOT + 1, x - _DOT : x + _DOT + 1]
    for opacity, shade in zip(_disc()[..., None], ((255, 255, 255), color), strict=True):
        part[:] = (part * (1 - opacity) + np.array(shade) * opacity).round()


def _importance(panel: FeaturesPanel, tracks: Sequence[Track], notes: Notes) -> Picture:
    measure = panel.measure if len(tracks) < 2 else "share of mean |a|"
    canvas = notes.canvas(lambda canvas: notes.width - MARGIN - text.width(measure, LETTERS))
    write_right(canvas, measure, notes.width - MARGIN, MARGIN)
    strengths = torch.stack([_strength(track.values) for track in tracks])
    shares = strengths / strengths.sum(1, keepdim=True).clamp(min=torch.finfo(strengths.dtype).tiny)
    shown = _strongest(shares.mean(0), _MOST)
    several = len(tracks) > 1
    left = MARGIN + _names_width(panel.names, notes.width, share=0.34 if several else 0.43) + 2 * GAP
    top = TOP + PITCH * max((len(track.label) for track in tracks), default=0)
    pitch = min((HEIGHT - top - MARGIN) // len(shown), 2 * PITCH)
    each = (notes.width - MARGIN - left) // len(tracks)
    for line, unit in enumerate(shown):
        write(canvas, panel.names[unit], MARGIN, top + line * pitch, BLACK, left - GAP - MARGIN)
    for t, track in enumerate(tracks):
        x, numbers = left + t * each, [f"{share:.0%}" for share in shares[t].tolist()]
        if not several:
            numbers = [brief(value) for value in strengths[t].tolist()]
        for i, words in enumerate(track.label):
            short = words if text.width(words, LETTERS) <= each - GAP else words.removeprefix("epoch ")
            write(canvas, short, x, TOP + i * PITCH, GRAY, each - GAP)
        space = each - 3 * GAP - max(text.width(numbers[unit], LETTERS) for unit in shown)
        for line, unit in enumerate(shown):
            y, length = top + line * pitch, round(float(shares[t, unit] / shares[t].max().clamp(min=1e-30)) * space)
            canvas[y + 4 : y + PITCH - 3, x : x + length] = _MUTED
            write(canvas, numbers[unit], x + length + GAP, y)
    return canvas


class _Bar(NamedTuple):
    """The bar of a feature, with its value in words."""

    name: str
    text: str
    value: float
    start: float = 0.0


def _bars(panel: FeaturesPanel, sample: int, values: Tensor, most: int, base: float | None) -> list[_Bar]:
    """At most so many features of a sample, the strongest first; with ``base`` they add up from there, together with all others."""
    known = _finite(values)
    if not known.isfinite().any():
        return []
    texts = panel.texts[sample] if panel.texts else [""] * len(known)
    units = int(known.isfinite().sum())
    others = base is not None and units > most
    shown = _strongest(known.abs().nan_to_num(-1.0), min(units, most - others))
    bars = [_Bar(panel.names[i], texts[i], float(known[i])) for i in shown]
    if others:
        bars.append(_Bar(f"{units - len(shown)} others", "", float(known.nansum()) - sum(bar.value for bar in bars)))
    if base is None:
        return bars
    starts = base + np.cumsum([0.0, *(bar.value for bar in reversed(bars))])
    return [bar._replace(start=float(start)) for bar, start in zip(bars, starts[-2::-1], strict=True)]


def _span(bars: Sequence[_Bar]) -> tuple[float, float]:
    """The limits of bars; with zero, unless they add up from elsewhere."""
    ends = [end for bar in bars for end in (bar.start, bar.start + bar.value)] or [0.0]
    return min(ends), max(ends)


def _by_sample(panel: FeaturesPanel, values: Tensor, notes: Notes, stacked: bool) -> list[Page]:
    samples, known = range(len(values)), len(notes.outputs) > 0
    totals = _finite(values).nansum(1)
    bases = [(float(notes.outputs[i] - totals[i]) if known else 0.0) if stacked else None for i in samples]
    bars = [_bars(panel, i, values[i], _OF_SAMPLE - stacked, bases[i]) for i in samples]
    spans = [_span(each) for each in bars]
    if notes.scale == "all":
        spans = [(min(low for low, _ in spans), max(high for _, high in spans))] * len(spans)
    groups = [samples[i : i + _SAMPLES] for i in range(0, len(samples), _SAMPLES)]
    return [partial(_samples, panel, values, bars, spans, notes, group, stacked) for group in groups]


def _samples(
    panel: FeaturesPanel,
    values: Tensor,
    bars: Sequence[Sequence[_Bar]],
    spans: Sequence[tuple[float, float]],
    notes: Notes,
    group: range,
    stacked: bool,
) -> Picture:
    # Bars have a length and two colors, which no value sets.
    canvas = notes.canvas(lambda canvas: color_bar(canvas, *notes.ends, sign_table("all")))
    height = (HEIGHT - TOP) // _SAMPLES
    for i, sample in enumerate(group):
        y, found = TOP + i * height, bars[sample]
        notes.title(canvas, sample, [values[sample]], MARGIN, y, notes.width - 2 * MARGIN)
        axis, ends = _draw_bars(canvas, panel, found, y + PITCH + 2, LETTERS, spans[sample])
        if stacked and found:
            start, end = found[-1].start, found[0].start + found[0].value
            places = sorted([(axis(start), f"f-Σ {brief(start)}"), (axis(end), f"f {brief(end)}")])
            _write_side_by_side(canvas, places, ends, y + PITCH + 2 + len(found) * PITCH - 2)
    return canvas


def _write_side_by_side(canvas: Picture, places: Sequence[tuple[int, str]], ends: tuple[int, int], y: int) -> None:
    """Two words, each below its x as far as they do not overlap."""
    (x, first), (_, second) = places
    widths = [text.width(words, LETTERS) for words in (first, second)]
    x = min(max(x - widths[0] // 2, ends[0]), ends[1] - sum(widths) - 2 * GAP)
    write(canvas, first, x, y)
    after = min(max(places[1][0] - widths[1] // 2, x + widths[0] + 2 * GAP), ends[1] - widths[1])
    write(canvas, second, after, y)


def _draw_bars(
    canvas: Picture, panel: FeaturesPanel, bars: Sequence[_Bar], y: int, letters: int, span: tuple[float, float]
) -> tuple[Callable[[float], int], tuple[int, int]]:
    """A line for each bar: name, value in words, bar and number. Returns the axis, and where it may be written on."""
    width, pitch = canvas.shape[1], round(PITCH * letters / LETTERS)
    names = _names_width([*panel.names, "99 others"], min(width, WIDTH * letters / LETTERS), letters)
    numbers = max((text.width(brief(bar.value), letters) for bar in bars), default=0)
    texts = min(max((text.width(bar.text, letters) for bar in bars), default=0), int(0.17 * width))
    left = MARGIN + names + GAP + texts + 2 * GAP
    axis = _axis(span, left, width - MARGIN - numbers - 2 * GAP)
    if not bars:
        return axis, (left, width)
    canvas[y : y + pitch * len(bars), axis(max(min(bars[-1].start, span[1]), span[0]))] = LINE
    for line, bar in enumerate(bars):
        top, start, end = y + line * pitch, axis(bar.start), axis(bar.start + bar.value)
        _write(canvas, bar.name, MARGIN, top, letters, names, BLACK)
        shown = text.shorten(bar.text, letters, texts)
        _write(canvas, shown, left - 2 * GAP - text.width(shown, letters), top, letters, texts, GRAY)
        low, high = min(start, end), max(start, end)
        canvas[top + 4 : top + pitch - 3, low : max(high, low + 1)] = _POSITIVE if bar.value > 0 else _NEGATIVE
        if line and bars[line].start + bars[line].value == bars[line - 1].start != 0:
            canvas[top - 4 : top + 5, end] = GRAY
        words = brief(bar.value)
        _write(canvas, words, width - MARGIN - text.width(words, letters), top, letters, numbers, GRAY)
    return axis, (left, width - MARGIN)


def _write(canvas: Picture, words: str, x: int, y: int, letters: int, space: int, color: text.Color) -> None:
    text.write(canvas, text.shorten(words, letters, space), x, y, letters, color)
