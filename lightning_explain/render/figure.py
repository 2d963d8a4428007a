"""A report and its probe in; the pages of every method, or the picture of one sample, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.naming import nearest
from lightning_explain.core.panels import FeaturesPanel, Panel, SeriesPanel, WordsPanel
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.modalities import of_probe
from lightning_explain.modalities.image import KINDS
from lightning_explain.render import bars, beside, boxes, horizon, kinds, texts
from lightning_explain.render.captions import Caption, captions
from lightning_explain.render.color import sign_table
from lightning_explain.render.drawn import (
    DrawnInput,
    GridPanel,
    as_pictures,
    check_samples,
    drawn_inputs,
    joined,
    map_key,
    panels_of,
    pixels_of,
    resize,
)
from lightning_explain.render.explained import sides
from lightning_explain.render.history import PictureHistory, Snapshot
from lightning_explain.render.image import HEAT_KINDS, normalize, smooth
from lightning_explain.render.image import panel as image_panel
from lightning_explain.render.layout import BLACK, GAP
from lightning_explain.render.legend import Legend
from lightning_explain.render.notes import Notes, Page, Track
from lightning_explain.render.options import Options, PanelStyle
from lightning_explain.render.page import LETTERS, ROWS, WIDTH, Layout, Row, brief, fits_beside, lines_of
from lightning_explain.render.regions import LABEL_INK, PREDICTION_INK

OVERVIEW, HISTORY = "overview", "history"
"""The keys of the picture of several methods, and of those over epochs."""
_WORDS = {
    "original_image": "image",
    "heat_map": "map",
    "blended_heat_map": "overlay",
    "masked_image": "masked",
    "channels": "channels",
}
_PREFERRED = ("infidelity_relative", "relevance_mass", "sensitivity_max")
_LEVELS = 127
_LINES = 3
"""The most lines beside a row."""
_WITHOUT_PLACE = (*bars.KINDS, "pixels")
_KINDS_WITH_MAP = [kind for kind in KINDS if kind != "original_image"]


def draw(
    report: Report, probe: Probe, options: Options | None = None, history: PictureHistory | None = None
) -> dict[str, Picture]:
    """Draws the maps of every method on pages of one size, 700 x 430, legible when scaled to half of it.

    Samples are columns, with label (above) and prediction: at most four on a page, the next ones on ``/2``, ``/3``. Wrong predictions are
    red and have the sign ✗; if the map is of the one or the other class, that one is underlined. Overlays are smoothed (:func:`smooth`),
    heat maps are not. Beside each map is its largest absolute value, which is the end of its colors, and, if there is one, a score. The
    last line says what the colors mean and which scores are better. Masks are outlined on the original images. Of a segmentation, the
    prediction has a white line around it, the label a green one inside, and the explained pixels a white one on the overlay. Maps without
    a place on an image are bar charts, three on a page.

    Args:
        report: The maps and the model's outputs, samples in the probe's order.
        probe: The inputs, their labels, masks and class names.
        options: How to draw; ``None`` for the defaults.
        history: Earlier explanations of these samples.

    Returns:
        Pictures, uint8 ``(430, 700, 3)``, by key: ``"overview"`` (the images and up to three methods), the name of each method (its
        panels), and ``"history/<method>"`` (first, between, previous and now) where there are earlier maps; with ``/2`` and so on for
        further pages.

    Raises:
        ValueError: If report and probe have different numbers of samples, or ``normalization`` does not fit the
            channels.
    """
    return figure_of(report, probe, options).pictures(history)


def figure_of(report: Report, probe: Probe, options: Options | None = None, width: int = WIDTH) -> Figure:
    """What is to be drawn of a report, once for :meth:`Figure.pictures` and :meth:`Figure.snapshot`. Arguments: :func:`draw`, `Layout`."""
    check_samples(report, probe)
    options = options or Options()
    options.check_kinds(of_probe(probe))
    first = _by_step(report, probe, options)
    entries = options.max_rows * (len(probe) // len(first)) if first else options.max_rows
    inputs = drawn_inputs(probe, options, slice(entries), report.explained)
    names = options.class_names if options.class_names is not None else probe.class_names
    samples = min(len(first), options.max_rows) if first else len(inputs[0].inputs[0])
    found = horizon.captions_of(report, probe.targets)[:samples] if first else captions(report, probe, names, samples)
    maps, own = dict[str, list[tuple[Panel, int]]](), dict[str, list[Panel]]()
    shares, of_input = dict[str, dict[int, float]](), dict[str, list[int]]()
    totals = dict[str, Tensor | None]()
    for name in report.attributions:
        panels = _panels(name, report, inputs, options.of(name), probe.targets)
        shares[name] = beside.shares(panels, inputs)
        totals[name] = torch.stack([*beside.sizes_of(panels).values()]).sum(0) if shares[name] else None
        panels = beside.joined_panels(panels, inputs)
        if first:
            panels = [(horizon.by_step(each, report), i) for each, i in panels if isinstance(each, SeriesPanel)]
        own[name] = [panel for panel, _ in panels if panel.kind in kinds.KINDS]
        of_input[name] = [i for panel, i in panels if panel.kind in kinds.KINDS]
        maps[name] = [(panel, i) for panel, i in panels if panel.kind not in kinds.KINDS]
    charts = any(panel.kind in bars.KINDS for panels in maps.values() for panel, _ in panels)
    images = max(1, len(beside.images_of(inputs)))
    layout = Layout(samples, charts, options.titles, options.colorbar, width, images)
    together = beside.joined_images(inputs)
    fitted = [x if x.images is None else x.at(layout.fitted((x.images.shape[2], x.images.shape[3]))) for x in together]
    # Values and scores are of single steps.
    shown = replace(report, values=report.values[:0], scores={}) if first else report
    heads = {
        name: [_head(inputs[i], shares[name].get(i)) if len(inputs) > 1 else "" for i in of_input[name]] for name in own
    }
    lines = {name: _lines(inputs, shares[name]) for name in maps}
    said = sides(report, probe, names)
    return Figure(shown, options, layout, tuple(found), said, fitted, maps, own, heads, lines, totals)


def _head(drawn: DrawnInput, share: float | None) -> str:
    """How much of a map lies on an input, if that is known, and its name."""
    return drawn.name if share is None else f"{share:.0%} {drawn.name}"


def _lines(inputs: Sequence[DrawnInput], shares: Mapping[int, float]) -> dict[int, tuple[str, ...]]:
    """By the place of an input that has rows: what is said beside its map; for all images that are side by side, two lines."""
    places = beside.images_of(inputs)
    found = dict[int, tuple[str, ...]]()
    if len(inputs) > 1:
        found |= {i: _fitting(_head(drawn, shares.get(i))) for i, drawn in enumerate(inputs)}
    if places:
        each = [_head(inputs[i], shares.get(i)) for i in places]
        fits = len(each) == 2 and all(_fitting(words) == (words,) for words in each)
        # Where the names are too long, the order of the images tells which share is whose.
        short = [f"{100 * shares[i]:.0f}" if i in shares else inputs[i].name for i in places]
        joint = " | ".join(short) + "%" * all(i in shares for i in places)
        found[places[0]] = tuple(each) if fits else (joint,)
    return found


def _fitting(words: str) -> tuple[str, ...]:
    """Words beside a row, in two lines where they do not fit in one: ``("79% on", "clinical")``."""
    share, _, name = words.partition("% ")
    return (words,) if not name or fits_beside(words) else (f"{share}% on", name)


def _by_step(report: Report, probe: Probe, options: Options) -> list[int]:
    """The first entry of each sample, if its steps are drawn as one map of steps and lags; else nothing.

    Raises:
        ValueError: If that is asked for, and the report has no maps of single steps.
    """
    named = {kind for name in report.attributions for kind, _ in options.of(name).panels}
    first = horizon.firsts(report)
    if "horizon" in named and (not first or "series" in named):
        raise ValueError(
            'panels names "horizon", which needs a map of each step of a forecast, and no "series" beside it; '
            'give target=Horizon("each").'
        )
    of_series = all("horizon" in modality.kinds for modality in of_probe(probe))
    return first if "horizon" in named or (of_series and "series" not in named) else []


def _panels(
    name: str, report: Report, inputs: Sequence[DrawnInput], style: PanelStyle, labels: Tensor | None
) -> list[tuple[Panel, int]]:
    """The panels of a method, each with the place of its input among ``inputs``; of the bar charts, the one with names."""
    shown = joined([panels_of(name, report, drawn, style)[0] for drawn in inputs])
    found = [(panel, i) for i, panels in enumerate(shown) for panel in panels]
    samples = inputs[0].samples
    labels = None if labels is None else labels[samples].cpu()
    step = report.explained["step"][samples] if "step" in report.explained else None
    return [
        (panel.with_forecast(report.outputs[samples], labels, step) if isinstance(panel, SeriesPanel) else panel, i)
        for panel, i in found
        if panel.kind != "profile"
    ]


@dataclass(frozen=True, eq=False)
class _Map:
    """A map at the size of its panel: int8 weights ``(N, h, w)`` times 127, and its largest absolute values ``(N,)``."""

    weights: Tensor
    largest: Tensor


@dataclass(frozen=True, eq=False)
class Figure:
    """Everything that the pages of a report show.

    Args:
        report: The maps and scores.
        options: How to draw.
        layout: Where everything is.
        captions: Of all samples that are drawn.
        sides: What the signs of all maps mean.
        inputs: At the size of panels.
        panels: By method, each with the place of its input.
        own: By method, the panels that have pages of their own.
        heads: By method, for each of these panels the name of its input, where there are several, and how much of the map lies on it.
        lines: The same by method and place of an input, for its rows.
        totals: By method, the sum of the absolute map of each sample over several inputs, ``(N,)``; ``None`` if it lies on one.
    """

    report: Report
    options: Options
    layout: Layout
    captions: tuple[Caption, ...]
    sides: tuple[str, str, str]
    inputs: Sequence[DrawnInput]
    panels: Mapping[str, Sequence[tuple[Panel, int]]]
    own: Mapping[str, Sequence[Panel]]
    heads: Mapping[str, Sequence[str]]
    lines: Mapping[str, Mapping[int, tuple[str, ...]]]
    totals: Mapping[str, Tensor | None]

    def count(self, history: PictureHistory | None = None, further: bool = True) -> int:
        """How many pictures there are, with or without further pages."""
        own, rows = self._own_of_all(history), self._row_counts(history)
        counts = [len(own[key]) + self.layout.count(rows[key]) for key in rows]
        return sum(counts) if further else sum(count > 0 for count in counts)

    def pictures(
        self, history: PictureHistory | None = None, most: int | None = None, further: bool = True
    ) -> dict[str, Picture]:
        """The first ``most`` pictures by key, the most important ones first, with or without further pages; see :func:`draw`."""
        found: dict[str, Picture] = {}
        own = self._own_of_all(history)
        for key, make in self._rows_of_all(history).items():
            if most is None or len(found) < most:
                pages = self._pages(key, own[key], make, slice(None if further else 1))
                found |= {f"{key}/{i}" if i > 1 else key: page for i, page in enumerate(pages, start=1)}
        return dict(islice(found.items(), most))

    def picture(self, name: str, history: PictureHistory | None = None) -> Picture:
        """The picture with this key alone.

        Raises:
            ValueError: If there is none.
        """
        rows = self._rows_of_all(history)
        key, _, page = (name, "", "1") if name in rows else name.rpartition("/")
        found = []
        if key in rows and page.isdecimal() and int(page):
            found = self._pages(key, self._own_of_all(history)[key], rows[key], slice(int(page) - 1, int(page)))
        if not found:
            raise ValueError(f"There is no picture {name!r} of this report: {nearest(name, list(rows))}")
        return found[0]

    def _rows_of_all(self, history: PictureHistory | None) -> dict[str, Callable[[], list[Row]]]:
        """What makes the rows of each picture, by key."""
        rows: dict[str, Callable[[], list[Row]]] = {OVERVIEW: self._overview}
        rows |= {name: partial(self._rows, name) for name in self.panels}
        earlier = self._earlier(history).items()
        return rows | {f"{HISTORY}/{name}": partial(self._over_time, name, past) for name, past in earlier}

    def _row_counts(self, history: PictureHistory | None) -> dict[str, int]:
        """How many rows each picture has."""
        most = {name: ROWS * (len(panels) > 0) for name, panels in self.panels.items()}
        counts = {OVERVIEW: max(most.values(), default=0)}
        counts |= {name: len(found) + self._plain_first(name) for name, found in self.panels.items()}
        return counts | {f"{HISTORY}/{name}": most[name] for name in self._earlier(history)}

    def _own_of_all(self, history: PictureHistory | None) -> dict[str, list[Page]]:
        """The pages of the panels that have their own, by key; an empty list for pictures without any."""
        shown = [(name, panels[0]) for name, panels in self.own.items() if panels][: ROWS - 1]
        pages: dict[str, list[Page]] = {OVERVIEW: []}
        if shown:
            # A method may have no map for one of several tables; it has its own pages.
            units = max(panel.values.shape[1] for _, panel in shown if panel.kind == shown[0][1].kind)
            alike = [(n, p) for n, p in shown if p.kind == shown[0][1].kind and p.values.shape[1] == units]
            tracks = [Track(lines_of(name), panel.values) for name, panel in alike]
            name = alike[0][0] if len(alike) == 1 else OVERVIEW
            pages[OVERVIEW] = kinds.KINDS[alike[0][1].kind].several(alike[0][1], tracks, self._notes(name))
        for name, panels in self.own.items():
            track = [[Track((), panel.values)] for panel in panels]
            found = zip(panels, track, self.heads[name], strict=True)
            made = [kinds.KINDS[panel.kind].pages(panel, each, self._notes(name, head)) for panel, each, head in found]
            pages[name] = [*chain(*made), *self._of_classes(name)]
        for name, past in self._earlier(history).items():
            pages[f"{HISTORY}/{name}"] = [] if self.panels[name] else self._own_over_time(name, past)
        return pages

    def _of_classes(self, name: str) -> list[Page]:
        """The strongest words of each class, for a map of words."""
        panel = self._words(name)
        found = None if panel is None else texts.of_classes(panel, self.captions)
        if found is None:
            return []
        notes = replace(self._notes(name), captions=found[1], outputs=self.report.values[:0], scores=None)
        return kinds.KINDS["features"].pages(found[0], [Track((), found[0].values)], notes)

    def _words(self, name: str) -> WordsPanel | None:
        return next((panel for panel in self.own[name] if isinstance(panel, WordsPanel)), None)

    def texts(self, form: str) -> dict[str, str]:
        """By method, its map of words as ``"html"`` or ``"markdown"``, with the strongest words of each class; none for other maps."""
        written = {"html": texts.as_html, "markdown": texts.as_markdown}[form]
        captions, when = self.captions if self.layout.titles else (), self.snapshot.when
        shown = {name: panel for name in self.own if (panel := self._words(name)) is not None}
        return {name: written(panel, captions, f"{name}, {when}") for name, panel in shown.items()}

    def _own_over_time(self, name: str, earlier: Sequence[Snapshot]) -> list[Page]:
        panel, found = self.own[name][0], [*earlier, self.snapshot]
        tracks = [
            Track((word, past.when), kinds.recalled(past.weights[name], past.largest[name], panel))
            for word, past in zip(_moments(len(found)), found, strict=True)
        ]
        return kinds.KINDS[panel.kind].several(panel, tracks, self._notes(name))

    def _notes(self, name: str, of_input: str = "") -> Notes:
        captions = self.captions if self.layout.titles else ()
        scale, width = self.options.scale, self.layout.width
        return Notes(
            f"{name}, {of_input}" if of_input else name,
            self.snapshot.when,
            captions,
            self.report.values,
            self.sides,
            scale,
            width,
            self._score,
            self._scores(name),
        )

    def _pages(self, key: str, own: Sequence[Page], make: Callable[[], list[Row]], which: slice) -> list[Picture]:
        rows = make()
        others = [partial(self._page, key, rows, i) for i in range(self.layout.count(len(rows)))]
        pages: list[Page] = [*own, *others] if self.inputs[0].images is None else [*others, *own]
        return [draw() for draw in pages[which]]

    def _page(self, key: str, rows: list[Row], i: int) -> Picture:
        head = self._head if key == OVERVIEW else lines_of(key.removeprefix(f"{HISTORY}/"))
        better = None if self.report.run is None else self.report.run.higher_is_better.get(self._score)
        (page,) = self.layout.pages(head, self.captions, rows, slice(i, i + 1))
        if self.layout.notes:
            Legend(self.sides, self._score, better).write(page, rows)
        return page

    @property
    def _head(self) -> tuple[str, ...]:
        """What stands at the left of the captions on the overview."""
        judged = all(caption.short.judged for caption in self.captions)
        return ("label", "predicted") if judged and self.inputs[0].images is not None else (self.snapshot.when,)

    def _earlier(self, history: PictureHistory | None) -> dict[str, list[Snapshot]]:
        """The earlier maps of each method that has any."""
        if history is None or history.fingerprint != self.report.fingerprint:
            return {}
        past = {name: [each for each in history.kept if name in each.weights] for name in self.snapshot.weights}
        return {name: found for name, found in past.items() if found}

    @cached_property
    def snapshot(self) -> Snapshot:
        """The maps of this report, for the pictures of later ones."""
        shown = {name: self._main(name) for name in self.panels}
        maps = {
            name: self._maps[name, map_key(found[0]), found[1]]
            for name, found in shown.items()
            if found is not None and found[0].kind in _KINDS_WITH_MAP
        }
        kept = {name: (found.weights, found.largest) for name, found in maps.items()}
        kept |= {name: kinds.remembered(own[0]) for name, own in self.own.items() if own and not self.panels[name]}
        none = torch.full((self.layout.samples,), torch.nan)
        return Snapshot(
            self.report.epoch,
            self.report.step,
            {name: weights for name, (weights, _) in kept.items()},
            {name: largest for name, (_, largest) in kept.items()},
            {name: none if (scores := self._scores(name)) is None else scores for name in kept},
        )

    @cached_property
    def _maps(self) -> dict[tuple[str, str, int], _Map]:
        """The maps that have a place on an image, by method, sign and input."""
        found = {}
        for name, panels in self.panels.items():
            for panel, i in panels:
                key, drawn = (name, map_key(panel), i), self.inputs[i]
                if panel.kind in _KINDS_WITH_MAP and key not in found:
                    drawn.check_pixels(panel.kind)
                    found[key] = _map(panel.values, panel.sign, self.options.of(name).outlier_perc, drawn.size)
        return found

    @cached_property
    def _score(self) -> str:
        """The name of the score that is shown; an empty string if there is none."""
        return next((score for score in (*_PREFERRED, *self.report.scores) if self.report.scores.get(score)), "")

    def _scores(self, name: str) -> Tensor | None:
        found = self.report.scores.get(self._score, {}).get(name)
        return None if found is None else found[: self.layout.samples].float()

    def _main(self, name: str) -> tuple[Panel, int] | None:
        """The panel that shows a method best: its overlay, or else its last one."""
        panels = self.panels[name]
        return next((found for found in panels if found[0].kind == "blended_heat_map"), panels[-1] if panels else None)

    def _overview(self) -> list[Row]:
        shown = [(name, found) for name in self.panels if (found := self._main(name)) is not None][: ROWS - 1]
        images = self.inputs[0].images is not None and len(shown) > 0
        rows = [self._image_row(("image", self.snapshot.when), 0)] if images else []
        count = len(rows) + len(shown)
        labels = {name: self._label(name, *found) for name, found in shown}
        rows += [self._row(name, *found, labels[name], count, True) for name, found in shown]
        tables = [row for name, _ in shown[::-1] for row in self._strongest(name, lines_of(name)[:1])]
        return [*rows, *tables[:1]][: max(ROWS, len(rows))]

    def _label(self, name: str, panel: Panel, i: int) -> tuple[str, ...]:
        """The name of a method, and how much of its map lies on the input that a row shows."""
        further = () if panel.kind in _WITHOUT_PLACE else self.lines[name].get(i, ())
        return (*lines_of(name), *further)[:_LINES]

    def _rows(self, name: str) -> list[Row]:
        rows, numbered, panels = list[Row](), set[tuple[str, int]](), self.panels[name]
        if self._plain_first(name):
            rows.append(self._image_row(("image", self.snapshot.when), 0))
        for panel, i in panels:
            several = () if panel.kind in _WITHOUT_PLACE else self.lines[name].get(i, ())
            if panel.kind == "original_image" and i in beside.images_of(self.inputs):
                names = " | ".join(self.inputs[k].name for k in beside.images_of(self.inputs))
                several = (names,) if fits_beside(names) else ()
            elif panel.kind == "original_image" and len(several) > 1:
                several = several[1:]
            when = () if rows else (self.snapshot.when,)
            sign = () if panel.sign == "all" else (panel.sign.replace("_", " "),)
            words = () if panel.kind in bars.KINDS else (_WORDS.get(panel.kind, panel.title),)
            label = (*words, *sign, *several, *when)
            count = min(len(panels) + self._plain_first(name), ROWS)
            rows.append(self._row(name, panel, i, label, count, (map_key(panel), i) not in numbered))
            if panel.kind in _KINDS_WITH_MAP:
                numbered.add((map_key(panel), i))
        return [*rows, *self._strongest(name, ())][: max(ROWS, len(rows))]

    def _plain_first(self, name: str) -> bool:
        """Whether the images are drawn above a map that lies on none of them."""
        return self.inputs[0].images is not None and any(isinstance(panel, GridPanel) for panel, _ in self.panels[name])

    def _strongest(self, name: str, label: tuple[str, ...]) -> list[Row]:
        """A row with the strongest columns of a table beside images, or bands of them; the pages of all of them come after."""
        own = zip(self.own[name], self.heads[name], strict=True)
        found = next(((panel, head) for panel, head in own if isinstance(panel, FeaturesPanel)), None)
        if found is None or self.inputs[0].images is None or not self.panels[name]:
            return []
        panel, head = found
        most = self.layout.box()[0], self.layout.pitch - GAP
        chart = bars.behind(panel, most, LETTERS, self.totals[name])
        return [Row((*label, *_fitting(head or panel.title))[:_LINES], pixels=chart)]

    def _over_time(self, name: str, earlier: Sequence[Snapshot]) -> list[Row]:
        panel, i = self._main(name) or (None, 0)
        if panel is None:
            return []
        found = [*earlier, self.snapshot]
        words = _moments(len(found))
        rows = [
            Row(
                (past.when or word,),
                self._score,
                self._pixels(name, panel, i, past.weights[name]),
                past.largest[name],
                past.scores[name],
                self._colors(name, panel),
                panel.sign,
            )
            for word, past in zip(words, found, strict=True)
        ]
        # The latest stays in the last row.
        return [*rows[:-1], *[Row(())] * (ROWS - len(rows)), rows[-1]]

    def _image_row(self, label: tuple[str, ...], i: int) -> Row:
        drawn = self.inputs[i]
        if drawn.boxes:
            names, inks = zip(*(boxes.INKS[color] for _, color in drawn.boxes), strict=True)
            return Row((*label[-1:], *names), pixels=drawn.original, inks=(BLACK, *inks))
        if drawn.regions is None:
            return Row(label, pixels=drawn.original)
        overlap = self.report.explained.get("overlap", torch.empty(0))[: self.layout.samples].tolist()
        words = [("label", LABEL_INK)] * (len(overlap) > 0) + [("predicted", PREDICTION_INK)]
        beside = [() if math.isnan(share) else ("IoU", brief(share)) for share in overlap]
        inks = (BLACK, *(color for _, color in words))
        return Row((*label[-1:], *(word for word, _ in words)), pixels=drawn.original, inks=inks, beside=beside)

    def _row(self, name: str, panel: Panel, i: int, label: tuple[str, ...], rows: int, numbers: bool) -> Row:
        if panel.kind == "original_image":
            return self._image_row(label, i)
        if panel.kind in bars.KINDS:
            chart = bars.chart(panel, self.layout.box(rows), LETTERS)
            return Row(label, pixels=chart, colors=sign_table("all"))
        if isinstance(panel, GridPanel):
            table = sign_table("all")
            return Row(label, pixels=self._own_pixels(panel), largest=panel.largest, colors=table)
        if panel.kind == "pixels":
            return Row(label, pixels=self._own_pixels(panel))
        found = self._maps[name, map_key(panel), i]
        pixels, scores = self._pixels(name, panel, i, found.weights), self._scores(name) if numbers else None
        return Row(
            label,
            self._score if scores is not None else "",
            pixels,
            found.largest if numbers else None,
            scores,
            self._colors(name, panel),
            panel.sign,
        )

    def _colors(self, name: str, panel: Panel) -> Tensor | None:
        return sign_table(panel.sign, self.options.of(name).cmap) if panel.kind in HEAT_KINDS else None

    def _own_pixels(self, panel: Panel) -> NDArray[np.uint8]:
        values = panel.values.permute(0, 3, 1, 2).float()
        return as_pictures(resize(values, self.layout.fitted((values.shape[2], values.shape[3]))).round())

    @cached_property
    def _overlays(self) -> dict[tuple[str, str, str, int], NDArray[np.uint8]]:
        """The panels of this report's maps that are drawn already: the overview, a method's pages and its history show the same."""
        return {}

    def _pixels(self, name: str, panel: Panel, i: int, weights: Tensor) -> NDArray[np.uint8]:
        if weights is not self._maps[name, map_key(panel), i].weights:
            return self._painted(name, panel, i, weights)
        key = name, panel.kind, panel.sign, i
        if key not in self._overlays:
            painted = self._painted(name, panel, i, weights)
            self._overlays[key] = self.inputs[i].with_marks(panel.kind, painted)
        return self._overlays[key]

    def _painted(self, name: str, panel: Panel, i: int, weights: Tensor) -> NDArray[np.uint8]:
        drawn, style = self.inputs[i], self.options.of(name)
        assert drawn.images is not None
        values = weights.float() / _LEVELS
        if values.shape[1:] != drawn.size:
            values = resize(values[:, None], drawn.size)[:, 0]
        values = smooth(values) if panel.kind == "blended_heat_map" else values
        found = image_panel(panel.kind, panel.sign, drawn.images, values, style.cmap, style.alpha_overlay)
        return as_pictures(found)


def _moments(count: int) -> list[str]:
    """What each of the explanations of a history is; there are at least two."""
    return ["first", *["between"] * (count - 3), *["previous"] * (count > 2), "now"]


def _map(values: Tensor, sign: str, outlier_perc: float, size: tuple[int, int]) -> _Map:
    """A map ``(N, 1, H, W)`` at the size of its panel; of a larger map, each pixel is the mean of what it covers."""
    summed = values.detach().sum(1, keepdim=True).float()
    largest, known = summed.abs().amax((1, 2, 3)), summed.nan_to_num(0.0, 0.0, 0.0)
    smaller = size[0] < values.shape[2] or size[1] < values.shape[3]
    weights = normalize(resize(known, size) if smaller else known, sign, outlier_perc)
    enlarged = weights if smaller else resize(weights[:, None], size)[:, 0]
    return _Map((enlarged * _LEVELS).round().to(torch.int8), largest)


def draw_sample(report: Report, probe: Probe, options: Options, method: str, index: int) -> Picture:
    """Draws the panels of one sample side by side, without words.

    Args:
        report: The maps, samples in the probe's order.
        probe: The inputs.
        options: How to draw.
        method: Name of a method in the report.
        index: The sample's place in the probe, from 0.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    style, panels = options.of(method), list[Picture]()
    inputs = drawn_inputs(probe, options, slice(index, index + 1), report.explained)
    shown = joined([panels_of(method, report, drawn, style)[0] for drawn in inputs])
    for drawn, found in zip(inputs, shown, strict=True):
        normalized: dict[str, Tensor] = {}
        panels += [pixels_of(panel, drawn, normalized, style)[0] for panel in kinds.of_samples(found)]
    height = max(len(panel) for panel in panels)
    canvas = np.full((height, sum(panel.shape[1] + GAP for panel in panels) - GAP, 3), 255, dtype=np.uint8)
    x = 0
    for panel in panels:
        canvas[: len(panel), x : x + panel.shape[1]] = panel
        x += panel.shape[1] + GAP
    return canvas
