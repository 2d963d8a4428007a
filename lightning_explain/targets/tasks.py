"""A target, clean outputs and labels in; the target of the task that the labels belong to out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_explain.core.contracts import Selection
from lightning_explain.targets.selections import Horizon, Pixels, Position, Positive, classes_last


def target_of_task(target: Any, outputs: Tensor, labels: Tensor | None) -> Any:
    """What ``target="label"`` means where labels are not one class for each sample; any other target as it is.

    Args:
        target: As the user gives it.
        outputs: The model's outputs on the whole probe, ``(N, ...)``.
        labels: The probe's labels, or ``None``.
    """
    if not (isinstance(target, str) and target == "label") or labels is None or labels.is_complex():
        return target
    return _by_labels(outputs, labels) or target


def _by_labels(outputs: Tensor, labels: Tensor) -> Selection | None:
    if outputs[:1].numel() == 1 or not outputs.numel() or len(labels) != len(outputs) or labels.ndim < 2:
        return None
    whole = not labels.is_floating_point()
    if outputs.ndim > 2 and whole and (last := classes_last(outputs, labels)) is not None:
        return Position() if last or outputs.ndim == 3 else Pixels()
    if outputs.ndim > 3 or labels.numel() != outputs.numel():
        return None
    # Rows that are shares, as of label smoothing, are classes as well.
    flat = labels.flatten(1).double()
    shares = bool((flat >= 0).all()) and bool(((flat.sum(1) - 1).abs() < 1e-4).all())
    return Positive() if shares or bool(((labels == 0) | (labels == 1)).all()) else Horizon()
