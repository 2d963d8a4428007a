"""A report and a probe in; the caption of each sample (label, prediction, explained output) out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
    labels, shares = _labels(probe), probabilities(report.outputs)
    named = partial(_class, class_names)
    return [_caption(report, shares, i, labels[i], named) for i in range(rows)]


def _labels(probe: Probe) -> list[int | None]:
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        return [None] * len(probe)
    return [int(t) if t >= 0 else None for t in targets.tolist()]


def probabilities(outputs: Tensor) -> Tensor | None:
    """Class probabilities ``(N, C)``: the outputs if they sum to 1, else their softmax; ``None`` for other shapes."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    values = outputs.double()
    sums = values.sum(1)
    if bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        return values
    return values.softmax(1)


def _caption(report: Report, shares: Tensor | None, i: int, label: int | None, named: Callable[[int], str]) -> Caption:
    lines = [] if label is None else [f"label {named(label)}"]
    if shares is None:
        if report.outputs[i].numel() == 1:
            lines.append(f"f = {float(report.outputs[i]):.3g}")
        return Caption(tuple(lines) or (f"sample {int(report.ids[i])}",))
    predicted, explained = int(report.predictions[i]), int(report.targets[i])
    share = f" {_percent(float(shares[i, predicted]))}" if 0 <= predicted < shares.shape[1] else ""
    lines.append(f"predicted {named(predicted)}{share}")
    if explained >= 0 and explained != (predicted if label is None else label):
        lines.append(f"explained {named(explained)}")
    return Caption(tuple(lines), wrong=label is not None and label != predicted)


def _class(class_names: Sequence[str] | None, index: int) -> str:
    name = class_names[index] if class_names is not None and 0 <= index < len(class_names) else index
    return f"{index}" if str(name) == str(index) else f"{index} ({name})"


def _percent(share: float) -> str:
    # Not rounded to 100%, which would claim certainty.
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"
