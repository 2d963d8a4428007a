"""The figures of several targets in; their pictures together, each with the captions of its own target, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from lightning_explain.core.naming import nearest
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Picture, Report, fitting_names
from lightning_explain.render.figure import OVERVIEW, Figure, figure_of
from lightning_explain.render.history import PictureHistory, Snapshot
from lightning_explain.render.options import Options
from lightning_explain.render.page import WIDTH


def figures_of(
    report: Report, probe: Probe, options: Options | None = None, width: int = WIDTH
) -> Figure | FiguresByTarget:
    """What is to be drawn of a report; of several targets, the figure of each. Arguments: as for ``figure_of``."""
    if not report.by_target:
        return figure_of(report, probe, options, width)
    options, found = options or Options(), {}
    for name in report.by_target:
        one = replace(report, probe=probe).of_target(name)
        assert one.probe is not None
        own = replace(options, class_names=fitting_names(options.class_names, one.outputs))
        found[name] = figure_of(one, one.probe, own, width)
    return FiguresByTarget({name: figure for name, figure in found.items() if figure.panels or figure.own})


@dataclass(frozen=True, eq=False)
class FiguresByTarget:
    """The pictures of several targets: an overview of each, ``overview@age``, and the pictures of its methods.

    Args:
        figures: By the name of the target.
    """

    figures: Mapping[str, Figure]

    def count(self, history: PictureHistory | None = None, further: bool = True) -> int:
        """How many pictures there are, with or without further pages."""
        return sum(figure.count(history, further) for figure in self.figures.values())

    def pictures(
        self, history: PictureHistory | None = None, most: int | None = None, further: bool = True
    ) -> dict[str, Picture]:
        """The first ``most`` pictures by key: those of all targets in turns, so that the overviews come first."""
        found = [
            [(_named(key, name), picture) for key, picture in figure.pictures(history, most, further).items()]
            for name, figure in self.figures.items()
        ]
        longest = max(map(len, found), default=0)
        ordered = [pictures[i] for i in range(longest) for pictures in found if i < len(pictures)]
        return dict(islice(ordered, most))

    def picture(self, name: str, history: PictureHistory | None = None) -> Picture:
        """The picture with this key alone.

        Raises:
            ValueError: If there is none.
        """
        for target, figure in self.figures.items():
            own = name.replace(f"{OVERVIEW}@{target}", OVERVIEW) if name.startswith(f"{OVERVIEW}@{target}") else name
            if own != name or any(f"{method}" in name.split("/") for method in figure.report.attributions):
                return figure.picture(own, history)
        names = [f"{OVERVIEW}@{target}" for target in self.figures]
        names += [method for figure in self.figures.values() for method in figure.report.attributions]
        raise ValueError(f"There is no picture {name!r} of this report: {nearest(name, names)}")

    def texts(self, form: str) -> dict[str, str]:
        """By method, its map of words as ``"html"`` or ``"markdown"``; none for other maps."""
        return {name: text for figure in self.figures.values() for name, text in figure.texts(form).items()}

    @cached_property
    def snapshot(self) -> Snapshot:
        """The maps of this report, for the pictures of later ones."""
        parts = [figure.snapshot for figure in self.figures.values()]
        first = parts[0] if parts else Snapshot()
        weights, largest, scores = (
            {name: value for part in parts for name, value in getattr(part, kind).items()}
            for kind in ("weights", "largest", "scores")
        )
        return Snapshot(first.epoch, first.step, weights, largest, scores)


def _named(key: str, target: str) -> str:
    first, _, page = key.partition("/")
    return f"{OVERVIEW}@{target}" + (f"/{page}" if page else "") if first == OVERVIEW else key
