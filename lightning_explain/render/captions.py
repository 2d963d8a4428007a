"""A report and a probe in; the caption of each sample (label, prediction, explained output) out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.report import Report
from lightning_explain.core.shares import shares_of, sigmoids_of
from lightning_explain.modalities import Text, of_probe
from lightning_explain.model.tasks import unknown
from lightning_explain.render.explained import output_called, shown_task

_MOST = 3
_LEAST_OVERLAP = 0.5
"""The intersection over union below which a segmentation counts as wrong, as PASCAL VOC has it for boxes."""


@dataclass(frozen=True)
class Short:
    """The title of one sample in as few words as possible.

    Args:
        label: The true class; the predicted one if that is unknown.
        predicted: The predicted class, if it is another one.
        share: Its probability.
        judged: Whether the prediction can be right or wrong.
        explained: Which of ``"label"`` and ``"predicted"`` the map is of, where they differ.
    """

    label: str = ""
    predicted: str = ""
    share: str = ""
    judged: bool = False
    explained: str = ""


@dataclass(frozen=True)
class Caption:
    """The title of one sample.

    Args:
        lines: Lines of text, such as ``("label 7 (seven)", "predicted 2 (two) 98%")``.
        wrong: Whether the prediction differs from the label.
        short: The same for narrow columns.
    """

    lines: tuple[str, ...]
    wrong: bool = False
    short: Short = field(default=Short(), compare=False)


def captions(report: Report, probe: Probe | None, class_names: Sequence[str] | None, rows: int) -> list[Caption]:
    """The captions of the first ``rows`` samples, in the words of the model's task (:func:`task_of`).

    Args:
        report: Provides outputs, predictions and explained outputs.
        probe: Provides the labels; ``None`` if they are not known.
        class_names: One name per class index.
        rows: Number of samples.

    Returns:
        One caption per sample. A sample about which nothing is known is named by its id.
    """
    labels = None if probe is None or probe.targets is None else probe.targets.cpu()
    make = _BY_TASK.get(shown_task(report, probe, class_names), _other)
    return [make(_Sample(report, labels, class_names, i, probe)) for i in range(rows)]


def word_at(probe: Probe | None, sample: int, position: int) -> str:
    """The word at a position of a sample of the first text; without one, the position."""
    for x, modality in () if probe is None else zip(as_tuple(probe.inputs), of_probe(probe), strict=True):
        if isinstance(modality, Text) and position < x.shape[1]:
            return modality.words(x[sample : sample + 1])[0][position]
    return f"position {position}"


@dataclass(frozen=True, eq=False)
class _Sample:
    """Sample number ``index`` of a report."""

    report: Report
    labels: Tensor | None
    class_names: Sequence[str] | None
    index: int
    probe: Probe | None

    @property
    def label(self) -> int | None:
        """Its class; ``None`` if the label is unknown or no class."""
        if self.labels is None or self.labels.numel() != len(self.labels) or self.labels.is_complex():
            return None
        found = self.labels.reshape(-1)[self.index].item()
        return int(found) if found >= 0 and float(found).is_integer() else None

    @property
    def explained(self) -> int:
        """The index of the explained output; negative if it has none."""
        return int(self.report.targets[self.index])

    @property
    def number(self) -> tuple[str, str] | None:
        """The explained number and before it its name, in words; ``None`` if it is not known."""
        outputs, values = self.report.outputs, self.report.values
        found = values if len(values) else outputs if outputs[:1].numel() == 1 else None
        name = "error" if self.report.task == "reconstruction" else "f"
        return None if found is None else (name, f"{float(found[self.index]):.3g}")

    @property
    def value(self) -> list[str]:
        """The same as a line, if it is known."""
        return [] if self.number is None else [" = ".join(self.number)]

    def fact(self, name: str) -> float | None:
        """What the report knows of the explained output."""
        found = self.report.explained.get(name)
        return None if found is None else float(found[self.index])

    @property
    def word(self) -> str:
        """The word at the explained position of a text; else the position."""
        return word_at(self.probe, self.index, int(self.fact("position") or 0))

    def named(self, index: int) -> str:
        """The class with its name."""
        name = self.name(index)
        return name if name == str(index) else f"{index} ({name})"

    @property
    def output(self) -> str:
        """The explained output in a sentence."""
        return output_called(self.report, self.probe, self.class_names, self.explained)

    def name(self, index: int) -> str:
        """The name of the class, or its number."""
        names = self.class_names
        return str(names[index] if names is not None and 0 <= index < len(names) else index)


def _multiclass(sample: _Sample) -> Caption:
    label, explained = sample.label, sample.explained
    shares = shares_of(sample.report.outputs)[sample.index]
    predicted = int(sample.report.predictions[sample.index])
    share = percent(float(shares[predicted])) if 0 <= predicted < len(shares) else ""
    lines = [] if label is None else [f"label {sample.named(label)}"]
    lines.append(f"predicted {sample.named(predicted)} {share}".rstrip())
    if explained >= 0 and explained != (predicted if label is None else label):
        lines.append(f"explained {sample.named(explained)}")
    wrong = label is not None and label != predicted
    short = Short(
        label=sample.name(predicted if label is None else label),
        predicted=sample.name(predicted) if wrong else "",
        share=share,
        judged=label is not None,
        explained={label: "label", predicted: "predicted"}.get(explained, "") if wrong else "",
    )
    return Caption(tuple(lines), wrong, short)


def _binary(sample: _Sample) -> Caption:
    share, label = float(sigmoids_of(sample.report.outputs).reshape(-1)[sample.index]), sample.label
    lines = [] if label is None else [f"label {sample.named(label)}"]
    wrong = label is not None and label != (share > 0.5)
    short = Short(
        label="" if label is None else sample.name(label),
        predicted=sample.name(int(share > 0.5)) if wrong else "",
        share=percent(max(share, 1 - share)),
        judged=label is not None,
    )
    return Caption((*lines, f"sigmoid {percent(share)}"), wrong, short)


def _multilabel(sample: _Sample) -> Caption:
    if sample.labels is None or sample.report.outputs.ndim != 2:
        return _other(sample)
    shares, given = sigmoids_of(sample.report.outputs)[sample.index], sample.labels[sample.index].reshape(-1)
    labels, known = given > 0.5, ~unknown(given)
    shown = torch.where(labels | (shares > 0.5), shares + 1, shares).argsort(descending=True, stable=True).tolist()
    if sample.explained >= 0:
        shown = sorted(shown, key=lambda k: k != sample.explained)
    lines = [f"labels {_listed(map(sample.named, labels.nonzero()[:, 0].tolist())) or 'none'}"]
    lines += [f"sigmoid {sample.named(k)} {percent(float(shares[k]))}" for k in shown[:_MOST]]
    lines, most, odd = [*lines, *sample.value], int(shown[0]), (labels != (shares > 0.5)) & known
    share = percent(float(shares[most]))
    if "sample" in sample.report.explained:  # One label of the sample.
        short = Short(label=sample.name(most), share=share, judged=bool(known[most]))
        return Caption(tuple(lines), bool(odd[most]), short)
    names = _listed(map(sample.name, labels.nonzero()[:, 0].tolist())) or "none"
    return Caption(tuple(lines), bool(odd.any()), Short(names, sample.name(most), share, judged=True))


def _regression(sample: _Sample) -> Caption:
    known, step = sample.fact("true"), sample.fact("step")
    if known is not None and len(sample.report.values):
        where = "in all" if step is None else f"at step {int(step)}"
        return _plain(f"true {known:.3g} {where}", f"predicted {float(sample.report.values[sample.index]):.3g}")
    if sample.labels is None:
        return _other(sample)
    pairs = {"true": sample.labels[sample.index], "predicted": sample.report.outputs[sample.index]}
    lines = [f"{word} {_listed(f'{value:.3g}' for value in each.reshape(-1).tolist())}" for word, each in pairs.items()]
    if sample.report.outputs[0].numel() > 1:
        lines += [f"explained {sample.output}"] if sample.explained >= 0 else sample.value
    parts = [each.reshape(-1) for each in pairs.values()]
    if 0 <= sample.explained < min(map(len, parts)):
        parts = [each[sample.explained :][:1] for each in parts]
    true, predicted = (_listed((f"{value:.2g}" for value in each.tolist()), 1) for each in parts)
    return Caption(tuple(lines), short=Short(f"true {true}", f"pred. {predicted}"))


def _tokens(sample: _Sample) -> Caption:
    own, predicted = sample.fact("class"), sample.fact("predicted")
    if own is None or predicted is None or sample.labels is None:
        return _other(sample)
    label = int(sample.labels[sample.index].reshape(-1)[int(sample.fact("position") or 0)])
    share, known, wrong = percent(sample.fact("probability") or 0.0), label >= 0, 0 <= label != predicted
    lines = [sample.word, *([f"label {sample.named(label)}"] if known else [])]
    lines += [f"predicted {sample.named(int(predicted))} {share}", *sample.value]
    short = Short(
        label=f"{sample.word}: {sample.name(int(own))}",
        predicted=sample.name(int(predicted)) if wrong else "",
        share=share,
        judged=known,
    )
    return Caption(tuple(lines), wrong, short)


def _dense(sample: _Sample) -> Caption:
    own, share, overlap, predicted = (sample.fact(name) for name in ("class", "share", "overlap", "predicted"))
    if own is None or share is None:
        return _other(sample)
    pixels, part = sample.fact("pixels"), f"{percent(share)} of the pixels"
    count = part if pixels is None else f"{int(pixels):,} pixels ({percent(share)})"
    other = "" if predicted is None or predicted == own else sample.name(int(predicted))
    lines, wrong = [f"class {sample.named(int(own))}, {count}"], False
    # Undefined where the class is neither predicted nor labelled.
    known = overlap is not None and not math.isnan(overlap)
    if overlap is not None and known:
        lines.append(f"IoU {overlap:.0%}, mostly predicted as {other}" if other else f"IoU {overlap:.0%}")
        wrong = overlap < _LEAST_OVERLAP
    size = part if pixels is None else f"{_thousands(int(pixels))} px"
    return Caption((*lines, *sample.value), wrong, Short(sample.name(int(own)), other, size, judged=known))


def _detection(sample: _Sample) -> Caption:
    own, score, overlap = (sample.fact(name) for name in ("class", "probability", "overlap"))
    if own is None or score is None or own < 0:
        return _plain("nothing detected", *sample.value)
    lines = [f"class {sample.named(int(own))}, score {percent(score)}"]
    lines += [] if overlap is None else [f"IoU with the label {overlap:.0%}"]
    short = Short(sample.name(int(own)), share=percent(score), judged=overlap is not None)
    return Caption(tuple(lines), overlap is not None and overlap < 0.5, short)


def _embedding(sample: _Sample) -> Caption:
    # Of an embedding as a whole, such as its norm, there is no index.
    named = [f"explained {sample.output}"] if sample.explained >= 0 and sample.report.outputs[0].numel() > 1 else []
    return _plain("embedding", *sample.value, *named)


def _other(sample: _Sample) -> Caption:
    if sample.label is None and sample.number is not None:
        return Caption(tuple(sample.value), short=Short(*sample.number))
    lines = [*([] if sample.label is None else [f"label {sample.label}"]), *sample.value]
    return _plain(*lines or [f"sample {int(sample.report.samples[sample.index])}"])


def _plain(*lines: str) -> Caption:
    """A caption whose first two lines say all that is needed."""
    return Caption(lines, short=Short(lines[0], lines[1] if len(lines) > 1 else ""))


_BY_TASK: dict[str, Callable[[_Sample], Caption]] = {
    "multiclass": _multiclass,
    "binary": _binary,
    "multilabel": _multilabel,
    "regression": _regression,
    "tokens": _tokens,
    "dense": _dense,
    "detection": _detection,
    "embedding": _embedding,
}


def _listed(words: Iterable[str], most: int = _MOST) -> str:
    found = list(words)
    return ", ".join(found[:most]) + (", ..." if len(found) > most else "")


def percent(share: float) -> str:
    """A share in percent; not rounded to 100% or 0%, which would claim certainty.

    Example:
        >>> from lightning_explain.render.captions import percent
        >>> percent(0.234), percent(0.998), percent(0.001), percent(1)
        ('23%', '>99%', '<1%', '100%')
    """
    return ">99%" if 0.995 <= share < 1 else "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _thousands(count: int) -> str:
    """A count in at most four characters, as far as it can be."""
    return str(count) if count < 10_000 else f"{count // 1000}k"
