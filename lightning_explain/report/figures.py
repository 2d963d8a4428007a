"""Explanations and their samples in; what a page shows of each sample (images, maps, words, features, series), as plain data, out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, adaptive_max_pool1d

from lightning_explain.core.contracts import Modality
from lightning_explain.core.panels import (
    FeaturesPanel,
    FramesPanel,
    HorizonPanel,
    Panel,
    SeriesPanel,
    VolumePanel,
    WordsPanel,
)
from lightning_explain.core.probe import Probe, as_tuple, flat
from lightning_explain.core.regions import LABELLED
from lightning_explain.core.regions import NAME as REGION
from lightning_explain.core.report import Report
from lightning_explain.modalities import Plain, of_probe
from lightning_explain.modalities.image import CHANNELS
from lightning_explain.modalities.image import KINDS as IMAGE_KINDS
from lightning_explain.render import bars, horizon
from lightning_explain.render.boxes import EDGES
from lightning_explain.render.captions import captions
from lightning_explain.render.color import sign_table
from lightning_explain.render.drawn import DrawnInput, drawn_inputs, joined, panels_of, pixels_of, resize
from lightning_explain.render.explained import sides
from lightning_explain.render.image import normalize, to_bytes
from lightning_explain.render.kinds import remembered
from lightning_explain.render.options import Options, PanelStyle
from lightning_explain.render.stored import options_of
from lightning_explain.report.blocks import Blocks, Resolution, numbers

Encoded = dict[str, Any]
"""What JSON can hold."""

MOST_SAMPLES = 64
_MOST_UNITS = 256
_MOST_TIMES = 512
_MOST_SLICES = 64
_IMAGE = 192
"""The most pixels of a side of an original image."""


@dataclass(frozen=True, eq=False)
class Figures:
    """Turns explanations into what a page shows of them.

    Args:
        blocks: Where numbers and pictures go.
        resolution: How fine the maps of images are.
    """

    blocks: Blocks
    resolution: Resolution

    def samples(self, report: Report, probe: Probe | None) -> Encoded:
        """What is shown of the samples themselves: ids, texts about them, and their images, a list for each input that has some.

        A sample with several labels has an entry for each of them; ``"ids"`` are those of samples, ``"entries"`` those of entries.
        """
        every = shown_entries(report, probe)
        shown = every[:MOST_SAMPLES]
        found: Encoded = {
            "ids": report.samples[shown].tolist(),
            "entries": report.ids[shown].tolist(),
            "count": len(every),
            "known": probe is not None,
            "images": [],
        }
        found["about"] = [[f"{name}: {texts[i]}" for name, texts in report.meta.items()] for i in shown]
        # Of a segmentation or a detection, only the label is the same in all explanations.
        labelled = {name: found & LABELLED for name, found in report.explained.items() if name == REGION}
        labelled |= {name: found * torch.nan for name, found in report.explained.items() if name in EDGES}
        for drawn in [] if probe is None else drawn_inputs(probe, _options(report), slice(len(shown)), labelled):
            pictures = () if drawn.images is None else tuple(drawn.at(drawn.size).original)
            found["images"].append([self.blocks.picture(picture) for picture in pictures])
        return found

    def explanation(self, report: Report, probe: Probe | None) -> Encoded:
        """What is shown of one explanation: captions, scores and maps of each sample."""
        if report.by_target:
            return _joined({n: self._of_target(report, n, probe) for n in report.by_target})
        options, blocks = _options(report), len(shown_entries(report, probe))
        steps = len(report.ids) // blocks
        count = min(blocks, MOST_SAMPLES) * steps
        names = options.class_names or (probe and probe.class_names) or (report.run and report.run.class_names) or None
        inputs = [] if probe is None else drawn_inputs(probe, options, slice(count), report.explained)
        labels = None if probe is None or probe.targets is None else probe.targets[:count].cpu()
        titles = captions(report, probe, names, count) if steps == 1 else []
        of_steps = (
            horizon.captions_of(report, probe.targets)[: count // steps] if probe is not None and steps > 1 else []
        )
        methods = {}
        for method in report.attributions:
            scores = {
                score: [
                    numbers(of_samples(by_method[method][:count], steps)),
                    _errors(report, score, method, count, steps),
                ]
                for score, by_method in report.scores.items()
                if method in by_method
            }
            panels = self._panels(method, report, inputs, options.of(method), labels, count)
            methods[method] = {"scores": scores, "panels": panels}
        return {
            "epoch": report.epoch,
            "step": report.step,
            "stage": report.stage,
            "captions": [[list(c.lines), c.wrong] for c in titles]
            + [[[*c.lines[1:], f"scores are means over {steps} steps"], False] for c in of_steps],
            "output": numbers(of_samples(report.values[:count], steps)),
            "sides": list(sides(report, probe, names)),
            "scale": options.scale,
            "methods": methods,
        }

    def _of_target(self, report: Report, name: str, probe: Probe | None) -> Encoded:
        one = replace(report, probe=probe).of_target(name)
        return self.explanation(one, one.probe)

    def _panels(
        self,
        method: str,
        report: Report,
        inputs: Sequence[DrawnInput],
        style: PanelStyle,
        labels: Tensor | None,
        count: int,
    ) -> list[Encoded]:
        """The panels of a method, each once: those that only show the same map in another way are left out."""
        found, of_steps = dict[str, Encoded](), bool(inputs) and _has_steps(report, inputs[0].modalities)
        if not inputs:
            inputs = [DrawnInput(slice(count), (), (), None)]
            shown = [_without_samples(method, report, count)]
        else:
            shown = joined([panels_of(method, report, drawn, style)[0] for drawn in inputs])
        for i, (drawn, panels) in enumerate(zip(inputs, shown, strict=True)):
            for each in panels:
                panel = each
                if isinstance(each, SeriesPanel):
                    ahead = each.with_forecast(report.outputs[:count], labels)
                    panel = horizon.by_step(each, report) if of_steps else ahead
                kind = _kind(panel)
                key = f"{i} {kind} {panel.sign}"
                if kind and key not in found:
                    encoded = self._encoders[kind](self, panel, drawn, style)
                    several = sum(len(panels) > 0 for panels in shown) > 1
                    title = f"{drawn.name}: {panel.title}" if several else panel.title
                    found[key] = {"kind": kind, "title": title, "input": i, "sign": panel.sign, **encoded}
        return list(found.values())

    def _map(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        values = panel.values.detach().sum(1, keepdim=True).float()
        largest, known = values.abs().amax((1, 2, 3)), values.nan_to_num(0.0, 0.0, 0.0)
        height, width = values.shape[2:]
        if max(height, width) > self.resolution.side:
            factor = self.resolution.side / max(height, width)
            known = resize(known, (max(1, round(height * factor)), max(1, round(width * factor))))
        weights = (normalize(known, panel.sign, style.outlier_perc) * self.resolution.levels).round().to(torch.int8)
        colors = to_bytes(sign_table(panel.sign, style.cmap))
        return {
            "values": self.blocks.tensor(weights),
            "levels": self.resolution.levels,
            "largest": numbers(largest),
            "colors": self.blocks.value(colors.flatten().tolist()),
            "opacity": style.alpha_overlay,
        }

    def _words(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        assert isinstance(panel, WordsPanel)
        values, words = self.blocks.tensor(panel.values.float()), self.blocks.value(_listed(panel.words))
        return {"values": values, "words": words, "hint": panel.hint}

    def _features(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        assert isinstance(panel, FeaturesPanel)
        return {
            "values": self.blocks.tensor(panel.values.float()),
            "names": self.blocks.value(list(panel.names)),
            "texts": self.blocks.value(_listed(panel.texts)),
        }

    def _bars(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        values = panel.values.float()
        strongest = values.nan_to_num(0.0).abs().sum(0).argsort(descending=True, stable=True)[:_MOST_UNITS]
        shown = strongest.sort().values
        return {
            "values": self.blocks.tensor(values[:, shown]),
            "names": self.blocks.value([panel.name(unit) for unit in shown.tolist()]),
            "units": values.shape[1],
        }

    def _series(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        assert isinstance(panel, SeriesPanel)
        weights, largest = remembered(panel)
        ahead = {"forecast": panel.predicted, "future": panel.future}
        return {
            **{name: self.blocks.tensor(values.float()) for name, values in ahead.items() if values is not None},
            "values": self.blocks.tensor(weights),
            "levels": 127,
            "largest": numbers(largest),
            "series": self.blocks.tensor(_thinned(panel.series.float())),
            "channels": self.blocks.value(list(panel.channels)),
            "rate": panel.rate,
            "times": panel.series.shape[2],
        }

    def _horizon(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        assert isinstance(panel, HorizonPanel)
        weights, largest = remembered(panel)
        return {
            "values": self.blocks.tensor(weights),
            "levels": 127,
            "largest": numbers(largest),
            "channels": self.blocks.value(list(panel.channels)),
            "steps": self.blocks.value(list(panel.steps)),
            "rate": panel.rate,
            "times": panel.series.shape[2],
        }

    def _picture(self, panel: Panel, drawn: DrawnInput, style: PanelStyle) -> Encoded:
        pictures = {"pictures": [self.blocks.picture(picture) for picture in pixels_of(panel, drawn, {}, style)]}
        if isinstance(panel, VolumePanel):
            return {**pictures, "stack": self._stack(panel.values, panel.volume, "slice")}
        if isinstance(panel, FramesPanel):
            return {**pictures, "stack": self._stack(panel.values, panel.frames.mean(2), "frame")}
        return pictures

    def _stack(self, values: Tensor, shown: Tensor, word: str) -> Encoded:
        """A map and the gray values under it, ``(N, D, H, W)`` each, in no more cells a sample than a map of an image may have."""
        known, places = values.detach().float().nan_to_num(0.0, 0.0, 0.0), values.shape[1]
        depth = min(places, _MOST_SLICES)
        scale = min(1.0, self.resolution.side / math.sqrt(depth * values.shape[2] * values.shape[3]))
        height, width = (max(1, int(side * scale)) for side in values.shape[2:])
        known, gray = (adaptive_avg_pool3d(part, (depth, height, width)) for part in (known, shown.float()))
        largest = flat(known).abs().amax(1).clamp(min=torch.finfo(known.dtype).tiny).reshape(-1, 1, 1, 1)
        return {
            "values": self.blocks.tensor((known / largest * self.resolution.levels).round().to(torch.int8)),
            "levels": self.resolution.levels,
            "shown": self.blocks.tensor((gray.clamp(0, 1) * 255).round().to(torch.uint8)),
            "word": word,
            "places": places,
        }

    _encoders: ClassVar[Mapping[str, Callable[..., Encoded]]] = {
        "map": _map,
        "words": _words,
        "features": _features,
        "bars": _bars,
        "series": _series,
        "horizon": _horizon,
        "picture": _picture,
    }


def _joined(parts: Mapping[str, Encoded]) -> Encoded:
    """The explanations of several targets as one, whose captions have the lines of each; one number f for all of them there is not."""
    first, found = next(iter(parts.values())), [part["captions"] for part in parts.values()]
    captions_of_all = [
        [
            [f"{name}: {line}" for name, (lines, _) in zip(parts, each, strict=True) for line in lines],
            any(w for _, w in each),
        ]
        for each in zip(*found, strict=True)
    ]
    return {
        **first,
        "captions": captions_of_all,
        "output": [None] * len(first["output"]),
        "sides": ["lowers", "raises", "the output"],
        "methods": {method: value for part in parts.values() for method, value in part["methods"].items()},
    }


def _options(report: Report) -> Options:
    """How the run draws, but all samples, with images that are large enough to be seen and no larger."""
    options = Options() if report.run is None else options_of(report.run.drawing)
    return replace(options, max_rows=MOST_SAMPLES, max_pixels=_IMAGE)


def _kind(panel: Panel) -> str:
    """How the page shows a panel; an empty string if another one says the same."""
    classes = {WordsPanel: "words", FeaturesPanel: "features", HorizonPanel: "horizon", SeriesPanel: "series"}
    own = next((kind for cls, kind in classes.items() if isinstance(panel, cls)), "")
    if own:
        return own
    if panel.kind in IMAGE_KINDS:
        return "" if panel.kind in ("original_image", CHANNELS) else "map"
    if panel.kind in bars.KINDS:
        return "bars" if panel.kind == "bars" else ""
    return "picture"


def _without_samples(method: str, report: Report, count: int) -> tuple[Panel, ...]:
    """The panels of a method where the inputs are not known: a map with height and width alone, or else bars."""
    found = tuple(part[:count].detach() for part in as_tuple(report.attributions[method]))
    placed = tuple(part[:count] for part in report.maps.get(method, ()))
    images = report.run is None or "Image" in report.run.modalities
    for part in placed or (() if method in report.maps else found):
        if part.ndim == 4 and images:
            return (Panel("heat map (all)", "heat_map", part),)
    return Plain().panels(found, (), ())


def of_samples(values: Tensor, steps: int) -> Tensor:
    """The mean ``(N,)`` over the steps of each sample of values ``(N * S,)``, of those that are known."""
    return values if steps == 1 else values.reshape(-1, steps).nanmean(1)


def _errors(report: Report, score: str, method: str, count: int, steps: int) -> list[float | None] | None:
    found = report.standard_errors.get(score, {}).get(method)
    return None if found is None else numbers(of_samples(found[:count].square(), steps).div(steps).sqrt())


def _has_steps(report: Report, modalities: Sequence[Modality]) -> bool:
    """Whether the report has a map of each step of a forecast, and all inputs are series that these can be drawn over."""
    return bool(horizon.firsts(report)) and all("horizon" in modality.kinds for modality in modalities)


def shown_entries(report: Report, probe: Probe | None) -> list[int]:
    """The entries that the page has a block for: all of them, or the first of each sample if its steps are drawn as one map."""
    of_steps = probe is not None and _has_steps(report, of_probe(probe))
    return horizon.firsts(report) if of_steps else list(range(len(report.ids)))


def _listed(texts: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(line) for line in texts]


def _thinned(series: Tensor) -> Tensor:
    """Series ``(N, C, T)`` with at most twice as many times as are shown: of each stretch, the smallest and the largest value."""
    if series.shape[2] <= 2 * _MOST_TIMES:
        return series
    known = flat(series).nan_to_num(0.0).reshape(series.shape)
    high, low = adaptive_max_pool1d(known, _MOST_TIMES), -adaptive_max_pool1d(-known, _MOST_TIMES)
    return torch.stack([low, high], 3).flatten(2)
