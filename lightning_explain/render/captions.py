"""A report and a probe in; the caption of each sample (label, prediction, explained output) out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report


@dataclass(frozen=True)
class Caption:
    """The title of one sample.

    Args:
        lines: Lines of text, such as ``("label 7 (seven)", "predicted 2 (two) 98%")``.
        wrong: Whether the prediction differs from the label.
    """

    lines: tuple[str, ...]
    wrong: bool = False


def captions(report: Report, probe: Probe, class_names: Sequence[str] | None, rows: int) -> list[Caption]:
    """The captions of the first ``rows`` samples.

    Args:
        report: Provides outputs, predictions and explained outputs.
        probe: Provides the labels, if its targets are one integer per sample; negative labels count as unknown.
        class_names: One name per class index.
        rows: Number of samples.

    Returns:
        One caption per sample. A sample about which nothing is known is named by its id.
    """
    labels = _labels(probe)
    shares = probabilities(report.outputs)
    found = []
    for i in range(rows):
        label = None if labels is None or labels[i] < 0 else labels[i]
        if shares is not None:
            found.append(_classified(report, shares, i, label, class_names))
        else:
            found.append(Caption(_plain(report, i, label, class_names)))
    return found


def _labels(probe: Probe) -> list[int] | None:
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        return None
    return [int(t) for t in targets.tolist()]


def probabilities(outputs: Tensor) -> Tensor | None:
    """Class probabilities ``(N, C)``: the outputs if they sum to 1, else their softmax; ``None`` for other shapes."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    values = outputs.double()
    sums = values.sum(1)
    if bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return values
    return values.softmax(1)


def _classified(
    report: Report, shares: Tensor, i: int, label: int | None, class_names: Sequence[str] | None
) -> Caption:
    predicted, explained = int(report.predictions[i]), int(report.targets[i])
    lines = [] if label is None else [f"label {_class(label, class_names)}"]
    share = f" {_percent(float(shares[i, predicted]))}" if 0 <= predicted < shares.shape[1] else ""
    lines.append(f"predicted {_class(predicted, class_names)}{share}")
    if explained >= 0 and explained != (predicted if label is None else label):
        lines.append(f"explained {_class(explained, class_names)}")
    return Caption(tuple(lines), wrong=label is not None and label != predicted)


def _plain(report: Report, i: int, label: int | None, class_names: Sequence[str] | None) -> tuple[str, ...]:
    lines = [] if label is None else [f"label {_class(label, class_names)}"]
    if report.outputs[i].numel() == 1:
        lines.append(f"f = {float(report.outputs[i]):.3g}")
    return tuple(lines) or (f"sample {int(report.ids[i])}",)


def _class(index: int, class_names: Sequence[str] | None) -> str:
    named = class_names is not None and 0 <= index < len(class_names) and str(class_names[index]) != str(index)
    return f"{index} ({class_names[index]})" if named and class_names is not None else str(index)


def _percent(share: float) -> str:
    # Not rounded to 100%, which would claim certainty.
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
