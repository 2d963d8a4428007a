"""Outputs and labels of a few samples in; what the model was trained for out."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_explain.core.shares import are_shares
from lightning_explain.model.segments import are_soft_masks, segments_of
from lightning_explain.model.targets import single

TASKS = (
    "multiclass",
    "binary",
    "multilabel",
    "regression",
    "dense",
    "tokens",
    "embedding",
    "reconstruction",
    "detection",
)
IGNORED = -100
"""The label that torch's losses ignore."""


def classes_last(outputs: Tensor, labels: Tensor | None) -> bool | None:
    """Whether the classes of outputs with places are their last dimension, judging by the shape of the labels.

    Args:
        outputs: ``(N, ..., C)`` or ``(N, C, ...)``.
        labels: One class for each place, ``(N, ...)``.

    Returns:
        ``False``: they are the dimension after the samples; ``None``: the labels fit neither.
    """
    if labels is None or labels.shape == outputs.shape[:-1]:
        return True
    return False if labels.shape == (len(outputs), *outputs.shape[2:]) else None


def task_of(outputs: Tensor, labels: Tensor | None, named: bool = False) -> str:
    """What a model was trained for, one of ``TASKS`` or ``"other"``, as far as its outputs and labels on a few samples tell.

    Args:
        outputs: The model's outputs, ``(N, ...)``.
        labels: Labels of the samples, or ``None``.
        named: Whether the columns of the outputs have names, and so are classes.

    Returns:
        ``"multiclass"``: (N, C), one whole number or one distribution per sample; ``"binary"``: one number per sample, labels 0 or 1;
        ``"multilabel"``: labels of the outputs' shape, 0, 1, or unknown; ``"regression"``: other labels with the outputs' shape,
        or floating ones; ``"tokens"``: a whole number for each place; ``"dense"``: the labels of :func:`segments_of`; ``"embedding"``:
        (N, C) of which nothing says that the columns are classes; ``"other"``: ordinal logits, masks with
        soft edges, and labels of another form.
    """
    if not outputs.numel() or (labels is not None and labels.is_complex()):
        return "other"
    if outputs.ndim > 2:
        return _of_places(outputs, labels)
    flat = None if labels is None or labels.numel() != len(outputs) else labels.reshape(-1)
    if flat is not None and not flat.is_floating_point() and not (flat >= 0).any():
        labels = flat = None  # Negative classes are unknown ones.
    if single(outputs):
        whole = flat is not None and bool(((flat == 0) | (flat == 1) | (flat == IGNORED)).all())
        return "other" if labels is None else "binary" if whole else "regression"
    if labels is None:
        return "multiclass" if named or are_shares(outputs) else "embedding"
    if flat is None:
        return _of_columns(labels) if labels.shape == outputs.shape else "other"
    if flat.is_floating_point():
        return "regression"
    if _on_sphere(outputs):
        return "embedding"
    return "multiclass" if int(flat.max()) < outputs.shape[1] and not _ordinal(outputs) else "other"


def _of_places(outputs: Tensor, labels: Tensor | None) -> str:
    if labels is None or labels.ndim < 2:
        return "other"
    if outputs.ndim > 3 and segments_of(outputs, labels) is not None:
        return "dense"
    if not labels.is_floating_point() and classes_last(outputs, labels) is not None:
        return "tokens"
    if len(labels) != len(outputs) or labels.numel() != outputs.numel():
        return "other"
    return "other" if outputs.ndim > 3 and are_soft_masks(labels) else _of_columns(labels)


def _of_columns(labels: Tensor) -> str:
    """What labels ``(N, ...)`` with a number for each output are."""
    if bool(((labels == 0) | (labels == 1) | unknown(labels)).all()):
        return "multilabel"
    # Rows that are shares, as of label smoothing, are classes as well.
    return "multiclass" if labels.ndim < 4 and are_shares(labels.flatten(1)) else "regression"


def unknown(labels: Tensor) -> Tensor:
    """Which labels of several classes are not known: -1, what losses ignore, and NaN."""
    return (labels == -1) | (labels == IGNORED) | labels.isnan()


def of_one_norm(outputs: Tensor) -> bool:
    """Whether all samples' outputs ``(N, ...)`` have the same norm although they differ, as after ``functional.normalize``."""
    values = outputs.double().flatten(1) if outputs.ndim > 1 else outputs.double()[:, None]
    norms = values.norm(dim=1)
    apart = (values - values.mean(0)).norm(dim=1).amax()
    # Norms of 1 are no coincidence; equal ones of another length are none of several samples that differ much more.
    one = (norms - 1).abs().amax() < (1e-3 if len(values) > 1 else 1e-5)
    return bool(one) or (len(values) > 3 and bool(norms.amax() - norms.amin() < 1e-4 * apart))


def _on_sphere(outputs: Tensor) -> bool:
    norms = outputs.double().norm(dim=1)
    return bool((outputs < 0).any()) and torch.allclose(norms, torch.ones_like(norms), atol=1e-3)


def _ordinal(outputs: Tensor) -> bool:
    """Whether all samples have the same distances between their logits, as in CORAL: only thresholds differ."""
    values = outputs.double()
    moves, distances = (x.amax(0) - x.amin(0) for x in (values[:, :1], values.diff(dim=1)))
    return bool(distances.max() < 1e-4 * moves.max())
